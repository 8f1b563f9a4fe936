//! Segments between a socket and an endpoint at the root cgroup: owner, request head, and status line of the response.
//!
//! The root cgroup of cgroup v2 includes the sockets of all network namespaces.

use core::ptr::read_volatile;

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_sk_fullsock, bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id, bpf_skc_to_tcp_sock,
};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use imds_observer_common::{
    Direction, EventKind, Flow, ProcessKey, RedirectEvent, STATUS_LINE_BYTES, SegmentEvent, SegmentFlags, Tuple,
    mapped_v4,
};

use crate::config::{bytes, is_endpoint, is_endpoint_v4, is_endpoint_v6, offset, reads_tasks_directly, words};
use crate::emit::{count, each_head, emit, emit_bytes, header, is_over_share, returned};
use crate::log::debug;
use crate::maps::{FLOWS, REWRITTEN, SEGMENT_SCRATCH, SEQUENCES, SegmentScratch, TUPLES, may_be_rewritten, with_slot};
use crate::packet::{
    self, ACK, ETH_P_IP, ETH_P_IPV6, FIN, IPPROTO_TCP, Ip, RST, SYN, Tcp, is_clients_port, is_extension,
    may_be_unread_tcp, sequence_key, tuple,
};
use crate::task::{current, current_cgroups, current_netns};

/// TCP state with the kernel's number.
const SYN_SENT: u32 = 2;

#[cgroup_skb]
pub(crate) fn segment_egress(ctx: SkBuffContext) -> i32 {
    if towards_endpoint::<true>(&ctx) {
        debug!(&ctx, "segment to an endpoint: {} bytes", ctx.len());
        returned(try_egress(ctx.skb.skb));
    }
    1
}

#[cgroup_skb]
pub(crate) fn segment_ingress(ctx: SkBuffContext) -> i32 {
    if towards_endpoint::<false>(&ctx) {
        debug!(&ctx, "segment from an endpoint: {} bytes", ctx.len());
        returned(try_ingress(ctx.skb.skb));
    }
    1
}

/// Early exit for other traffic: direct packet access, no use of the stack.
///
/// On egress, nat OUTPUT may have rewritten the destination, so the socket's remote address is checked too. If a program in `connect()` has
/// also rewritten that address, the rewritten address is checked. A socket without a remote address belongs to the kernel, which answers
/// for sockets that no longer exist or never existed (RST, the ACKs of TIME_WAIT). It is not a client.
#[inline(always)]
fn towards_endpoint<const EGRESS: bool>(ctx: &SkBuffContext) -> bool {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid; the verifier checks each access against data_end, and the socket against null.
    unsafe {
        let protocol = (*skb).protocol as u16;
        let data = (*skb).data as usize;
        let end = (*skb).data_end as usize;
        if protocol == ETH_P_IP {
            if data + 20 > end {
                return false;
            }
            let address = *((data + if EGRESS { 16 } else { 12 }) as *const u32);
            let mut concerns = is_endpoint_v4(address) || may_be_rewritten(address);
            if EGRESS {
                let socket = (*skb).__bindgen_anon_2.sk;
                if socket.is_null() {
                    return false;
                }
                let remote = read_volatile(&raw const (*socket).dst_ip4);
                concerns = remote != 0 && (concerns || is_endpoint_v4(remote));
            }
            return concerns && *((data + 9) as *const u8) == IPPROTO_TCP;
        }
        if protocol == ETH_P_IPV6 {
            if data + 40 > end {
                return false;
            }
            let address = (data + if EGRESS { 24 } else { 8 }) as *const u32;
            let last = *address.add(3);
            let mut concerns =
                is_endpoint_v6([*address, *address.add(1), *address.add(2), last]) || may_be_rewritten(last);
            if EGRESS {
                let socket = (*skb).__bindgen_anon_2.sk;
                if socket.is_null() {
                    return false;
                }
                let remote = remote_v6(socket);
                concerns = remote[0] | remote[1] | remote[2] | remote[3] != 0 && (concerns || is_endpoint_v6(remote));
            }
            let next = *((data + 6) as *const u8);
            return concerns && (next == IPPROTO_TCP || is_extension(next) && !is_other_protocols(skb));
        }
    }
    false
}

/// Whether the packet's socket has another protocol than TCP. No extension header can turn such a packet into a request.
#[inline(always)]
fn is_other_protocols(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context is valid, and both pointers are compared with null.
    unsafe {
        let socket = (*skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return false;
        }
        let socket = bpf_sk_fullsock(socket);
        !socket.is_null() && read_volatile(&raw const (*socket).protocol) != u32::from(IPPROTO_TCP)
    }
}

/// Reads with volatile loads, word by word: the verifier accepts neither wider reads nor computed addresses.
///
/// # Safety
///
/// `socket` is not null.
#[inline(always)]
unsafe fn remote_v6(socket: *const bpf_sock) -> [u32; 4] {
    // SAFETY: guaranteed by the caller.
    unsafe {
        [
            read_volatile(&raw const (*socket).dst_ip6[0]),
            read_volatile(&raw const (*socket).dst_ip6[1]),
            read_volatile(&raw const (*socket).dst_ip6[2]),
            read_volatile(&raw const (*socket).dst_ip6[3]),
        ]
    }
}

/// Whether the sending socket is still in SYN_SENT.
#[inline(always)]
fn is_connecting(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context is valid, and the socket is compared with null.
    unsafe {
        let socket = (*skb).__bindgen_anon_2.sk;
        !socket.is_null() && read_volatile(&raw const (*socket).state) == SYN_SENT
    }
}

/// Addresses and ports of the sending socket, before any NAT. Returns `false` if there is no socket.
#[inline(always)]
fn socket_tuple(skb: *mut __sk_buff, v6: bool, tuple: &mut Tuple) -> bool {
    // SAFETY: the context is valid, and the socket is compared with null.
    unsafe {
        let socket = (*skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return false;
        }
        // Both families are read at the start. Otherwise the compiler would merge their reads into a read at a computed address.
        let remote6 = remote_v6(socket);
        let local6 = [
            read_volatile(&raw const (*socket).src_ip6[0]),
            read_volatile(&raw const (*socket).src_ip6[1]),
            read_volatile(&raw const (*socket).src_ip6[2]),
            read_volatile(&raw const (*socket).src_ip6[3]),
        ];
        let remote4 = read_volatile(&raw const (*socket).dst_ip4);
        let local4 = read_volatile(&raw const (*socket).src_ip4);
        tuple.remote_port = u16::from_be(read_volatile(&raw const (*socket).dst_port));
        tuple.local_port = read_volatile(&raw const (*socket).src_port) as u16;
        if v6 {
            tuple.remote = bytes(remote6);
            tuple.local = bytes(local6);
        } else {
            tuple.remote = mapped_v4(remote4.to_ne_bytes());
            tuple.local = mapped_v4(local4.to_ne_bytes());
        }
    }
    true
}

/// Sets the remote end to the endpoint that the process asked for, if another program has rewritten the socket's address. Returns `false`
/// if it has not.
#[inline(always)]
fn ask_for_endpoint(cookie: u64, tuple: &mut Tuple) -> bool {
    // SAFETY: copied at once.
    let Some(asked) = (unsafe { REWRITTEN.get(cookie) }) else {
        return false;
    };
    tuple.remote = asked.remote;
    tuple.remote_port = asked.remote_port;
    true
}

/// Reads the headers. Returns `None` if the packet isn't TCP, or if it can't be read, which is counted.
#[inline(always)]
fn headers(skb: *mut __sk_buff, ip: &mut Ip) -> Option<(Tcp, u32, u32)> {
    // SAFETY: the context is valid.
    let v6 = unsafe { (*skb).protocol } as u16 == ETH_P_IPV6;
    let read = packet::ip(skb, v6, 0, ip).is_some();
    if read && ip.protocol != IPPROTO_TCP && !may_be_unread_tcp(ip) {
        return None;
    }
    if read
        && !may_be_unread_tcp(ip)
        && let Some(tcp) = packet::tcp(skb, ip.next)
    {
        let (payload, payload_len) = packet::payload(skb, ip, &tcp);
        return Some((tcp, payload, payload_len));
    }
    count(|loss| &mut loss.unparsed);
    None
}

/// Whether every request has a response. The end of such a connection adds nothing to the socket's last state.
#[inline(always)]
fn is_done(flow: &Flow) -> bool {
    flow.awaiting == 0 && flow.pipelined == 0 && offset!(sock_cookie).is_some()
}

/// Whether the current task is the one that called the socket. The kernel sends delayed data (Nagle's algorithm, `TCP_CORK`, a small
/// window) in an interrupt of an arbitrary task. No task has locked the socket then.
#[inline(always)]
fn is_senders_call(skb: *mut __sk_buff) -> bool {
    let Some(owned) = offset!(sock_owned).filter(|_| reads_tasks_directly()) else {
        return true;
    };
    // SAFETY: the context is valid; the verifier knows the struct, and a fault reads as 0.
    unsafe {
        let socket = (*skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return true;
        }
        let socket = bpf_skc_to_tcp_sock(socket.cast());
        socket.is_null() || socket.cast::<u8>().wrapping_add(owned).cast::<u32>().read_volatile() != 0
    }
}

/// Level of the cgroups that share the ring buffer: pods, and services of a user's session. All cgroups that a user creates below them
/// count as the same client.
const CLIENT_LEVEL: i32 = 3;

/// Client whose share of the ring buffer the socket's events use.
#[inline(always)]
fn client(skb: *mut __sk_buff, cgroup_id: u64) -> u64 {
    // SAFETY: the context is valid.
    match unsafe { bpf_skb_ancestor_cgroup_id(skb, CLIENT_LEVEL) } {
        0 => cgroup_id,
        id => id,
    }
}

#[inline(never)]
fn try_egress(skb: *mut __sk_buff) -> bool {
    with_slot(&SEGMENT_SCRATCH, |scratch| egress(skb, scratch)).unwrap_or(false)
}

#[inline(always)]
fn egress(skb: *mut __sk_buff, scratch: &mut SegmentScratch) -> bool {
    let SegmentScratch {
        event,
        head,
        ip,
        flow,
        redirect,
        ..
    } = scratch;
    let Some((tcp, payload, payload_len)) = headers(skb, ip) else {
        return false;
    };
    if payload_len == 0 && tcp.flags & (SYN | FIN | RST) == 0 {
        return false;
    }
    // For a socket that is still connecting, the kernel answers a stale acknowledgment of the server (a port in TIME_WAIT) with an RST. The
    // socket continues to connect.
    if tcp.flags & RST != 0 && is_connecting(skb) {
        return false;
    }
    // SAFETY: the context is valid.
    let cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    let end = tcp
        .seq
        .wrapping_add(payload_len)
        .wrapping_add(u32::from(tcp.flags & (SYN | FIN) != 0));
    // SAFETY: the context is valid for the program's run.
    let v6 = unsafe { (*skb).protocol } as u16 == ETH_P_IPV6;
    // If the socket's remote address isn't an endpoint, there are two cases. Either a packet filter redirects the packet to an endpoint, so
    // the packet has the addresses. Or the process asked for an endpoint, and `connect()` was rewritten.
    let has_tuple = socket_tuple(skb, v6, &mut event.tuple);
    if !has_tuple || !is_endpoint(&event.tuple.remote) {
        if is_endpoint(&ip.destination) {
            event.tuple = tuple(ip, tcp.source, tcp.destination, true);
        } else if !has_tuple || !ask_for_endpoint(cookie, &mut event.tuple) {
            return false;
        }
    }

    let mut fresh = true;
    let mut known = false;
    // The entry is changed in place, because inserting it again costs several times as much.
    let noted = FLOWS.get_ptr_mut(cookie);
    // On a host that has the endpoint's address itself, the server's sockets look like clients. This includes a socket that answers a SYN
    // with data (TCP Fast Open).
    if noted.is_none()
        && tcp.flags & (SYN | ACK) != SYN
        && is_endpoint(&event.tuple.local)
        && !is_clients_port(event.tuple.local_port, event.tuple.remote_port)
    {
        return false;
    }
    let flow = if let Some(noted) = noted {
        // SAFETY: a live value. Only one segment of a socket is sent at a time, and other writers change only one byte.
        let flow = unsafe { &mut *noted };
        known = flow.seq_known != 0;
        fresh = !known || end.wrapping_sub(flow.next_seq) as i32 > 0;
        flow
    } else {
        flow.process = ProcessKey::default();
        // SAFETY: the context is valid for the program's run.
        flow.cgroup_id = unsafe { bpf_skb_cgroup_id(skb) };
        flow.client = 0;
        flow.cgroup_mark = 0;
        flow.tid = 0;
        flow.netns = 0;
        flow.next_seq = 0;
        flow.seq_known = 0;
        flow.awaiting = 0;
        flow.pipelined = 0;
        flow.reserved = 0;
        flow
    };
    // Every segment that an uplink reports is stored, so that a connection is joined even if its uplink is observed only later, and again
    // if NAT maps it to another port.
    if (payload_len > 0 || tcp.flags & SYN != 0) && SEQUENCES.insert(sequence_key(&tcp), cookie, 0).is_err() {
        count(|loss| &mut loss.map_full);
    }
    if !known {
        flow.client = client(skb, flow.cgroup_id);
    }
    if fresh {
        // `current` is the sender only for SYN and for payload that is sent for the first time. The socket may have been passed on or
        // inherited since its connect().
        if (payload_len > 0 || tcp.flags & SYN != 0)
            && is_senders_call(skb)
            && let Some(sender) = current()
            && sender.is_user
        {
            // A process may be moved to another cgroup during the connection.
            let cgroups = current_cgroups();
            if sender.key != flow.process || flow.tid == 0 || cgroups.mark != flow.cgroup_mark {
                sender.announce(cgroups);
                flow.process = sender.key;
                flow.netns = current_netns();
                flow.cgroup_mark = cgroups.mark;
                if cgroups.id != 0 {
                    flow.cgroup_id = cgroups.id;
                }
            }
            flow.tid = sender.tid;
        }
        if !known || tcp.flags & SYN != 0 {
            // SAFETY: compared at once.
            let found = unsafe { TUPLES.get(event.tuple) }.is_some_and(|noted| *noted == cookie);
            if !found && TUPLES.insert(&event.tuple, cookie, 0).is_err() {
                count(|loss| &mut loss.map_full);
            }
            if tcp.destination != event.tuple.remote_port || words(&ip.destination) != words(&event.tuple.remote) {
                redirect.cookie = cookie;
                redirect.tuple = event.tuple;
                redirect.to = ip.destination;
                redirect.to_port = tcp.destination;
                redirect.reserved = 0;
                redirect.header = header(EventKind::Redirect, size_of::<RedirectEvent>());
                emit(redirect);
            }
        }
        // An RST that answers a packet has the sequence number that the packet acknowledges, which may be old.
        if tcp.flags & RST == 0 {
            flow.next_seq = end;
            flow.seq_known = 1;
        }
        if payload_len > 0 {
            if flow.awaiting != 0 {
                flow.pipelined = 1;
            }
            flow.awaiting = 1;
        }
        if noted.is_none() && FLOWS.insert(cookie, &*flow, 0).is_err() {
            count(|loss| &mut loss.map_full);
        }
    }

    if known && payload_len == 0 && tcp.flags & (SYN | RST) == 0 && is_done(flow) {
        return false;
    }

    let len = size_of::<SegmentEvent>() as u64 + u64::from(payload_len & 0xfff);
    if is_over_share(flow.client, cookie, len) != 0 {
        return false;
    }
    event.cookie = cookie;
    event.process = flow.process;
    event.cgroup_id = flow.cgroup_id;
    event.tid = flow.tid;
    event.netns = flow.netns;
    event.ack = tcp.ack;
    // SAFETY: the context is valid for the program's run.
    event.ifindex = unsafe { (*skb).ifindex };
    event.direction = Direction::Request as u8;
    event.tcp_flags = tcp.flags;
    event.ttl = ip.ttl;
    event.reserved = [0; 3];
    event.seq = tcp.seq;
    event.payload_len = payload_len;
    event.head_len = 0;
    event.flags = 0;
    if payload_len == 0 || !fresh {
        if !fresh {
            event.flags = SegmentFlags::RETRANSMIT;
        }
        event.header = header(EventKind::Segment, size_of::<SegmentEvent>());
        return emit_bytes((&raw const *event).cast(), size_of::<SegmentEvent>() as u64);
    }

    each_head(skb, payload, payload_len, head, |done, left, len, cut| {
        event.seq = tcp.seq.wrapping_add(done);
        event.payload_len = left;
        event.head_len = len as u16;
        event.flags = if cut { SegmentFlags::CUT } else { 0 };
        let size = size_of::<SegmentEvent>() as u64 + u64::from(len);
        event.header = header(EventKind::Segment, size as usize);
        emit_bytes((&raw const *event).cast(), size)
    })
}

#[inline(never)]
fn try_ingress(skb: *mut __sk_buff) -> bool {
    with_slot(&SEGMENT_SCRATCH, |scratch| ingress(skb, scratch)).unwrap_or(false)
}

#[inline(always)]
fn ingress(skb: *mut __sk_buff, scratch: &mut SegmentScratch) -> bool {
    let SegmentScratch { event, head, ip, .. } = scratch;
    let Some((tcp, payload, payload_len)) = headers(skb, ip) else {
        return false;
    };
    if payload_len == 0 && tcp.flags & (SYN | FIN | RST) == 0 {
        return false;
    }
    // SAFETY: the context is valid. At this hook it contains the receiving socket.
    let cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    event.tuple = tuple(ip, tcp.source, tcp.destination, false);
    if !is_endpoint(&event.tuple.remote) && !ask_for_endpoint(cookie, &mut event.tuple) {
        return false;
    }
    let flow = FLOWS.get_ptr_mut(cookie);
    // On a host that has the endpoint's address itself, the server's sockets receive requests from that address.
    if flow.is_none() {
        if tcp.flags & (SYN | ACK) == SYN {
            return false;
        }
        if tcp.flags & SYN == 0
            && is_endpoint(&event.tuple.local)
            && !is_clients_port(event.tuple.local_port, event.tuple.remote_port)
        {
            return false;
        }
    }
    let mut head_len = 0;
    if payload_len > 0 {
        head_len = status_line(skb, payload, payload_len, head.as_mut_ptr());
    }

    event.process = ProcessKey::default();
    event.cgroup_id = 0;
    event.tid = 0;
    event.netns = 0;
    if let Some(flow) = flow {
        // SAFETY: fields are only read. If another CPU writes, this reads the old or the new value.
        unsafe {
            event.process = (*flow).process;
            event.cgroup_id = (*flow).cgroup_id;
            event.tid = (*flow).tid;
            event.netns = (*flow).netns;
            if payload_len > 0 {
                // Further segments of a body are skipped. The first segment of a response is reported even if it isn't HTTP.
                if head_len == 0 && (*flow).awaiting == 0 && tcp.flags & (SYN | FIN | RST) == 0 {
                    return false;
                }
            } else if tcp.flags & (SYN | RST) == 0 && is_done(&*flow) {
                return false;
            }
        }
    } else if payload_len > 0 && head_len == 0 && tcp.flags & (SYN | FIN | RST) == 0 {
        return false;
    }

    if is_over_share(0, cookie, size_of::<SegmentEvent>() as u64) != 0 {
        return false;
    }
    event.cookie = cookie;
    event.seq = tcp.seq;
    event.ack = tcp.ack;
    event.payload_len = payload_len;
    // SAFETY: the context is valid.
    event.ifindex = unsafe { (*skb).ifindex };
    event.direction = Direction::Response as u8;
    event.tcp_flags = tcp.flags;
    event.ttl = ip.ttl;
    event.flags = 0;
    event.reserved = [0; 3];
    event.head_len = head_len as u16;
    let size = size_of::<SegmentEvent>() as u64 + u64::from(head_len & (2 * STATUS_LINE_BYTES as u32 - 1));
    event.header = header(EventKind::Segment, size as usize);
    let told = emit_bytes((&raw const *event).cast(), size);
    if told
        && payload_len > 0
        && let Some(flow) = flow
    {
        // SAFETY: one byte of a live value. A lost event leaves it unchanged, so that the end of the connection is reported with the number
        // of received bytes.
        unsafe { (*flow).awaiting = 0 };
    }
    told
}

/// Copies the first bytes of the payload if they are a status line, and returns their number.
#[inline(always)]
fn status_line(skb: *mut __sk_buff, payload: u32, payload_len: u32, to: *mut u8) -> u32 {
    let wanted = if payload_len > STATUS_LINE_BYTES as u32 {
        STATUS_LINE_BYTES as u32
    } else {
        payload_len
    };
    let len = (wanted.wrapping_sub(1) & (STATUS_LINE_BYTES as u32 - 1)) + 1;
    if !packet::load_payload(skb, payload, to, len) {
        return 0;
    }
    // SAFETY: the buffer is larger than 7 bytes. Bytes that were not written now belong to an older status line; the check of `len`
    // excludes them.
    let start = unsafe { core::slice::from_raw_parts(to, 7) };
    if len >= 7
        && start[0] == b'H'
        && start[1] == b'T'
        && start[2] == b'T'
        && start[3] == b'P'
        && start[4] == b'/'
        && start[5] == b'1'
        && start[6] == b'.'
    {
        len
    } else {
        0
    }
}
