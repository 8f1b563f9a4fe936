//! All maps. Their default sizes and the reasons are in `imds_observer_common::sizes`; user space may change the sizes before loading.
//!
//! All tables are LRU hashes: a flood evicts the oldest entries, and no table grows.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, LruHashMap, LruPerCpuHashMap, PerCpuArray, RingBuf};
use imds_observer_common::{
    CGROUP_BYTES, Connecting, DropEvent, Flow, HEAD_BYTES, InterfaceCounters, LossCounters, ProcessEvent, ProcessKey,
    RedirectEvent, SegmentEvent, Tuple, WireEvent, sizes,
};

use crate::emit::count;
use crate::packet::Ip;

/// Bytes that a client has written to the ring buffer during one lap.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Share {
    /// Number of the lap. A lap ends whenever half of the ring's size has been written in total.
    pub(crate) lap: u64,
    pub(crate) bytes: u64,
}

/// Client -> its share. Used only while the ring buffer is more than half full.
#[map]
pub(crate) static SHARES: LruHashMap<u64, Share> = LruHashMap::with_max_entries(1_024, 0);

/// Events for user space.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(sizes::RING_BYTES, 0);

/// 1: the reader sleeps until it is woken. Otherwise it polls soon by itself, and is woken only if the ring fills up. A wakeup costs an
/// interrupt, which is more expensive than the rest of a program, on virtual machines by a factor of ten.
#[map]
pub(crate) static SLEEPING: Array<u32> = Array::with_max_entries(1, 0);

/// Socket cookie -> connection.
#[map]
pub(crate) static FLOWS: LruHashMap<u64, Flow> = LruHashMap::with_max_entries(sizes::FLOWS, 0);

/// Addresses and ports, before and after NAT -> socket cookie.
#[map]
pub(crate) static TUPLES: LruHashMap<Tuple, u64> = LruHashMap::with_max_entries(sizes::TUPLES, 0);

/// Sequence and acknowledgment number of an outgoing segment (`sequence_key`) -> socket cookie.
#[map]
pub(crate) static SEQUENCES: LruHashMap<u64, u64> = LruHashMap::with_max_entries(sizes::SEQUENCES, 0);

/// The `connect()` that a task is executing, by the task's number modulo the number of slots. A hash table would cost several times as much
/// on every `connect()` of the host. The kernel assigns numbers sequentially, so concurrent `connect()` calls of two tasks rarely share a
/// slot. If they do, the newer task gets the slot, and the older task's error isn't reported. Entries that `io_uring` leaves behind are
/// overwritten in the same way.
#[map]
pub(crate) static CONNECTING: Array<Connecting> = Array::with_max_entries(sizes::CONNECTING, 0);

/// The endpoint that a process asked for, if a program that runs after ours at `connect4` or `connect6` has rewritten the socket's address.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) remote: [u8; 16],
    pub(crate) remote_port: u16,
    pub(crate) reserved: u16,
}

/// Socket cookie -> the endpoint that its process asked for.
#[map]
pub(crate) static REWRITTEN: LruHashMap<u64, Asked> = LruHashMap::with_max_entries(sizes::REWRITTEN, 0);

/// One bit per address to which such sockets were redirected, selected by the last six bits of the address. Usually no bit is set, so other
/// packets cost one test.
#[unsafe(no_mangle)]
static mut REWRITTEN_TO: u64 = 0;

/// Whether a socket may have been redirected to the address with this last word.
#[inline(always)]
pub(crate) fn may_be_rewritten(last_word: u32) -> bool {
    // SAFETY: a word of a map's memory. A torn or old value costs a table lookup, or a packet of a connection that has just begun.
    let bits = unsafe { (&raw const REWRITTEN_TO).read_volatile() };
    bits & bit_of(last_word) != 0
}

#[inline(always)]
pub(crate) fn note_rewritten_to(last_word: u32) {
    // SAFETY: a word of a map's memory. If two processors write at the same time, one of the bits may be lost; the next connection sets it
    // again.
    unsafe {
        let bits = &raw mut REWRITTEN_TO;
        bits.write_volatile(bits.read_volatile() | bit_of(last_word));
    }
}

#[inline(always)]
fn bit_of(last_word: u32) -> u64 {
    1 << (u32::from_be(last_word) & 63)
}

/// A process image in a cgroup. A process is announced again when it is moved, and once per cgroup if its threads are in several cgroups.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Announced {
    pub(crate) key: ProcessKey,
    pub(crate) cgroup_mark: u64,
}

/// Process images whose description has been sent to user space.
#[map]
pub(crate) static PROCESSES: LruHashMap<Announced, u8> = LruHashMap::with_max_entries(sizes::PROCESSES, 0);

/// Interface index -> link-local packets.
#[map]
pub(crate) static INTERFACES: LruPerCpuHashMap<u32, InterfaceCounters> =
    LruPerCpuHashMap::with_max_entries(sizes::INTERFACES, 0);

#[map]
pub(crate) static LOSS: PerCpuArray<LossCounters> = PerCpuArray::with_max_entries(1, 0);

/// Memory in which an event is built. It is too large for the 512-byte stack, and initializing it there would cost a memset per packet. An
/// incoming packet or another task may interrupt a program, which must then find its event unchanged. Each program therefore takes a free
/// slot.
pub(crate) trait Slot: Sized {
    /// Pointer to the field that is 1 while a program uses the slot.
    fn taken(slot: *mut Self) -> *mut u32;
}

/// Slots of one CPU: for a task's program, for one in softirq, and for two more tasks whose programs were preempted.
const SLOTS: u32 = 4;

/// Calls `fill` with a free slot. Returns `None` if all slots are taken; the packet is then counted as not read.
#[inline(always)]
pub(crate) fn with_slot<T: Slot, R>(slots: &PerCpuArray<T>, fill: impl FnOnce(&mut T) -> R) -> Option<R> {
    let slot = free(slots)?;
    // SAFETY: a live value of this CPU, which no other program takes until it is free again.
    unsafe {
        T::taken(slot).write_volatile(1);
        let result = fill(&mut *slot);
        T::taken(slot).write_volatile(0);
        Some(result)
    }
}

/// Finds a free slot. A program that interrupts before the slot is marked has released it by the time this program continues. The exception
/// is another task, on kernels that preempt tasks anywhere.
#[inline(always)]
fn free<T: Slot>(slots: &PerCpuArray<T>) -> Option<*mut T> {
    let mut index = 0;
    while index < SLOTS {
        let slot = slots.get_ptr_mut(index)?;
        // SAFETY: a live value.
        if unsafe { T::taken(slot).read_volatile() } == 0 {
            return Some(slot);
        }
        index += 1;
    }
    count(|loss| &mut loss.unparsed);
    None
}

macro_rules! slots {
    ($($scratch:ty),*) => {
        $(impl Slot for $scratch {
            #[inline(always)]
            fn taken(slot: *mut Self) -> *mut u32 {
                // SAFETY: a field of a live value.
                unsafe { &raw mut (*slot).taken }
            }
        })*
    };
}

slots!(SegmentScratch, WireScratch, DropScratch);

#[repr(C)]
pub(crate) struct SegmentScratch {
    pub(crate) event: SegmentEvent,
    pub(crate) head: [u8; HEAD_BYTES],
    pub(crate) ip: Ip,
    /// In memory, because this and the process's announcement, which is called from here, don't fit into the 512 bytes of stack together.
    pub(crate) flow: Flow,
    pub(crate) redirect: RedirectEvent,
    taken: u32,
}

#[map]
pub(crate) static SEGMENT_SCRATCH: PerCpuArray<SegmentScratch> = PerCpuArray::with_max_entries(SLOTS, 0);

#[repr(C)]
pub(crate) struct DropScratch {
    pub(crate) event: DropEvent,
    taken: u32,
}

#[map]
pub(crate) static DROP_SCRATCH: PerCpuArray<DropScratch> = PerCpuArray::with_max_entries(SLOTS, 0);

#[repr(C)]
pub(crate) struct WireScratch {
    pub(crate) event: WireEvent,
    pub(crate) head: [u8; HEAD_BYTES],
    pub(crate) ip: Ip,
    /// Headers of the packet that an ICMP error quotes.
    pub(crate) quoted: Ip,
    /// Index of the interface's counter for the packet.
    pub(crate) slot: u32,
    taken: u32,
}

#[map]
pub(crate) static WIRE_SCRATCH: PerCpuArray<WireScratch> = PerCpuArray::with_max_entries(SLOTS, 0);

/// Size of the longest path component with its NUL: `NAME_MAX` is 255, for cgroups as for files.
pub(crate) const COMPONENT_BYTES: usize = 256;

/// A process event and its path in a v1 hierarchy. Because of the slack, a component can be written at any masked offset of the last array
/// without leaving the map value.
#[repr(C)]
pub(crate) struct ProcessScratch {
    pub(crate) event: ProcessEvent,
    /// Path in a v1 hierarchy, sent after the event.
    pub(crate) cgroup_v1: [u8; CGROUP_BYTES],
    pub(crate) slack: [u8; COMPONENT_BYTES],
    /// 1: a program uses this memory.
    pub(crate) taken: u32,
}

#[map]
pub(crate) static PROCESS_SCRATCH: PerCpuArray<ProcessScratch> = PerCpuArray::with_max_entries(1, 0);
