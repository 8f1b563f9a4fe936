//! State changes and errors of TCP sockets towards an endpoint that are not visible in packets.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use imds_observer_common::{EventKind, SocketEvent, Tuple, mapped_v4};

use crate::config::{is_endpoint, is_endpoint_v4, is_endpoint_v6_suffix, offset};
use crate::emit::{emit, header};
use crate::maps::FLOWS;
use crate::packet::is_clients_port;
use crate::task::netns;

const ESTABLISHED: u32 = 1;
const SYN_SENT: u32 = 2;
const CLOSE: u32 = 7;
const CLOSE_WAIT: u32 = 8;
/// `SEND_SHUTDOWN` of `sk_shutdown`, and the value for both sides.
const SEND: u8 = 2;
const BOTH: u8 = 3;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Dereferences the socket directly, because this runs several times per TCP connection of the host.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn socket_state_btf(ctx: BtfTracePointContext) -> i32 {
    let new_state: u32 = ctx.arg(2);
    let socket: *const u8 = ctx.arg(0);
    if !is_wanted(new_state) {
        let Some(shutdown) = offset!(sock_shutdown) else {
            return 0;
        };
        // SAFETY: a BTF pointer: the verifier knows the struct, and a fault reads as 0.
        let shutdown = unsafe { socket.add(shutdown).read_volatile() };
        if !is_half_close(ctx.arg(1), new_state, shutdown) {
            return 0;
        }
    }
    let (Some(family), Some(v4), Some(v6)) = (offset!(sock_family), offset!(sock_daddr), offset!(sock_v6_daddr)) else {
        return 0;
    };
    // SAFETY: a BTF pointer: the verifier knows the struct, and a fault reads as 0.
    let near = unsafe {
        if socket.add(family).cast::<u16>().read_volatile() == AF_INET {
            is_endpoint_v4(socket.add(v4).cast::<u32>().read_volatile())
        } else {
            // Only the last word is checked here; the whole address is checked below.
            let last = socket.add(v6 + 12).cast::<u32>().read_volatile();
            is_endpoint_v4(last) || is_endpoint_v6_suffix(last)
        }
    };
    if near {
        try_socket(socket as u64, ctx.arg(1), new_state);
    }
    0
}

/// Fallback if the kernel refuses tracing programs.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub(crate) fn socket_state(ctx: RawTracePointContext) -> i32 {
    let new_state: u32 = ctx.arg(2);
    if is_wanted(new_state) || is_half_close(ctx.arg(1), new_state, shutdown_of(ctx.arg(0))) {
        try_socket(ctx.arg(0), ctx.arg(1), new_state);
    }
    0
}

#[raw_tracepoint(tracepoint = "inet_sk_error_report")]
pub(crate) fn socket_error(ctx: RawTracePointContext) -> i32 {
    try_socket(ctx.arg(0), 0, 0);
    0
}

#[inline(always)]
fn is_wanted(new_state: u32) -> bool {
    new_state == ESTABLISHED || new_state == SYN_SENT || new_state == CLOSE
}

/// Whether the process closes only its sending side (`shutdown()`) or, after that, the whole socket. In the second case, the kernel sets
/// the state that the socket already has. An ordinary `close()` is visible through its FIN.
#[inline(always)]
fn is_half_close(old_state: u32, new_state: u32, shutdown: u8) -> bool {
    if old_state == new_state {
        return shutdown == BOTH;
    }
    shutdown == SEND && (old_state == ESTABLISHED || old_state == CLOSE_WAIT)
}

#[inline(always)]
fn shutdown_of(socket: u64) -> u8 {
    offset!(sock_shutdown)
        .and_then(|field| read(socket, field))
        .unwrap_or(0)
}

#[inline(always)]
fn read<T>(base: u64, offset: usize) -> Option<T> {
    // SAFETY: bpf_probe_read_kernel takes any address and fails on bad ones.
    unsafe { bpf_probe_read_kernel((base as usize).wrapping_add(offset) as *const T) }.ok()
}

#[inline(always)]
fn try_socket(socket: u64, old_state: u32, new_state: u32) -> Option<()> {
    let family: u16 = read(socket, offset!(sock_family)?)?;
    // The remote address is read first, because most sockets are not IMDS clients and each read is a call.
    let remote = if family == AF_INET {
        mapped_v4(read(socket, offset!(sock_daddr)?)?)
    } else if family == AF_INET6 {
        // For IPv4 over an IPv6 socket, this is the v4-mapped address.
        read(socket, offset!(sock_v6_daddr)?)?
    } else {
        return None;
    };
    if !is_endpoint(&remote) {
        return None;
    }
    let local = if family == AF_INET {
        mapped_v4(read(socket, offset!(sock_rcv_saddr)?)?)
    } else {
        read(socket, offset!(sock_v6_rcv_saddr)?)?
    };
    let cookie: u64 = read(socket, offset!(sock_cookie)?)?;
    if cookie == 0 {
        return None;
    }
    // If the SYN was recorded, the response to it is recorded as well. Sockets in other cgroups than the observed one show only their
    // states.
    // SAFETY: the value is used immediately.
    if new_state == ESTABLISHED && unsafe { FLOWS.get(cookie) }.is_some_and(|flow| flow.seq_known != 0) {
        return None;
    }
    let remote_port = u16::from_be(read::<u16>(socket, offset!(sock_dport)?)?);
    let local_port: u16 = read(socket, offset!(sock_num)?)?;
    // On a host that has the endpoint's address itself, it is also the remote address of the server's sockets.
    // SAFETY: only its presence is checked.
    if is_endpoint(&local) && !is_clients_port(local_port, remote_port) && unsafe { FLOWS.get(cookie) }.is_none() {
        return None;
    }
    emit(&SocketEvent {
        header: header(EventKind::Socket, size_of::<SocketEvent>()),
        cookie,
        tuple: Tuple {
            local,
            remote,
            local_port,
            remote_port,
        },
        error: offset!(sock_err).and_then(|field| read(socket, field)).unwrap_or(0),
        old_state: old_state as u8,
        new_state: new_state as u8,
        shutdown: shutdown_of(socket),
        reserved: 0,
        netns: offset!(sock_net)
            .and_then(|field| read(socket, field))
            .and_then(netns)
            .unwrap_or(0),
        received: offset!(tcp_bytes_received)
            .filter(|_| new_state == CLOSE)
            .and_then(|field| read::<u64>(socket, field))
            .unwrap_or(0) as u32,
        reserved_end: 0,
    });
    Some(())
}
