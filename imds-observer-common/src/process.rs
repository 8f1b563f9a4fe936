//! Identity and description of a process, recorded by the kernel while the process exists.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::EventHeader;

/// `TASK_COMM_LEN`: size of `comm` in bytes.
pub const COMM_BYTES: usize = 16;
/// Limit on recorded ancestors, nearest first.
pub const MAX_ANCESTORS: usize = 6;
/// Limit on recorded bytes of the executable's path.
pub const EXE_BYTES: usize = 512;
/// Limit on recorded bytes of the command line.
pub const CMDLINE_BYTES: usize = 512;
/// Limit on recorded bytes of the cgroup's path.
pub const CGROUP_BYTES: usize = 512;

/// Identity of a process image. A PID alone identifies no image: PIDs are reused, and `execve` replaces the image without changing the PID.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ProcessKey {
    /// Start time of the thread group leader, `CLOCK_BOOTTIME`, nanoseconds. 0: not known.
    pub start_time_ns: u64,
    /// PID in the host's initial PID namespace; 0: the process is not known.
    pub tgid: u32,
    /// Number of times that the task has called `execve` (`task_struct.self_exec_id`).
    pub exec_id: u32,
}

/// A parent, grandparent and so on.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ancestor {
    pub start_time_ns: u64,
    pub tgid: u32,
    pub reserved: u32,
    pub comm: [u8; COMM_BYTES],
}

/// Sent once per [`ProcessKey`] and cgroup, before the first event that refers to them. Followed by `cgroup_v1_len` bytes: the path in a v1
/// hierarchy, in the same form as `cgroup`.
///
/// Bytes beyond the stated lengths are left over from other events of this kind and have no meaning.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ProcessEvent {
    pub header: EventHeader,
    pub key: ProcessKey,
    /// cgroup v2 id of the task; 0: not known.
    pub cgroup_id: u64,
    /// Effective user id in the initial user namespace.
    pub uid: u32,
    /// PID inside the innermost PID namespace; equals `key.tgid` on the host.
    pub namespace_pid: u32,
    /// Inode of the network namespace; 0: not known.
    pub netns: u32,
    pub ancestors: u32,
    pub comm: [u8; COMM_BYTES],
    pub ancestor: [Ancestor; MAX_ANCESTORS],
    pub exe_len: u16,
    pub cmdline_len: u16,
    pub cgroup_len: u16,
    /// Length of the command line in bytes, if it was longer than the recorded part.
    pub cmdline_total: u16,
    /// Length of the path in a v1 hierarchy; 0: the process is in no cgroup of a v1 controller.
    pub cgroup_v1_len: u16,
    /// Number of components of `cgroup`, counted from the leaf, that are below a directory in which an unprivileged user may create
    /// directories. That user can choose the names of these components.
    pub cgroup_delegated: u16,
    /// Same number for the path in the v1 hierarchy.
    pub cgroup_v1_delegated: u16,
    pub reserved: u16,
    /// Path components from the file up to the root, each terminated by NUL: `python3\0bin\0usr\0`.
    pub exe: [u8; EXE_BYTES],
    /// `argv`, each argument terminated by NUL.
    pub cmdline: [u8; CMDLINE_BYTES],
    /// Path components from the cgroup up to the root, in the same form as `exe`.
    pub cgroup: [u8; CGROUP_BYTES],
}
