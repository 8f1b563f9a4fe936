//! Somewhere to observe: a stand-in for the metadata service, and the network namespaces around it.

pub mod bpf;
pub mod client;
pub mod faults;
pub mod privileges;
pub mod scenarios;
pub mod terminal;
pub mod topology;

pub use imds_observer_standin::server;

/// For tests that build a lab: whether this process can. Prints why not; in CI (`CI=true`) it panics instead, so that a
/// run without the live tests can't pass for one with them.
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
