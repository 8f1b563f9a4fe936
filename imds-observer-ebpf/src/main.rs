//! The kernel side: sees what passes between this host's sockets and the metadata service, and changes nothing.
//!
//! Each hook is a thin program with a `try_*` function behind it. All return "go on": a cgroup program 1, a TC program
//! `TC_ACT_UNSPEC`. Everything that can't be reported is counted in `LOSS`.
#![no_std]
#![no_main]

mod config;
mod emit;
mod hooks;
mod log;
mod maps;
mod packet;
mod task;

/// The kernel lets only GPL-compatible programs call the helpers that read its memory.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier would refuse a program in which this could be reached.
    loop {}
}
