//! Default sizes of the kernel's tables, and the reasons for them.

/// Size of the ring buffer in bytes. An exchange causes 9 events of 80 to 300 bytes, 1.3 KB in total. 4 MiB hold some 3,200 exchanges,
/// which is 640 ms without a reader at 5,000 exchanges/s.
pub const RING_BYTES: u32 = 4 << 20;
/// Connections. IMDS closes after each response, and a flow is needed for 5 s after its end: 5,000 connections/s * 5 s = 25,000.
pub const FLOWS: u32 = 32_768;
/// Address pairs, before and after NAT: up to two per connection.
pub const TUPLES: u32 = 65_536;
/// Segments with SYN or payload. An entry is needed only until the segment reaches the uplink, micro- to milliseconds later.
pub const SEQUENCES: u32 = 16_384;
/// Concurrent calls of `connect()`: one per thread.
pub const CONNECTING: u32 = 8_192;
/// Connections that another cgroup program, which runs after ours in `connect()`, has redirected. A proxy for IMDS has few concurrent
/// clients.
pub const REWRITTEN: u32 = 1_024;
/// Process images whose description has been sent to user space.
pub const PROCESSES: u32 = 16_384;
/// Interfaces. Nodes have up to some hundred, but only uplinks need an entry.
pub const INTERFACES: u32 = 256;
