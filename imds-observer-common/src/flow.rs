//! What the kernel side remembers of a connection.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ProcessKey;

/// Value of the map from socket cookie to connection.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Flow {
    /// Who connected, or who sent the newest payload.
    pub process: ProcessKey,
    pub cgroup_id: u64,
    /// Whose share of the ring buffer its events count against.
    pub client: u64,
    /// The process's cgroups of v1 and v2 in one number: it changes when the process is moved.
    pub cgroup_mark: u64,
    pub tid: u32,
    pub netns: u32,
    /// Sequence number that the next new outgoing byte will have.
    pub next_seq: u32,
    /// 1: `next_seq` holds.
    pub seq_known: u8,
    /// 1: a request is out and no answer has come to the socket.
    pub awaiting: u8,
    /// 1: more was sent before an answer came, so one answer may not be the last.
    pub pipelined: u8,
    pub reserved: u8,
}

/// The `connect()` that a task is in. A slot is found by the task's number and belongs to the task that it names.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Connecting {
    /// `pid_tgid`; 0: no process.
    pub task: u64,
    pub cookie: u64,
    pub remote: [u8; 16],
    pub remote_port: u16,
    pub reserved: [u16; 3],
}
