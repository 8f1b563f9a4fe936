//! Who a process is, noted by the kernel while it lives.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::EventHeader;

/// `TASK_COMM_LEN`.
pub const COMM_BYTES: usize = 16;
/// Ancestors that are noted, nearest first.
pub const MAX_ANCESTORS: usize = 6;
/// Bytes of the executable's path that are noted.
pub const EXE_BYTES: usize = 512;
/// Bytes of the command line that are noted.
pub const CMDLINE_BYTES: usize = 512;
/// Bytes of the cgroup's path that are noted.
pub const CGROUP_BYTES: usize = 512;

/// Identity of a process image. PIDs are reused and `execve` replaces the image under the same PID, so a PID alone names nothing.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ProcessKey {
    /// Start time of the thread group leader, `CLOCK_BOOTTIME`, nanoseconds. 0: not known.
    pub start_time_ns: u64,
    /// The PID as the host's initial PID namespace counts. 0: no process is known.
    pub tgid: u32,
    /// How many times the task has called `execve` (`task_struct.self_exec_id`).
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

/// Sent once per [`ProcessKey`] and cgroup, before the first event that mentions them. Followed by `cgroup_v1_len` bytes: the path in
/// a v1 hierarchy, in the form of `cgroup`.
///
/// Bytes past the stated lengths are left over from other events of the same kind and mean nothing.
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
    /// Bytes that the command line really has, if more than were noted.
    pub cmdline_total: u16,
    /// 0: the process is in no cgroup of a v1 controller.
    pub cgroup_v1_len: u16,
    /// Components of `cgroup`, from the leaf, that lie below a directory in which an unprivileged user may make others: their
    /// names are that user's choice.
    pub cgroup_delegated: u16,
    /// The same for the path in the v1 hierarchy.
    pub cgroup_v1_delegated: u16,
    pub reserved: u16,
    /// Path components from the file up to the root, each ended by NUL: `python3\0bin\0usr\0`.
    pub exe: [u8; EXE_BYTES],
    /// `argv`, each ended by NUL.
    pub cmdline: [u8; CMDLINE_BYTES],
    /// As `exe`: from the cgroup up to the root.
    pub cgroup: [u8; CGROUP_BYTES],
}
