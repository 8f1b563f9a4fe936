//! The lab's cgroups: one per place, to distinguish the processes in each.

use std::{
    fs::{self, File, OpenOptions},
    io::Read as _,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Timeout for the end of killed processes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Mount point of cgroup2: `/sys/fs/cgroup`, or a directory beside the v1 hierarchies.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
    mounts
        .lines()
        .find_map(|line| {
            let mut fields = line.split(' ');
            let path = fields.nth(1)?;
            (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
        })
        .ok_or_else(|| anyhow!("no cgroup2 is mounted: try `mount -t cgroup2 none /sys/fs/cgroup/unified`"))
}

/// A cgroup of the lab. It is removed with the whole tree, see `remove_tree`.
pub struct Cgroup {
    directory: PathBuf,
    path: String,
    id: u64,
}

impl Cgroup {
    /// Creates `path` and its parents below the mount point.
    pub(super) fn create(mount_point: &Path, path: &str) -> Result<Self> {
        let directory = mount_point.join(path);
        fs::create_dir_all(&directory).with_context(|| format!("make cgroup {} (needs root)", directory.display()))?;
        let id = fs::metadata(&directory)?.ino();
        Ok(Self {
            directory,
            path: format!("/{path}"),
            id,
        })
    }

    /// Path as shown in `/proc/PID/cgroup`.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// ID as returned by `bpf_get_current_cgroup_id`.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Opens a file that moves the process that writes `0` to it into this cgroup.
    pub(super) fn door(&self) -> Result<OwnedFd> {
        let path = self.directory.join("cgroup.procs");
        let door = OpenOptions::new()
            .write(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        Ok(door.into())
    }
}

/// Kills all processes in a cgroup tree of the lab and removes it.
pub(super) fn remove_tree(directory: &Path) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    let deadline = Instant::now() + PATIENCE;
    while is_populated(directory, Duration::ZERO)? && Instant::now() < deadline {
        // Kernels before 5.14 have no cgroup.kill.
        if fs::write(directory.join("cgroup.kill"), "1").is_err() {
            kill_one_by_one(directory)?;
        }
        is_populated(directory, Duration::from_millis(100))?;
    }
    remove_directories(directory)
}

/// Waits until the tree is empty, at most for `patience`, and returns whether it still has processes.
fn is_populated(directory: &Path, patience: Duration) -> Result<bool> {
    let mut events = File::open(directory.join("cgroup.events"))?;
    let deadline = Instant::now() + patience;
    loop {
        let mut text = String::new();
        std::io::Seek::rewind(&mut events)?;
        events.read_to_string(&mut text)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if !text.contains("populated 1") || left.is_zero() {
            return Ok(text.contains("populated 1"));
        }
        // The kernel signals a change of the file as an exceptional condition.
        let mut waiting = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        poll(&mut waiting, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO))?;
    }
}

fn kill_one_by_one(directory: &Path) -> Result<()> {
    for line in fs::read_to_string(directory.join("cgroup.procs"))?.lines() {
        if let Ok(pid) = line.parse::<i32>()
            && pid > 1
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    children(directory)?.iter().try_for_each(|child| kill_one_by_one(child))
}

fn remove_directories(directory: &Path) -> Result<()> {
    for child in children(directory)? {
        remove_directories(&child)?;
    }
    fs::remove_dir(directory).with_context(|| format!("remove cgroup {}", directory.display()))
}

fn children(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}
