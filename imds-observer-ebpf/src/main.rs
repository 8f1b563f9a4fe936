//! The kernel programs: they observe the traffic between this host's sockets and the metadata service, and change nothing.
//!
//! Each hook is a thin program that calls a `try_*` function. All programs let the packet or call continue: a cgroup program returns 1, a
//! TC program `TC_ACT_UNSPEC`. Everything that can't be reported is counted in `LOSS`.
#![no_std]
#![no_main]

mod config;
mod emit;
mod hooks;
mod log;
mod maps;
mod packet;
mod task;

/// The kernel allows only GPL-compatible programs to call the helpers that read kernel memory.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier would reject a program in which this is reachable.
    loop {}
}
