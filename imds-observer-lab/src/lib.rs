//! The lab: a stand-in for the metadata service, and the network namespaces around it, for an observer to observe.

pub mod bpf;
pub mod client;
pub mod faults;
pub mod privileges;
pub mod scenarios;
pub mod terminal;
pub mod topology;

pub use imds_observer_standin::server;

/// Returns whether this process can build a lab, and prints the reason if it can't. In CI (`CI=true`) it panics instead, so that a run
/// without the live tests isn't taken for a run with them.
pub fn can_run_live() -> bool {
    let why_not = if nix::unistd::geteuid().is_root() {
        topology::cgroup_mount_point().err().map(|error| format!("{error:#}"))
    } else {
        Some("making network namespaces needs root".to_owned())
    };
    let Some(why_not) = why_not else { return true };
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "live test can't run: {why_not}"
    );
    eprintln!("live test skipped: {why_not}");
    false
}
