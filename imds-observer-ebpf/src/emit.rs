//! Writes events to the ring buffer, and counts those that didn't fit.

use aya_ebpf::bindings::{__sk_buff, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_RB_PROD_POS};
use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, bpf_ringbuf_output, bpf_ringbuf_query};
use imds_observer_common::{EventHeader, EventKind, HEAD_BYTES, HEADS_PER_PACKET, LossCounters};

use crate::config::wake_at_bytes;
use crate::maps::{EVENTS, FLOWS, LOSS, SHARES, SLEEPING, Share};
use crate::packet::load_payload;

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

/// Uses the result of one of our functions. If the result were unused, the compiler would leave an arbitrary value in the return register.
/// The verifier rejects a function that may return a pointer to its stack.
#[inline(always)]
pub(crate) fn returned(result: bool) {
    core::hint::black_box(result);
}

/// Writes an event of a fixed size. Returns `false` if the ring was full, which is counted.
#[inline(always)]
pub(crate) fn emit<T>(event: &T) -> bool {
    emit_bytes(core::ptr::from_ref(event).cast(), size_of::<T>() as u64)
}

/// Number of bytes in the ring, or number of bytes ever written to it, depending on `question`.
#[inline(always)]
fn ring(question: u32) -> u64 {
    // SAFETY: a valid map, and a query without other arguments.
    unsafe { bpf_ringbuf_query((&raw const EVENTS).cast_mut().cast(), u64::from(question)) }
}

/// Whether a client has used up its share of a ring that is more than half full. Whenever half of the ring's size has been written, each
/// client gets a new share: a quarter of that half. A client that sends faster than the reader reads therefore leaves at least a quarter of
/// the ring to all others. Dropped events are counted.
///
/// If `client` is 0, the connection's client is used. This is a global function in the verifier's sense: if it were inlined, its branches
/// would multiply those of its callers.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn is_over_share(client: u64, cookie: u64, len: u64) -> u32 {
    let half = wake_at_bytes() * 2;
    if ring(BPF_RB_AVAIL_DATA) <= half {
        return 0;
    }
    let client = if client != 0 {
        client
    } else {
        // SAFETY: copied at once.
        unsafe { FLOWS.get(cookie) }.map_or(0, |flow| flow.client)
    };
    let lap = ring(BPF_RB_PROD_POS).checked_div(half).unwrap_or(0);
    let Some(share) = SHARES.get_ptr_mut(client) else {
        let _ = SHARES.insert(client, Share { lap, bytes: len }, 0);
        return 0;
    };
    // SAFETY: a live value. If two CPUs add at the same time, one addition may be lost.
    let share = unsafe { &mut *share };
    if share.lap != lap {
        share.lap = lap;
        share.bytes = 0;
    }
    if share.bytes + len > half / 4 {
        count(|loss| &mut loss.ring_buffer);
        return 1;
    }
    share.bytes += len;
    0
}

/// Whether to wake the reader: if it sleeps (once), or if the ring fills up while the reader waits for more events.
#[inline(always)]
fn wake(len: u64) -> u64 {
    if let Some(sleeping) = SLEEPING.get_ptr_mut(0) {
        // SAFETY: one word; two CPUs may both wake, which does no harm.
        unsafe {
            if sleeping.read_volatile() != 0 {
                sleeping.write_volatile(0);
                return u64::from(BPF_RB_FORCE_WAKEUP);
            }
        }
    }
    let waiting = ring(BPF_RB_AVAIL_DATA);
    // Wake only on the event that crosses the threshold, or on both if two CPUs are about to cross it: each wakeup costs an interrupt. The
    // reader's next poll, which happens in any case, picks up a missed wakeup.
    let line = wake_at_bytes();
    if waiting < line + ABOUT && waiting + len >= line {
        return u64::from(BPF_RB_FORCE_WAKEUP);
    }
    u64::from(BPF_RB_NO_WAKEUP)
}

/// Tolerance in bytes, the size of one or two events.
const ABOUT: u64 = 256;

/// Writes an event. `len` must have a bound that the verifier knows.
#[inline(always)]
pub(crate) fn emit_bytes(event: *const u8, len: u64) -> bool {
    // SAFETY: the caller's `event` is valid for `len` bytes; the verifier checks it.
    let result = unsafe {
        bpf_ringbuf_output(
            (&raw const EVENTS).cast_mut().cast(),
            event.cast_mut().cast(),
            len,
            wake(len),
        )
    };
    if result != 0 {
        count(|loss| &mut loss.ring_buffer);
    }
    result == 0
}

/// Copies a request's payload into `head` piece by piece. For each piece it calls `emit` with the piece's offset, the length of the payload
/// from there on, the length of the piece, and whether the payload continues beyond the last event. Returns `false` if not all events were
/// written.
#[inline(always)]
pub(crate) fn each_head(
    skb: *mut __sk_buff,
    payload: u32,
    payload_len: u32,
    head: &mut [u8; HEAD_BYTES],
    mut emit: impl FnMut(u32, u32, u32, bool) -> bool,
) -> bool {
    let mut done = 0_u32;
    let mut all = true;
    for _ in 0..HEADS_PER_PACKET {
        let left = payload_len.wrapping_sub(done);
        if left == 0 || left > payload_len {
            break;
        }
        let wanted = if left > HEAD_BYTES as u32 {
            HEAD_BYTES as u32
        } else {
            left
        };
        // The result is 1..=512, computed in a form that the verifiers of all kernels follow.
        let len = (wanted.wrapping_sub(1) & (HEAD_BYTES as u32 - 1)) + 1;
        if !load_payload(skb, payload.wrapping_add(done), head.as_mut_ptr(), len) {
            count(|loss| &mut loss.unparsed);
            return false;
        }
        let offset = done;
        done = done.wrapping_add(len);
        let cut = done >= HEADS_PER_PACKET * HEAD_BYTES as u32 && done < payload_len;
        if cut {
            count(|loss| &mut loss.truncated);
        }
        all &= emit(offset, left, len, cut);
    }
    all
}

#[inline(always)]
pub(crate) fn count(counter: impl FnOnce(&mut LossCounters) -> &mut u64) {
    if let Some(loss) = LOSS.get_ptr_mut(0) {
        // SAFETY: a per-CPU slot. If programs on one CPU interrupt each other, at worst an increment is lost.
        *counter(unsafe { &mut *loss }) += 1;
    }
}
