//! Where programs are attached by default: the host's cgroups.

use std::fs;
use std::path::PathBuf;

use crate::attribution::cgroup::whole_tree;

/// Where the host's cgroup v2 hierarchy is mounted: `/sys/fs/cgroup` on a v2 host, `/sys/fs/cgroup/unified` on a hybrid one, and in a
/// container wherever it was bound.
pub fn cgroup2_mount() -> Option<PathBuf> {
    whole_tree(&fs::read_to_string("/proc/self/mountinfo").ok()?).map(PathBuf::from)
}
