//! Programs that do the minimum of an observer. Their cost is a lower bound for the cost of the observer's programs.
//!
//! Each does one thing that can't be omitted: compare a packet's address, send an event to user space, or store an entry in a map.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{BPF_MAP_CREATE, Hook, Measured, immediate, open};

const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_LRU_HASH: u32 = 9;
const MAP_TYPE_RINGBUF: u32 = 27;
/// Size of the ring buffer, the same as the observer's.
const RING_BYTES: u32 = 4 << 20;
const TABLE_ENTRIES: u32 = 32_768;
/// Size of an entry, the same as that of the observer's state of a connection.
const TABLE_VALUE: u32 = 48;
/// Interval at which events are discarded.
const DRAIN: Duration = Duration::from_millis(2);
const PAGE: usize = 4096;

const LOOKUP: i32 = 1;
const UPDATE: i32 = 2;
const SOCKET_COOKIE: i32 = 46;
const PROBE_READ_KERNEL: i32 = 113;
const BOOT_TIME: i32 = 125;
const RING_OUTPUT: i32 = 130;

/// Encodes an instruction. `dst` and `src` are registers.
fn op(code: u8, dst: u8, src: u8, offset: i16, value: i32) -> u64 {
    u64::from(code)
        | (u64::from(dst) << 8)
        | (u64::from(src) << 12)
        | (u64::from(offset as u16) << 16)
        | immediate(value)
}

fn load_word(dst: u8, src: u8, offset: i16) -> u64 {
    op(0x61, dst, src, offset, 0)
}

fn load_half(dst: u8, src: u8, offset: i16) -> u64 {
    op(0x69, dst, src, offset, 0)
}

fn load_double(dst: u8, src: u8, offset: i16) -> u64 {
    op(0x79, dst, src, offset, 0)
}

fn store_double(dst: u8, offset: i16, src: u8) -> u64 {
    op(0x7b, dst, src, offset, 0)
}

fn copy(dst: u8, src: u8) -> u64 {
    op(0xbf, dst, src, 0, 0)
}

fn set(dst: u8, value: i32) -> u64 {
    op(0xb7, dst, 0, 0, value)
}

fn add(dst: u8, value: i32) -> u64 {
    op(0x07, dst, 0, 0, value)
}

fn call(helper: i32) -> u64 {
    op(0x85, 0, 0, 0, helper)
}

/// Encodes loading the address of a map: two words, the second of which is zero.
fn map(dst: u8, map: &OwnedFd) -> [u64; 2] {
    [op(0x18, dst, 1, 0, map.as_raw_fd()), 0]
}

/// Offsets through which a drop's program finds the packet, from this kernel's BTF.
#[derive(Clone, Copy, Debug)]
pub struct PacketOffsets {
    /// Offset of `head` in `struct sk_buff`.
    pub head: u32,
    /// Offset of `network_header`.
    pub network_header: u32,
}

/// Attaches a program that compares the remote address of an IPv4 packet, as an observer of one address must: the destination of an
/// outgoing packet, or the source of an incoming one.
pub fn looks(at: Hook, cgroup: BorrowedFd<'_>, ifindex: u32) -> io::Result<Option<Measured>> {
    let (link, field) = match at {
        Hook::CgroupEgress => (0, 16),
        Hook::CgroupIngress => (0, 12),
        Hook::TcxEgress => (14, 16),
        Hook::TcxIngress => (14, 12),
        _ => return Ok(None),
    };
    let instructions = [
        // data and data_end of the context
        load_word(2, 1, 0x4c),
        load_word(3, 1, 0x50),
        copy(4, 2),
        add(4, link + 20),
        // If the packet is shorter, skip the next two instructions.
        op(0x2d, 4, 3, 2, 0),
        load_word(5, 2, (link + field) as i16),
        op(0x15, 5, 0, 0, i32::from_ne_bytes([169, 254, 169, 254])),
    ];
    Measured::attach("imdslab_looks", at, &instructions, cgroup, ifindex).map(Some)
}

/// Attaches a program that reads the addresses of a dropped packet.
pub fn looks_at_drop(at: Hook, packet: PacketOffsets, cgroup: BorrowedFd<'_>) -> io::Result<Measured> {
    let instructions = [
        load_double(6, 1, 0),
        load_double(7, 6, packet.head as i16),
        load_half(8, 6, packet.network_header as i16),
        op(0x0f, 7, 8, 0, 0),
        add(7, 12),
        copy(1, 10),
        add(1, -8),
        set(2, 8),
        copy(3, 7),
        call(PROBE_READ_KERNEL),
    ];
    Measured::attach("imdslab_looks", at, &instructions, cgroup, 0)
}

/// Maps to which programs write, and a reader that discards the events as fast as the observer reads its own.
pub struct Tables {
    ring: OwnedFd,
    event: OwnedFd,
    table: OwnedFd,
    reader: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Tables {
    pub fn new() -> io::Result<Self> {
        let ring = create(MAP_TYPE_RINGBUF, 0, 0, RING_BYTES)?;
        let event = create(MAP_TYPE_ARRAY, 4, 512, 1)?;
        let table = create(MAP_TYPE_LRU_HASH, 8, TABLE_VALUE, TABLE_ENTRIES)?;
        let positions = Positions::of(&ring)?;
        let stop = Arc::new(AtomicBool::new(false));
        let reported = Arc::clone(&stop);
        let reader = thread::spawn(move || {
            while !reported.load(Ordering::Relaxed) {
                positions.skip();
                thread::sleep(DRAIN);
            }
        });
        Ok(Self {
            ring,
            event,
            table,
            reader: Some((stop, reader)),
        })
    }

    /// Attaches a program that sends one event of this many bytes per run, with a timestamp.
    pub fn reports(&self, at: Hook, bytes: u32, cgroup: BorrowedFd<'_>, ifindex: u32) -> io::Result<Measured> {
        let reports = self.reporting(bytes);
        Measured::attach("imdslab_reports", at, &reports, cgroup, ifindex)
    }

    /// Like `reports`, but the program also stores an entry under the socket's cookie in an LRU map.
    pub fn notes_and_reports(
        &self,
        at: Hook,
        bytes: u32,
        cgroup: BorrowedFd<'_>,
        ifindex: u32,
    ) -> io::Result<Measured> {
        let mut instructions = vec![
            // r1 points to the context.
            call(SOCKET_COOKIE),
            store_double(10, -16, 0),
            op(0x62, 10, 0, -8, 0),
        ];
        instructions.extend(map(1, &self.event));
        instructions.extend([copy(2, 10), add(2, -8), call(LOOKUP), op(0x15, 0, 0, 7, 0), copy(3, 0)]);
        instructions.extend(map(1, &self.table));
        instructions.extend([copy(2, 10), add(2, -16), set(4, 0), call(UPDATE)]);
        instructions.extend(self.reporting(bytes));
        Measured::attach("imdslab_notes", at, &instructions, cgroup, ifindex)
    }

    fn reporting(&self, bytes: u32) -> Vec<u64> {
        // r6 points to the event, which is in a map.
        let mut instructions = vec![op(0x62, 10, 0, -8, 0)];
        instructions.extend(map(1, &self.event));
        instructions.extend([copy(2, 10), add(2, -8), call(LOOKUP), op(0x15, 0, 0, 9, 0), copy(6, 0)]);
        instructions.extend([call(BOOT_TIME), store_double(6, 0, 0)]);
        instructions.extend(map(1, &self.ring));
        // BPF_RB_NO_WAKEUP
        instructions.extend([copy(2, 6), set(3, bytes as i32), set(4, 1), call(RING_OUTPUT)]);
        instructions
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        if let Some((stop, reader)) = self.reader.take() {
            stop.store(true, Ordering::Relaxed);
            let _ = reader.join();
        }
    }
}

fn create(kind: u32, key_size: u32, value_size: u32, entries: u32) -> io::Result<OwnedFd> {
    open(BPF_MAP_CREATE, &[kind, key_size, value_size, entries])
}

/// Consumer and producer position of a ring buffer, in pages that are shared with the kernel.
struct Positions {
    consumer: NonNull<AtomicU64>,
    producer: NonNull<AtomicU64>,
}

// SAFETY: shared memory that is only used through atomics.
unsafe impl Send for Positions {}

impl Positions {
    fn of(ring: &OwnedFd) -> io::Result<Self> {
        let page = |protection, offset| {
            // SAFETY: a new mapping of our own descriptor, of one page.
            let address = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    PAGE,
                    protection,
                    libc::MAP_SHARED,
                    ring.as_raw_fd(),
                    offset,
                )
            };
            if address == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            NonNull::new(address.cast::<AtomicU64>()).ok_or_else(io::Error::last_os_error)
        };
        Ok(Self {
            consumer: page(libc::PROT_READ | libc::PROT_WRITE, 0)?,
            producer: page(libc::PROT_READ, PAGE as libc::off_t)?,
        })
    }

    /// Marks all events as read.
    fn skip(&self) {
        // SAFETY: both pages are mapped for as long as self.
        let (consumer, producer) = unsafe { (self.consumer.as_ref(), self.producer.as_ref()) };
        consumer.store(producer.load(Ordering::Acquire), Ordering::Release);
    }
}

impl Drop for Positions {
    fn drop(&mut self) {
        for page in [self.consumer, self.producer] {
            // SAFETY: mapped by us, and no reference remains.
            unsafe { libc::munmap(page.as_ptr().cast(), PAGE) };
        }
    }
}
