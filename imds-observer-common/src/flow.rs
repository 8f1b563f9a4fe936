//! State that the kernel programs keep of a connection.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ProcessKey;

/// Value of the map from socket cookie to connection.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Flow {
    /// The process that called `connect()`, or the one that sent the newest payload.
    pub process: ProcessKey,
    pub cgroup_id: u64,
    /// Client whose share of the ring buffer the connection's events use.
    pub client: u64,
    /// The process's cgroups of v1 and v2, combined into one number, which changes when the process is moved.
    pub cgroup_mark: u64,
    pub tid: u32,
    pub netns: u32,
    /// Sequence number that the next new outgoing byte will have.
    pub next_seq: u32,
    /// 1: `next_seq` is valid.
    pub seq_known: u8,
    /// 1: a request was sent, and no response has reached the socket yet.
    pub awaiting: u8,
    /// 1: more was sent before a response arrived, so the next response may not be the last one.
    pub pipelined: u8,
    pub reserved: u8,
}

/// The `connect()` that a task is executing. A slot is found by the task's number, and belongs to the task in `task`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Connecting {
    /// `pid_tgid`; 0: the slot is free.
    pub task: u64,
    pub cookie: u64,
    pub remote: [u8; 16],
    pub remote_port: u16,
    pub reserved: [u16; 3],
}
