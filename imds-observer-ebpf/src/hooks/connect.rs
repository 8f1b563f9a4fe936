//! `connect()` towards an endpoint. The owner of the socket is recorded here, where it is certainly the current process.

use core::ptr::read_volatile;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated::bpf_get_socket_cookie};
use aya_ebpf::macros::{cgroup_sock_addr, fexit, raw_tracepoint, sock_ops, tracepoint};
use aya_ebpf::programs::{FExitContext, RawTracePointContext, SockAddrContext, SockOpsContext, TracePointContext};
use imds_observer_common::{ConnectEvent, Connecting, EventKind, Flow, ProcessKey, RedirectEvent, Tuple, mapped_v4};

use crate::config::{bytes, connecting_slots, is_endpoint, is_endpoint_v4, words};
use crate::emit::{count, emit, header, is_over_share};
use crate::maps::{Asked, CONNECTING, FLOWS, REWRITTEN, TUPLES, note_rewritten_to};
use crate::task::{current, current_cgroups, current_netns, current_number};

const IPPROTO_TCP: u32 = 6;
/// `BPF_SOCK_OPS_TCP_CONNECT_CB`: called right before the SYN is sent, when the local port has been chosen.
const TCP_CONNECT_CB: u32 = 3;
const AF_INET: u32 = 2;
const EINPROGRESS: i64 = -115;
/// Offset of `ret` in the `sys_exit_*` tracepoints, after 8 common bytes and 8 bytes with the number of the system call.
const SYS_EXIT_RET: usize = 16;

#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid for the program's run.
    let address = unsafe { (*ctx.sock_addr).user_ip4 };
    if is_endpoint_v4(address) {
        try_connect(ctx.sock_addr, mapped_v4(address.to_ne_bytes()));
    }
    1
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid for the program's run. Words are read one by one, because the verifier allows no wider reads here.
    let words = unsafe {
        [
            (*ctx.sock_addr).user_ip6[0],
            (*ctx.sock_addr).user_ip6[1],
            (*ctx.sock_addr).user_ip6[2],
            (*ctx.sock_addr).user_ip6[3],
        ]
    };
    let address = bytes(words);
    if is_endpoint(&address) {
        try_connect(ctx.sock_addr, address);
    }
    1
}

#[inline(always)]
fn try_connect(ctx: *mut bpf_sock_addr, remote: [u8; 16]) {
    // SAFETY: the context is valid. Each field is read only once, at the start.
    let (protocol, port) = unsafe { ((*ctx).protocol, (*ctx).user_port) };
    if protocol != IPPROTO_TCP {
        return;
    }
    let remote_port = u16::from_be(port as u16);
    // SAFETY: the context is valid for the program's run.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.cast()) };
    let cgroups = current_cgroups();
    let (key, tid) = match current() {
        Some(current) => {
            current.announce(cgroups);
            (current.key, current.tid)
        }
        None => {
            // Without BTF, at least the PID is available: this hook may query it on every kernel.
            let pid_tgid = bpf_get_current_pid_tgid();
            (
                ProcessKey {
                    start_time_ns: 0,
                    tgid: (pid_tgid >> 32) as u32,
                    exec_id: 0,
                },
                pid_tgid as u32,
            )
        }
    };
    let netns = current_netns();
    let cgroup_id = cgroups.id;
    let flow = Flow {
        process: key,
        cgroup_id,
        client: cgroup_id,
        cgroup_mark: cgroups.mark,
        tid,
        netns,
        next_seq: 0,
        seq_known: 0,
        awaiting: 0,
        pipelined: 0,
        reserved: 0,
    };
    if FLOWS.insert(cookie, flow, 0).is_err() {
        count(|loss| &mut loss.map_full);
    }
    note_connecting(
        (u64::from(key.tgid) << 32) | u64::from(tid),
        cookie,
        remote,
        remote_port,
    );
    if is_over_share(cgroup_id, cookie, size_of::<ConnectEvent>() as u64) != 0 {
        return;
    }
    emit(&ConnectEvent {
        header: header(EventKind::Connect, size_of::<ConnectEvent>()),
        cookie,
        process: key,
        cgroup_id,
        tid,
        netns,
        remote,
        remote_port,
        reserved: 0,
        result: 0,
    });
}

#[inline(always)]
fn slot(task: u64) -> Option<*mut Connecting> {
    CONNECTING.get_ptr_mut((task as u32).checked_rem(connecting_slots())?)
}

#[inline(always)]
fn note_connecting(task: u64, cookie: u64, remote: [u8; 16], remote_port: u16) {
    let Some(slot) = slot(task) else { return };
    // SAFETY: a live value. The task is cleared first and set last, so that the slot's previous owner doesn't mistake the new values for
    // its own.
    unsafe {
        (&raw mut (*slot).task).write_volatile(0);
        (&raw mut (*slot).cookie).write_volatile(cookie);
        let words = (&raw mut (*slot).remote).cast::<u64>();
        let [first, last] = core::mem::transmute::<[u8; 16], [u64; 2]>(remote);
        words.write_volatile(first);
        words.add(1).write_volatile(last);
        (&raw mut (*slot).remote_port).write_volatile(remote_port);
        (&raw mut (*slot).task).write_volatile(task);
    }
}

/// Removes and returns the entry that this task has stored.
#[inline(always)]
fn take_connecting(task: u64) -> Option<(u64, [u8; 16], u16)> {
    let slot = slot(task)?;
    // SAFETY: a live value. The task is compared before and after reading, in case another task takes over the slot.
    unsafe {
        if (&raw const (*slot).task).read_volatile() != task {
            return None;
        }
        let words = (&raw const (*slot).remote).cast::<u64>();
        let remote = [words.read_volatile(), words.add(1).read_volatile()];
        let noted = (
            (&raw const (*slot).cookie).read_volatile(),
            core::mem::transmute::<[u64; 2], [u8; 16]>(remote),
            (&raw const (*slot).remote_port).read_volatile(),
        );
        if (&raw const (*slot).task).read_volatile() != task {
            return None;
        }
        (&raw mut (*slot).task).write_volatile(0);
        Some(noted)
    }
}

/// Exit of `connect()`. The cgroup's verdict, the route lookup and the SYN all happen within this function, for system calls and `io_uring`
/// alike.
#[fexit(function = "inet_stream_connect")]
pub(crate) fn connect_exit(ctx: FExitContext) -> i32 {
    // The return value follows the four arguments. The helper that would read it exists since 5.17.
    returned(ctx.arg::<i64>(4) as i32 as i64);
    0
}

/// Fallback for kernels that can't trace functions: kernels without BTF, and arm64 before 6.4.
#[tracepoint]
pub(crate) fn connect_returned(ctx: TracePointContext) -> u32 {
    // SAFETY: the tracepoint's layout; a bad offset fails the read.
    if let Ok(result) = unsafe { ctx.read_at::<i64>(SYS_EXIT_RET) } {
        returned(result);
    }
    0
}

/// Fallback for kernels that also refuse that tracepoint (Debian's, if `perf_event_paranoid` is above 2): the end of any system call. A
/// task in `connect()` makes no other system call before it returns. Its next return is therefore that of `connect()`, or of the system
/// call that called it (`io_uring_enter`).
#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn any_call_returned(ctx: RawTracePointContext) -> i32 {
    returned(ctx.arg::<i64>(1));
    0
}

#[inline(always)]
fn returned(result: i64) {
    let Some((cookie, remote, remote_port)) = take_connecting(bpf_get_current_pid_tgid()) else {
        return;
    };
    // The socket is connected or connecting, which its SYN and the response show. Or this is the return of io_uring_enter, whose result is
    // the number of submitted calls.
    if result >= 0 || result == EINPROGRESS {
        return;
    }
    // SAFETY: copied at once.
    let flow = unsafe { FLOWS.get(cookie) };
    let (process, cgroup_id, tid, netns) = match flow {
        Some(flow) => (flow.process, flow.cgroup_id, flow.tid, flow.netns),
        None => (ProcessKey::default(), 0, 0, 0),
    };
    emit(&ConnectEvent {
        header: header(EventKind::ConnectReturned, size_of::<ConnectEvent>()),
        cookie,
        process,
        cgroup_id,
        tid,
        netns,
        remote,
        remote_port,
        reserved: 0,
        result: result as i32,
    });
}

/// Records the addresses of a connection before its SYN. If a firewall in OUTPUT drops the SYN, the cgroup hook never sees it, and only
/// this hook knows the addresses.
#[sock_ops]
pub(crate) fn connect_tuple(ctx: SockOpsContext) -> u32 {
    if ctx.op() == TCP_CONNECT_CB {
        try_connect_tuple(&ctx);
    }
    1
}

#[inline(always)]
fn try_connect_tuple(ctx: &SockOpsContext) {
    let ops = ctx.ops;
    // SAFETY: the context is valid. Fields are read with volatile loads at the start: otherwise the compiler would merge the reads of both
    // families into a read at a computed address, but the verifier accepts only constant offsets.
    let (family, remote_port, local_port, remote4, local4, remote6, local6) = unsafe {
        (
            read_volatile(&raw const (*ops).family),
            read_volatile(&raw const (*ops).remote_port),
            read_volatile(&raw const (*ops).local_port),
            read_volatile(&raw const (*ops).remote_ip4),
            read_volatile(&raw const (*ops).local_ip4),
            [
                read_volatile(&raw const (*ops).remote_ip6[0]),
                read_volatile(&raw const (*ops).remote_ip6[1]),
                read_volatile(&raw const (*ops).remote_ip6[2]),
                read_volatile(&raw const (*ops).remote_ip6[3]),
            ],
            [
                read_volatile(&raw const (*ops).local_ip6[0]),
                read_volatile(&raw const (*ops).local_ip6[1]),
                read_volatile(&raw const (*ops).local_ip6[2]),
                read_volatile(&raw const (*ops).local_ip6[3]),
            ],
        )
    };
    let (local, remote) = if family == AF_INET {
        (mapped_v4(local4.to_ne_bytes()), mapped_v4(remote4.to_ne_bytes()))
    } else {
        (bytes(local6), bytes(remote6))
    };
    let remote_port = u16::from_be((remote_port >> 16) as u16);
    let tuple = Tuple {
        local,
        remote,
        local_port: local_port as u16,
        remote_port,
    };
    if !is_endpoint(&remote) {
        note_rewritten(ctx, tuple);
        return;
    }
    // SAFETY: the context is valid.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    if TUPLES.insert(tuple, cookie, 0).is_err() {
        count(|loss| &mut loss.map_full);
    }
}

/// Handles a connection to another address. If this task's `connect()` was for an endpoint, a cgroup program that ran after ours
/// (socket-level load balancing) has rewritten the address. No packet of the connection will have the endpoint's address.
#[inline(always)]
fn note_rewritten(ctx: &SockOpsContext, tuple: Tuple) -> Option<()> {
    let task = current_number()?;
    let slot = slot(task)?;
    // SAFETY: a live value, and a valid context. The task is in `connect()`, so no other task writes to its slot.
    let asked = unsafe {
        if (&raw const (*slot).task).read_volatile() != task
            || (&raw const (*slot).cookie).read_volatile() != bpf_get_socket_cookie(ctx.as_ptr())
        {
            return None;
        }
        let words = (&raw const (*slot).remote).cast::<u64>();
        Asked {
            remote: core::mem::transmute::<[u64; 2], [u8; 16]>([words.read_volatile(), words.add(1).read_volatile()]),
            remote_port: (&raw const (*slot).remote_port).read_volatile(),
            reserved: 0,
        }
    };
    // SAFETY: the context is valid for the program's run.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    if REWRITTEN.insert(cookie, asked, 0).is_err() {
        count(|loss| &mut loss.map_full);
    }
    note_rewritten_to(words(&tuple.remote)[3]);
    emit(&RedirectEvent {
        header: header(EventKind::Redirect, size_of::<RedirectEvent>()),
        cookie,
        tuple: Tuple {
            remote: asked.remote,
            remote_port: asked.remote_port,
            ..tuple
        },
        to: tuple.remote,
        to_port: tuple.remote_port,
        reserved: 0,
    });
    Some(())
}
