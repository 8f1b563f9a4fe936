//! Every map. Their sizes, with reasons, are in `imds_observer_common::sizes`; user space may change it before loading.
//!
//! All tables are LRU hashes: a flood pushes out what is oldest, nothing grows.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, LruHashMap, LruPerCpuHashMap, PerCpuArray, RingBuf};
use imds_observer_common::{
    CGROUP_BYTES, Connecting, DropEvent, Flow, HEAD_BYTES, InterfaceCounters, LossCounters, ProcessEvent, ProcessKey,
    RedirectEvent, SegmentEvent, Tuple, WireEvent, sizes,
};

use crate::emit::count;
use crate::packet::Ip;

/// What a client has put into the ring buffer since it was half full.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Share {
    /// Which half of the ring's length, of all that was ever written to it.
    pub(crate) lap: u64,
    pub(crate) bytes: u64,
}

/// Client -> its share. Only looked at while the ring buffer is more than half full.
#[map]
pub(crate) static SHARES: LruHashMap<u64, Share> = LruHashMap::with_max_entries(1_024, 0);

/// What user space reads.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(sizes::RING_BYTES, 0);

/// 1: user space sleeps until it is woken; else it looks by itself soon, and is woken only if the ring fills. Waking takes an interrupt
/// that is dearer than all the rest of a program, on virtual machines by ten times.
#[map]
pub(crate) static SLEEPING: Array<u32> = Array::with_max_entries(1, 0);

/// Socket cookie -> connection.
#[map]
pub(crate) static FLOWS: LruHashMap<u64, Flow> = LruHashMap::with_max_entries(sizes::FLOWS, 0);

/// Addresses and ports, before and after NAT -> socket cookie.
#[map]
pub(crate) static TUPLES: LruHashMap<Tuple, u64> = LruHashMap::with_max_entries(sizes::TUPLES, 0);

/// Numbers of an outgoing segment (`sequence_key`) -> socket cookie.
#[map]
pub(crate) static SEQUENCES: LruHashMap<u64, u64> = LruHashMap::with_max_entries(sizes::SEQUENCES, 0);

/// The `connect()` that a task is in, by the task's number modulo the number of slots: a table costs several times as much, to every
/// `connect()` of the host. Numbers are given out in turn, so two tasks that connect at the same time rarely share a slot; then the newer
/// one has it, and the older one's error isn't reported. What `io_uring` leaves behind is overwritten like that too.
#[map]
pub(crate) static CONNECTING: Array<Connecting> = Array::with_max_entries(sizes::CONNECTING, 0);

/// The endpoint that a process asked for, of a socket whose address a program behind ours at `connect4` or `connect6` has rewritten.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) remote: [u8; 16],
    pub(crate) remote_port: u16,
    pub(crate) reserved: u16,
}

/// Socket cookie -> what it asked for.
#[map]
pub(crate) static REWRITTEN: LruHashMap<u64, Asked> = LruHashMap::with_max_entries(sizes::REWRITTEN, 0);

/// A bit for each address that such sockets were sent to, by its last six bits: mostly none, and then foreign packets cost one test.
#[unsafe(no_mangle)]
static mut REWRITTEN_TO: u64 = 0;

/// Whether a socket may have been sent to the address with this last word.
#[inline(always)]
pub(crate) fn may_be_rewritten(last_word: u32) -> bool {
    // SAFETY: a word of a map's memory; a torn or old value costs a look at a table, or a packet of a connection that has just begun.
    let bits = unsafe { (&raw const REWRITTEN_TO).read_volatile() };
    bits & bit_of(last_word) != 0
}

#[inline(always)]
pub(crate) fn note_rewritten_to(last_word: u32) {
    // SAFETY: a word of a map's memory. Two processors that write at once may lose one of the bits; the next connection sets it again.
    unsafe {
        let bits = &raw mut REWRITTEN_TO;
        bits.write_volatile(bits.read_volatile() | bit_of(last_word));
    }
}

#[inline(always)]
fn bit_of(last_word: u32) -> u64 {
    1 << (u32::from_be(last_word) & 63)
}

/// A process image in a cgroup. A process that is moved is announced again, and one whose threads are in two cgroups once for each.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Announced {
    pub(crate) key: ProcessKey,
    pub(crate) cgroup_mark: u64,
}

/// What user space has been sent a description of.
#[map]
pub(crate) static PROCESSES: LruHashMap<Announced, u8> = LruHashMap::with_max_entries(sizes::PROCESSES, 0);

/// Interface index -> link-local packets.
#[map]
pub(crate) static INTERFACES: LruPerCpuHashMap<u32, InterfaceCounters> =
    LruPerCpuHashMap::with_max_entries(sizes::INTERFACES, 0);

#[map]
pub(crate) static LOSS: PerCpuArray<LossCounters> = PerCpuArray::with_max_entries(1, 0);

/// Where an event is put together: too large for the 512-byte stack, and filling it there would cost a memset a packet. A program that is
/// interrupted, by a packet that comes in or by another task, must find its own as it left it, so each takes one that is free.
pub(crate) trait Slot: Sized {
    /// 1: a program is at work in it.
    fn taken(slot: *mut Self) -> *mut u32;
}

/// Of one CPU: a task's program, one in softirq, and as many tasks again whose program was preempted.
const SLOTS: u32 = 4;

/// Lets `fill` have a slot. `None`: all are taken, and the packet is counted as not read.
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

/// A program that interrupts before it is taken has freed it by the time this goes on, unless it is another task, on kernels that switch
/// tasks anywhere.
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
    /// Together with a process's announcement, which is called from here, the stack has 512 bytes and no room for it.
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
    /// Of the packet that an ICMP error quotes.
    pub(crate) quoted: Ip,
    /// Which of the interface's counters the packet belongs to.
    pub(crate) slot: u32,
    taken: u32,
}

#[map]
pub(crate) static WIRE_SCRATCH: PerCpuArray<WireScratch> = PerCpuArray::with_max_entries(SLOTS, 0);

/// Longest path component with its NUL: `NAME_MAX` is 255, for cgroups as for files.
pub(crate) const COMPONENT_BYTES: usize = 256;

/// The slack lets a component be written at any masked offset of the last array without leaving the map value.
#[repr(C)]
pub(crate) struct ProcessScratch {
    pub(crate) event: ProcessEvent,
    /// Of a v1 hierarchy, sent behind the event.
    pub(crate) cgroup_v1: [u8; CGROUP_BYTES],
    pub(crate) slack: [u8; COMPONENT_BYTES],
    /// 1: a program is at work in it.
    pub(crate) taken: u32,
}

#[map]
pub(crate) static PROCESS_SCRATCH: PerCpuArray<ProcessScratch> = PerCpuArray::with_max_entries(1, 0);
