//! Memory is overwritten before it is freed. Request heads, with tokens in them, are copied into many buffers: a rule for each buffer would miss
//! one.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

/// Larger pieces hold tables and output, never a head: overwriting them costs more than it hides.
const MAX_BYTES: usize = 64 * 1024;

static ON: AtomicBool = AtomicBool::new(false);

/// Overwrites freed memory from now on. Only live commands call it: recordings hold no tokens, and are read faster without it.
pub(crate) fn begin() {
    ON.store(true, Ordering::Relaxed);
}

/// The system's allocator, which overwrites memory that is freed after [`begin`].
#[derive(Debug)]
pub struct Wiping;

/// Whether a piece of this size is overwritten.
fn is_wiped(size: usize) -> bool {
    size <= MAX_BYTES && ON.load(Ordering::Relaxed)
}

// SAFETY: the system's allocator does the work; a piece is overwritten within its own bounds, while it still belongs to the caller.
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        if is_wiped(layout.size()) {
            // A plain write in front of `free` would be left out by the compiler.
            // SAFETY: the piece has this many bytes.
            unsafe { libc::explicit_bzero(piece.cast(), layout.size()) };
        }
        // SAFETY: the caller's.
        unsafe { System.dealloc(piece, layout) }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !is_wiped(layout.size()) {
            // SAFETY: the caller's.
            return unsafe { System.realloc(piece, layout, size) };
        }
        // The system's would leave a copy behind where it moves the piece.
        // SAFETY: the caller gives a size that is neither zero nor too large for this alignment.
        let moved = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !moved.is_null() {
            // SAFETY: both pieces have this many bytes and are two; the old one is the caller's to give back.
            unsafe {
                std::ptr::copy_nonoverlapping(piece, moved, layout.size().min(size));
                self.dealloc(piece, layout);
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_and_shrinks_keeps_its_bytes() {
        begin();
        let layout = |size: usize| Layout::from_size_align(size, 8).unwrap();
        // SAFETY: sizes and layouts are those of the calls before.
        unsafe {
            let first = Wiping.alloc(layout(16));
            first.write_bytes(7, 16);
            let grown = Wiping.realloc(first, layout(16), 4096);
            assert!((0..16).all(|at| *grown.add(at) == 7));
            let shrunk = Wiping.realloc(grown, layout(4096), 8);
            assert!((0..8).all(|at| *shrunk.add(at) == 7));
            Wiping.dealloc(shrunk, layout(8));
        }
    }

    #[test]
    fn only_what_may_hold_a_head_is_overwritten() {
        begin();
        assert!(is_wiped(8192) && !is_wiped(1 << 20));
    }
}
