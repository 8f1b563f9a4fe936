//! Globals that user space sets before loading. They are read-only data, so the verifier knows their values and removes branches that can't
//! be taken.

use imds_observer_common::{Endpoints, KernelOffsets, MAX_ENDPOINTS, NO_OFFSET, sizes};

/// 169.254.169.254 and fd00:ec2::254, unless user space sets other addresses.
#[unsafe(no_mangle)]
static ENDPOINTS: Endpoints = Endpoints {
    v4: [[169, 254, 169, 254]; MAX_ENDPOINTS],
    v6: [[0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, 0x54]; MAX_ENDPOINTS],
    v4_count: 1,
    v6_count: 1,
    v4_far_count: 0,
    v6_far_count: 0,
};

/// Number of bytes in the ring at which a reader that waits for more events is woken.
#[unsafe(no_mangle)]
static WAKE_AT: u32 = sizes::RING_BYTES / 4;

/// Number of entries of the map `CONNECTING`.
#[unsafe(no_mangle)]
static CONNECTING_SLOTS: u32 = sizes::CONNECTING;

/// Address of the VPC resolver, in the packet's byte order and read as a native integer; 0: not known.
#[unsafe(no_mangle)]
static RESOLVER: u32 = 0;

#[unsafe(no_mangle)]
static OFFSETS: KernelOffsets = KernelOffsets::NONE;

/// Offset of a field by its name, or `None` if this kernel lacks the field.
macro_rules! offset {
    ($field:ident) => {{
        let offset = $crate::config::offsets_field(|offsets| &offsets.$field);
        if offset == imds_observer_common::NO_OFFSET {
            None
        } else {
            Some(offset as usize)
        }
    }};
}
pub(crate) use offset;

/// A volatile load, because the compiler must not use the default values above as constants.
#[inline(always)]
pub(crate) fn offsets_field(field: impl FnOnce(&KernelOffsets) -> &u32) -> u32 {
    // SAFETY: the reference is to a live, aligned `u32` of a static that nothing writes after loading.
    unsafe { core::ptr::read_volatile(field(&OFFSETS)) }
}

#[inline(always)]
pub(crate) fn wake_at_bytes() -> u64 {
    // SAFETY: the pointer is to an aligned static that nothing writes after loading.
    u64::from(unsafe { core::ptr::read_volatile(&raw const WAKE_AT) })
}

#[inline(always)]
pub(crate) fn connecting_slots() -> u32 {
    // SAFETY: the pointer is to an aligned static that nothing writes after loading.
    unsafe { core::ptr::read_volatile(&raw const CONNECTING_SLOTS) }
}

/// The last reason of `kfree_skb` that is not a drop, or `None` if this kernel has no reasons.
#[inline(always)]
pub(crate) fn drop_reasons() -> Option<u32> {
    if offsets_field(|offsets| &offsets.kfree_skb_has_reason) == 1 {
        Some(offsets_field(|offsets| &offsets.last_benign_reason))
    } else {
        None
    }
}

/// Whether the programs of all hooks may follow typed pointers from the current task.
#[inline(always)]
pub(crate) fn reads_tasks_directly() -> bool {
    offsets_field(|offsets| &offsets.has_task_btf) == 1
}

/// Whether `address`, in the packet's byte order and read as a native integer, is an endpoint.
#[inline(always)]
pub(crate) fn is_endpoint_v4(address: u32) -> bool {
    // SAFETY: the pointer is to an aligned field of a static that nothing writes after loading.
    let count = unsafe { core::ptr::read_volatile(&raw const ENDPOINTS.v4_count) };
    is_first_v4(address, count)
}

/// Whether an address is link-local or a user's endpoint outside that range. Usually there is no such endpoint, and the verifier removes
/// the loop.
#[inline(always)]
pub(crate) fn near_v4(address: u32) -> bool {
    if address & u32::from_ne_bytes([255, 255, 0, 0]) == u32::from_ne_bytes([169, 254, 0, 0]) {
        return true;
    }
    // SAFETY: the pointer is to an aligned field of a static that nothing writes after loading.
    let count = unsafe { core::ptr::read_volatile(&raw const ENDPOINTS.v4_far_count) };
    is_first_v4(address, count)
}

/// Whether this is the VPC resolver outside the link-local range. If no resolver is known, the verifier removes the comparison.
#[inline(always)]
pub(crate) fn is_resolver(address: u32) -> bool {
    // SAFETY: the pointer is to an aligned static that nothing writes after loading.
    let resolver = unsafe { core::ptr::read_volatile(&raw const RESOLVER) };
    resolver != 0 && address == resolver
}

/// Whether the address is one of the first `count` endpoints. The count is read-only data, so unused slots cost nothing: the verifier
/// removes them.
#[inline(always)]
fn is_first_v4(address: u32, count: u32) -> bool {
    let mut index = 0;
    while index < MAX_ENDPOINTS && (index as u32) < count {
        // SAFETY: index is in bounds; the field is 4 bytes, of alignment 4 at the start of the struct.
        if address == unsafe { core::ptr::read_volatile((&raw const ENDPOINTS.v4).cast::<u32>().add(index)) } {
            return true;
        }
        index += 1;
    }
    false
}

#[inline(always)]
pub(crate) fn is_endpoint_v6(address: [u32; 4]) -> bool {
    // SAFETY: the pointer is to an aligned field of a static that nothing writes after loading.
    let count = unsafe { core::ptr::read_volatile(&raw const ENDPOINTS.v6_count) };
    let mut index = 0;
    while index < MAX_ENDPOINTS && (index as u32) < count {
        // SAFETY: index is below the length of the array, whose endpoints are four words each, of alignment 4.
        let words = unsafe { (&raw const ENDPOINTS.v6).cast::<u32>().add(index * 4) };
        // SAFETY: `words` points to four words of the array, which nothing writes after loading.
        let equal = unsafe {
            address[3] == core::ptr::read_volatile(words.add(3))
                && address[0] == core::ptr::read_volatile(words)
                && address[1] == core::ptr::read_volatile(words.add(1))
                && address[2] == core::ptr::read_volatile(words.add(2))
        };
        if equal {
            return true;
        }
        index += 1;
    }
    false
}

/// Whether the first word of an address is in fd00:ec2::/32, or is that of an endpoint outside this range. This is a cheap test before the
/// whole address is read.
#[inline(always)]
pub(crate) fn near_v6(first: u32) -> bool {
    if first == u32::from_ne_bytes([0xfd, 0, 0x0e, 0xc2]) {
        return true;
    }
    // SAFETY: the pointer is to an aligned field of a static that nothing writes after loading.
    let count = unsafe { core::ptr::read_volatile(&raw const ENDPOINTS.v6_far_count) };
    let mut index = 0;
    while index < MAX_ENDPOINTS && (index as u32) < count {
        // SAFETY: index is in bounds.
        if first == unsafe { core::ptr::read_volatile((&raw const ENDPOINTS.v6).cast::<u32>().add(index * 4)) } {
            return true;
        }
        index += 1;
    }
    false
}

/// Whether this is the last word of an endpoint.
#[inline(always)]
pub(crate) fn is_endpoint_v6_suffix(last: u32) -> bool {
    // SAFETY: the pointer is to an aligned field of a static that nothing writes after loading.
    let count = unsafe { core::ptr::read_volatile(&raw const ENDPOINTS.v6_count) };
    let mut index = 0;
    while index < MAX_ENDPOINTS && (index as u32) < count {
        // SAFETY: index is in bounds.
        if last == unsafe { core::ptr::read_volatile((&raw const ENDPOINTS.v6).cast::<u32>().add(index * 4 + 3)) } {
            return true;
        }
        index += 1;
    }
    false
}

/// Whether an address as in [`imds_observer_common::Tuple`] (v4-mapped or IPv6) is an endpoint.
#[inline(always)]
pub(crate) fn is_endpoint(address: &[u8; 16]) -> bool {
    let words = words(address);
    if words[0] == 0 && words[1] == 0 && words[2] == u32::from_ne_bytes([0, 0, 0xff, 0xff]) {
        return is_endpoint_v4(words[3]);
    }
    is_endpoint_v6(words)
}

#[inline(always)]
pub(crate) fn words(address: &[u8; 16]) -> [u32; 4] {
    // SAFETY: 16 bytes, any bit pattern; read without assuming alignment.
    unsafe { core::ptr::read_unaligned(address.as_ptr().cast()) }
}

#[inline(always)]
pub(crate) fn bytes(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: same size, any bits.
    unsafe { core::mem::transmute(words) }
}

const _: () = assert!(NO_OFFSET == u32::MAX);
