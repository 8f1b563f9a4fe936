//! What may the observer still do once everything is attached? As little as it can do its work with.
//!
//! Capabilities that were for loading and attaching go for good, nothing can be gained by `execve`, system calls that it never
//! makes are refused, and files are written in one directory only. None of it may end a healthy observer: a call that is refused
//! fails with EPERM, which its caller reports, and what this kernel doesn't have is left out and named in `start.confinement`.
//!
//! Capabilities and Landlock belong to a thread and go over to those that it starts. So files and sockets are opened first, then
//! privileges are dropped, and only then threads are started. Threads share their memory: what one of them keeps guards against
//! mistakes, not against an attacker who controls another one.

mod capabilities;
mod files;
mod seccomp;

use std::path::PathBuf;

use caps::Capability;
use nix::sys::resource::{Resource, setrlimit};

pub use capabilities::directory_of;

use crate::record::Confinement;

/// Privileges that a thread, and the threads that it starts, still need.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Capabilities to keep, if they are held.
    pub capabilities: Vec<Capability>,
    /// Directories where files are made, renamed and removed.
    pub writes: Vec<PathBuf>,
    /// Files that are read again later.
    pub reads: Vec<PathBuf>,
}

/// Drops all else: on this thread and those that it starts, and what concerns system calls in the whole process.
///
/// `elsewhere`: what other threads keep, for the record.
pub fn confine(needs: &Needs, elsewhere: &[Capability]) -> Confinement {
    forbid_dumps();
    let landlock = enter(needs);
    let seccomp = seccomp::filter_calls()
        .inspect_err(|error| tracing::warn!("filter system calls: {error:#}; all system calls stay allowed"))
        .is_ok();
    let no_new_privs = nix::sys::prctl::get_no_new_privs().unwrap_or(false);
    let mut capabilities: Vec<Capability> = capabilities::held();
    for capability in elsewhere {
        if !capabilities.contains(capability) {
            capabilities.push(*capability);
        }
    }
    let mut capabilities: Vec<String> = capabilities.iter().map(ToString::to_string).collect();
    capabilities.sort_unstable();
    tracing::info!(
        "dropped privileges; kept: {}; no_new_privs: {no_new_privs}; system calls filtered: {seccomp}; files confined: {}",
        if capabilities.is_empty() {
            "no capability".to_owned()
        } else {
            capabilities.join(" ")
        },
        landlock.unwrap_or("no"),
    );
    Confinement {
        capabilities,
        no_new_privs,
        seccomp,
        landlock: landlock.map(str::to_owned),
    }
}

/// Request heads, with tokens in them, are in this memory: no core dump, and no debugger of this user.
fn forbid_dumps() {
    if let Err(errno) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        tracing::warn!("limit core dumps: {errno}");
    }
    if let Err(errno) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!("make this process not dumpable: {errno}");
    }
}

/// The part that belongs to the calling thread and those that it starts. How Landlock took it: `full`, `partial`, or not at all.
pub fn enter(needs: &Needs) -> Option<&'static str> {
    if let Err(error) = capabilities::keep(&capabilities::needed(needs)) {
        tracing::warn!("drop capabilities: {error:#}");
    }
    if let Err(errno) = nix::sys::prctl::set_no_new_privs() {
        tracing::warn!("set no_new_privs: {errno}");
    }
    files::confine(needs)
        .inspect_err(|error| {
            tracing::warn!("confine file access: {error}; writing stays allowed wherever this user may write");
        })
        .ok()
        .flatten()
}

pub fn holds(capability: Capability) -> bool {
    capabilities::held().contains(&capability)
}

/// Capabilities alone, for a thread that reads the files of all processes: Landlock would hide them from it whatever it holds.
pub fn keep_only(capabilities: &[Capability]) {
    if let Err(error) = capabilities::keep(&capabilities.iter().copied().collect()) {
        tracing::warn!("drop capabilities: {error:#}");
    }
}
