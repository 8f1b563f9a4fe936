//! How large the kernel's tables are where nothing else is set, and how that was derived.

/// Of the ring buffer. An exchange gives 9 events of 80 to 300 bytes, 1.3 KB in all: 4 MiB hold some 3,200 exchanges, which at
/// 5,000 exchanges/s is the time of 640 ms without a reader.
pub const RING_BYTES: u32 = 4 << 20;
/// Connections. IMDS closes after each answer and a flow is wanted for 5 s after its end: 5,000 connections/s * 5 s = 25,000.
pub const FLOWS: u32 = 32_768;
/// Address pairs, before and after NAT: up to two a connection.
pub const TUPLES: u32 = 65_536;
/// Segments with SYN or payload. Needed only until the segment reaches the uplink, micro- to milliseconds later.
pub const SEQUENCES: u32 = 16_384;
/// Calls of `connect()`: one a thread.
pub const CONNECTING: u32 = 8_192;
/// Connections that a program behind ours in `connect()` has sent elsewhere. A proxy for IMDS has few clients at a time.
pub const REWRITTEN: u32 = 1_024;
/// Process images whose description was sent to user space.
pub const PROCESSES: u32 = 16_384;
/// Nodes have up to some hundred interfaces, only uplinks count.
pub const INTERFACES: u32 = 256;
