//! Where programs are attached by default: the host's cgroups.

use std::path::PathBuf;
use std::{fs, io};

use crate::attribution::cgroup::whole_tree;

/// Where the host's cgroup v2 hierarchy is mounted: `/sys/fs/cgroup` on a v2 host, `/sys/fs/cgroup/unified` on a hybrid one, and in a
/// container wherever it was bound.
pub fn cgroup2_mount() -> Option<PathBuf> {
    find_cgroup2_mount().ok().flatten()
}

/// The same where it matters why there is none.
pub(super) fn find_cgroup2_mount() -> io::Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(whole_tree(&mounts).map(PathBuf::from))
}
