//! Events into the ring buffer, and what didn't fit into a counter.

use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, bpf_ringbuf_output};
use imds_observer_common::{EventHeader, EventKind, LossCounters};

use crate::maps::{EVENTS, LOSS};

#[inline(always)]
pub(crate) fn header(kind: EventKind, len: usize) -> EventHeader {
    EventHeader {
        // SAFETY: no arguments.
        time_ns: unsafe { bpf_ktime_get_boot_ns() },
        kind: kind as u16,
        len: len as u16,
        reserved: 0,
    }
}

/// Copies an event of a fixed size. `false`: the ring was full; counted.
#[inline(always)]
pub(crate) fn emit<T>(event: &T) -> bool {
    emit_bytes(core::ptr::from_ref(event).cast(), size_of::<T>() as u64)
}

/// `len` must be bounded for the verifier.
#[inline(always)]
pub(crate) fn emit_bytes(event: *const u8, len: u64) -> bool {
    // SAFETY: the caller's `event` is valid for `len` bytes; the verifier checks it.
    let result = unsafe { bpf_ringbuf_output((&raw const EVENTS).cast_mut().cast(), event.cast_mut().cast(), len, 0) };
    if result != 0 {
        count(|loss| &mut loss.ring_buffer);
    }
    result == 0
}

#[inline(always)]
pub(crate) fn count(counter: impl FnOnce(&mut LossCounters) -> &mut u64) {
    if let Some(loss) = LOSS.get_ptr_mut(0) {
        // SAFETY: a per-CPU slot; programs on one CPU may interleave, and a lost increment is the worst of it.
        *counter(unsafe { &mut *loss }) += 1;
    }
}
