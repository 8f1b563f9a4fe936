//! A place in which programs run: a network namespace and a cgroup.

use std::{
    ffi::OsStr,
    net::{Ipv4Addr, Ipv6Addr},
    os::{fd::AsRawFd, unix::process::CommandExt},
    process::Command,
    sync::Arc,
};

use anyhow::Result;
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
};

use super::{Cgroup, Netns};

pub struct Place {
    pub(super) netns: Arc<Netns>,
    pub(super) cgroup: Arc<Cgroup>,
    pub(super) ipv4: Ipv4Addr,
    pub(super) ipv6: Option<Ipv6Addr>,
}

impl Place {
    /// Returns a command that runs in the namespace and, as a separate process, in the cgroup.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let netns = self.netns.descriptor()?;
        let door = self.cgroup.door()?;
        let mut command = Command::new(program);
        let enter = move || {
            setns(&netns, CloneFlags::CLONE_NEWNET)?;
            // SAFETY: writes one byte of static memory to a descriptor that the closure owns.
            let written = unsafe { libc::write(door.as_raw_fd(), c"0".as_ptr().cast(), 1) };
            Errno::result(written)?;
            Ok(())
        };
        // SAFETY: between fork and exec only system calls are made; descriptors were opened before.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }

    /// Returns a command that runs in the namespace but stays in the caller's cgroup, as an observer of the place does.
    pub fn command_beside(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let netns = self.netns.descriptor()?;
        let mut command = Command::new(program);
        let enter = move || {
            setns(&netns, CloneFlags::CLONE_NEWNET)?;
            Ok(())
        };
        // SAFETY: as above.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }

    /// Runs `work` on a thread in this namespace. **Not in this cgroup**: cgroup2 moves processes, not threads, so an observer still sees
    /// the thread in the caller's cgroup. Use `command` if the cgroup matters.
    pub fn run_in_thread<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.netns.run(work)
    }

    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The namespace, for guards and other users that may outlive the lab.
    pub(crate) fn shared_netns(&self) -> Arc<Netns> {
        Arc::clone(&self.netns)
    }

    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Source address of this place's own packets.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.ipv4
    }

    /// IPv6 source address, or `None` if the lab has no IPv6.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.ipv6
    }
}
