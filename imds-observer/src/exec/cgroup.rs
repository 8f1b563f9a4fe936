//! A cgroup for one command: a child of the observer's own, so that the command keeps the limits it would have without it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bpf::cgroup2_mount;

const PREFIX: &str = "imds-observer-exec-";
/// How long killed processes may take to be gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// A cgroup v2 directory that was made for one command.
#[derive(Clone, Debug)]
pub struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    /// Makes it, and removes those that killed observers have left empty.
    pub fn create() -> anyhow::Result<Self> {
        let mount = cgroup2_mount().context("make a cgroup: no cgroup v2 hierarchy is mounted (see `doctor`)")?;
        let own = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
        let parent = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or("");
        let parent = mount.join(parent);
        // In a container, the path may be one of the host's.
        let parent = if parent.is_dir() { parent } else { mount };
        sweep(&parent);
        let directory = parent.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&directory)
            .or_else(|error| match error.kind() {
                // The directory is left over from an earlier process with this PID.
                io::ErrorKind::AlreadyExists => Ok(()),
                _ => Err(error),
            })
            .with_context(|| format!("make cgroup {}", directory.display()))?;
        Ok(Self { directory })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writing `0` to it moves the writing process.
    pub fn entrance(&self) -> io::Result<OwnedFd> {
        let file = OpenOptions::new()
            .write(true)
            .open(self.directory.join("cgroup.procs"))?;
        Ok(file.into())
    }

    /// Kills all processes in it and removes it.
    pub fn remove(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match remove_tree(&self.directory) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| format!("remove cgroup {}", self.directory.display()));
                }
                Err(_) => {}
            }
            // cgroup.kill came with 5.14.
            if fs::write(self.directory.join("cgroup.kill"), "1").is_err() {
                kill_one_by_one(&self.directory);
            }
            // A killed process leaves its cgroup when it is a zombie; there is no event that a directory can be removed.
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Removes empty cgroups of observers that are gone. One that is in use can't be removed.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if let Some(owner) = owner
            && !Path::new("/proc").join(owner).exists()
        {
            let _ = remove_tree(&entry.path());
        }
    }
}

/// A command may have made cgroups of its own in it.
fn remove_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

fn kill_one_by_one(directory: &Path) {
    for pid in fs::read_to_string(directory.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
    {
        if let Ok(pid) = pid.parse::<i32>()
            && pid > 1
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_one_by_one(&entry.path());
        }
    }
}
