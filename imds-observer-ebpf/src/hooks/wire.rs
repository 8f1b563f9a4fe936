//! Packets at an uplink: their actual TTLs and arrival, and the packets that count toward the link-local quota.
//!
//! Both programs return `TC_ACT_UNSPEC`, which is `TCX_NEXT`: the next program decides.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::{__sk_buff, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use imds_observer_common::{
    Direction, EventKind, HEAD_BYTES, InterfaceCounters, STATUS_LINE_BYTES, SegmentFlags, TRAFFIC_CLASSES,
    TrafficClass, Tuple, WireEvent,
};

use crate::config::{is_endpoint, is_resolver, near_v4, near_v6};
use crate::emit::{count, each_head, emit, emit_bytes, header, is_over_share, returned};
use crate::log::debug;
use crate::maps::{INTERFACES, SEQUENCES, TUPLES, WIRE_SCRATCH, WireScratch, with_slot};
use crate::packet::{
    self, ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, FIN, IPPROTO_GRE, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP,
    IPPROTO_UDP, Ip, RST, SYN, Tcp, load, may_be_unread_tcp, sequence_key, tuple,
};

const ETHERNET_HEADER: usize = 14;
/// ICMP types destination unreachable and time exceeded, and the same for ICMPv6.
const ICMP_ERRORS: [u8; 2] = [3, 11];
const ICMPV6_ERRORS: [u8; 2] = [1, 3];

#[classifier]
pub(crate) fn wire_egress(ctx: TcContext) -> i32 {
    if concerns_us::<true>(&ctx) {
        debug!(&ctx, "packet out: {} bytes", ctx.len());
        returned(try_wire(ctx.skb.skb, 1));
    }
    TC_ACT_UNSPEC
}

#[classifier]
pub(crate) fn wire_ingress(ctx: TcContext) -> i32 {
    if concerns_us::<false>(&ctx) {
        debug!(&ctx, "packet in: {} bytes", ctx.len());
        returned(try_wire(ctx.skb.skb, 0));
    }
    TC_ACT_UNSPEC
}

/// Whether a packet may be traffic of a link-local service, or an incoming ICMP error. (ICMP errors that this host sends to the service
/// have its address.) Uses direct packet access if the link layer is plain Ethernet.
#[inline(always)]
fn concerns_us<const EGRESS: bool>(ctx: &TcContext) -> bool {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid; the verifier checks each access against data_end.
    unsafe {
        let protocol = (*skb).protocol as u16;
        let data = (*skb).data as usize;
        let end = (*skb).data_end as usize;
        if protocol == ETH_P_IP {
            if data + ETHERNET_HEADER + 20 > end || *((data + 12) as *const u16) != protocol {
                // A link layer without an Ethernet header, a VLAN tag in the data, or a header that isn't in the linear part.
                return true;
            }
            let ip = data + ETHERNET_HEADER;
            let address = *((ip + if EGRESS { 16 } else { 12 }) as *const u32);
            return near_v4(address) || is_resolver(address) || (!EGRESS && *((ip + 9) as *const u8) == IPPROTO_ICMP);
        }
        if protocol == ETH_P_IPV6 {
            if data + ETHERNET_HEADER + 40 > end || *((data + 12) as *const u16) != protocol {
                return true;
            }
            let ip = data + ETHERNET_HEADER;
            let address = (ip + if EGRESS { 24 } else { 8 }) as *const u32;
            return near_v6(*address) || (!EGRESS && *((ip + 6) as *const u8) == IPPROTO_ICMPV6);
        }
    }
    false
}

#[inline(never)]
fn try_wire(skb: *mut __sk_buff, egress: u32) -> bool {
    with_slot(&WIRE_SCRATCH, |scratch| wire(skb, egress != 0, scratch)).unwrap_or(false)
}

#[inline(always)]
fn wire(skb: *mut __sk_buff, egress: bool, scratch: &mut WireScratch) -> bool {
    // SAFETY: the context is valid.
    let v6 = unsafe { (*skb).protocol } as u16 == ETH_P_IPV6;
    let WireScratch {
        event,
        head,
        ip,
        quoted,
        slot,
        ..
    } = scratch;
    if packet::ip(skb, v6, network_header(skb), ip).is_none() {
        return false;
    }
    let far = if egress { ip.destination } else { ip.source };
    let far_is_endpoint = is_endpoint(&far);
    let words = crate::config::words(&far);
    let near = if v6 { near_v6(words[0]) } else { near_v4(words[3]) };
    let far = if far_is_endpoint {
        Far::Endpoint
    } else if near {
        Far::LinkLocal
    } else if !v6 && is_resolver(words[3]) {
        Far::Resolver
    } else {
        Far::Beyond
    };
    if far != Far::Beyond {
        account(skb, ip, slot, far, egress);
    }
    if far_is_endpoint && may_be_unread_tcp(ip) {
        count(|loss| &mut loss.unparsed);
    }
    if ip.later_fragment {
        return false;
    }
    if ip.protocol == IPPROTO_TCP {
        if far_is_endpoint {
            return segment(skb, event, head, ip, egress);
        }
    } else if ip.protocol == IPPROTO_ICMP || ip.protocol == IPPROTO_ICMPV6 {
        return icmp_error(skb, event, ip.next, quoted, v6, far_is_endpoint, egress);
    }
    false
}

/// Offset of the IP header. The data of a TC program begins with the link layer's header, if there is one.
#[inline(always)]
fn network_header(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the context is valid.
    let protocol = unsafe { (*skb).protocol } as u16;
    match load::<u16>(skb, 12) {
        Some(kind) if kind == protocol => ETHERNET_HEADER as u32,
        Some(kind) if kind == ETH_P_8021Q || kind == ETH_P_8021AD => ETHERNET_HEADER as u32 + 4,
        // A device without a link layer: tunnels, and some virtual devices.
        _ => behind_gre(skb, protocol).unwrap_or(0),
    }
}

/// Before 5.15, packets that a GRE device receives still begin with the outer IPv4 header and the GRE header.
#[inline(always)]
fn behind_gre(skb: *mut __sk_buff, protocol: u16) -> Option<u32> {
    let outer = load::<u8>(skb, 0)?;
    if outer >> 4 != 4 || load::<u8>(skb, 9)? != IPPROTO_GRE {
        return None;
    }
    let gre = u32::from(outer & 0xf) * 4;
    if load::<u16>(skb, gre + 2)? != protocol {
        return None;
    }
    // Checksum, key and sequence number are optional.
    let flags = load::<u8>(skb, gre)?;
    let optional = u32::from(flags >> 7) + u32::from(flags >> 5 & 1) + u32::from(flags >> 4 & 1);
    Some(gre + 4 + optional * 4)
}

/// Class of the remote address, for the quota.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Far {
    Endpoint,
    LinkLocal,
    /// The VPC resolver's address in the VPC. Only its DNS traffic counts.
    Resolver,
    Beyond,
}

/// Counts the packet toward the quota.
#[inline(always)]
fn account(skb: *mut __sk_buff, ip: &Ip, slot: &mut u32, far: Far, egress: bool) {
    let class = if far == Far::Endpoint {
        TrafficClass::Imds
    } else if ip.later_fragment {
        TrafficClass::Other
    } else if ip.protocol == IPPROTO_UDP || ip.protocol == IPPROTO_TCP {
        let [a, b, c, d]: [u8; 4] = load(skb, ip.next).unwrap_or([0; 4]);
        match u16::from_be_bytes(if egress { [c, d] } else { [a, b] }) {
            53 => TrafficClass::Dns,
            123 => TrafficClass::Ntp,
            _ => TrafficClass::Other,
        }
    } else {
        TrafficClass::Other
    };
    if far == Far::Resolver && !matches!(class, TrafficClass::Dns) {
        return;
    }
    // SAFETY: the context is valid.
    let ifindex = unsafe { (*skb).ifindex };
    let mut counters = INTERFACES.get_ptr_mut(ifindex);
    if counters.is_none() {
        if INTERFACES.insert(ifindex, InterfaceCounters::default(), 0).is_err() {
            count(|loss| &mut loss.map_full);
        }
        counters = INTERFACES.get_ptr_mut(ifindex);
    }
    let Some(counters) = counters else { return };
    let side = if egress { 0 } else { TRAFFIC_CLASSES };
    // The index goes through memory, so that the verifier knows only its bound, on every path. Without CAP_PERFMON, the verifier rejects
    // pointer arithmetic with a number that is a known constant on one path and differs on another.
    // SAFETY: a valid reference.
    let index = unsafe {
        write_volatile(slot, (side + class as usize) as u32);
        read_volatile(slot) as usize & (2 * TRAFFIC_CLASSES - 1)
    };
    // SAFETY: a per-CPU slot that consists of this many counters, those of egress first.
    unsafe { *counters.cast::<u64>().add(index) += 1 };
}

const _: () = assert!(size_of::<InterfaceCounters>() == 2 * TRAFFIC_CLASSES * size_of::<u64>());

/// Cookie of the socket of a packet at the uplink; 0: no socket of this host is known for it. The tuple is the one after NAT.
///
/// A segment with SYN or payload is found by its numbers. They are stronger evidence than the addresses, because the port at the uplink may
/// have belonged to another connection. All other packets are found by the tuple that is stored for such a segment.
#[inline(always)]
fn join(tuple: &Tuple, tcp: &Tcp, egress: bool, payload_len: u32) -> u64 {
    let first = tcp.flags & SYN != 0;
    if egress && (first || payload_len > 0) {
        // SAFETY: copied at once.
        if let Some(cookie) = unsafe { SEQUENCES.get(sequence_key(tcp)) } {
            let cookie = *cookie;
            // Usually the tuple is already stored, and a lookup costs less than an insertion.
            // SAFETY: compared at once.
            let noted = unsafe { TUPLES.get(tuple) }.is_some_and(|noted| *noted == cookie);
            if !noted && TUPLES.insert(*tuple, cookie, 0).is_err() {
                count(|loss| &mut loss.map_full);
            }
            return cookie;
        }
        if first {
            // A connection without a socket on this host reuses the port of an earlier connection.
            let _ = TUPLES.remove(tuple);
            return 0;
        }
    }
    // SAFETY: copied at once.
    unsafe { TUPLES.get(tuple) }.copied().unwrap_or(0)
}

#[inline(always)]
fn segment(skb: *mut __sk_buff, event: &mut WireEvent, head: &mut [u8; HEAD_BYTES], ip: &Ip, egress: bool) -> bool {
    let Some(tcp) = packet::tcp(skb, ip.next) else {
        count(|loss| &mut loss.unparsed);
        return false;
    };
    let (payload, payload_len) = packet::payload(skb, ip, &tcp);
    if payload_len == 0 && tcp.flags & (SYN | RST | FIN) == 0 {
        return false;
    }
    event.status_len = 0;
    if !egress && payload_len > 0 {
        if let Some(line) = load::<[u8; STATUS_LINE_BYTES]>(skb, payload)
            && line[0] == b'H'
            && line[1] == b'T'
            && line[2] == b'T'
            && line[3] == b'P'
            && line[4] == b'/'
            && line[5] == b'1'
            && line[6] == b'.'
        {
            event.status_line = line;
            event.status_len = STATUS_LINE_BYTES as u8;
        } else if tcp.flags & RST == 0 {
            // Further segments of a body.
            return false;
        }
    }
    event.tuple = tuple(ip, tcp.source, tcp.destination, egress);
    event.cookie = join(&event.tuple, &tcp, egress, payload_len);
    // The hooks of a known socket report the SYN-ACK and the close. An outgoing RST is not reported, because it may not be the end: the
    // kernel also sends it as the answer to a server's stale acknowledgment while the socket continues to connect.
    let reported = if egress { SYN } else { RST };
    if payload_len == 0 && event.cookie != 0 && tcp.flags & reported == 0 {
        return false;
    }
    event.seq = tcp.seq;
    event.ack = tcp.ack;
    event.payload_len = payload_len;
    event.tcp_flags = tcp.flags;
    event.ttl = ip.ttl;
    event.icmp_protocol = 0;
    event.icmp_type = 0;
    event.icmp_code = 0;
    describe(event, skb, egress);
    // For a client without a socket on this host, only the address is known.
    let client = match event.cookie {
        0 => u64::from(crate::config::words(&event.tuple.local)[3]) | 1 << 63,
        _ => 0,
    };
    if is_over_share(client, event.cookie, u64::from(payload_len) & 0x3ff) != 0 {
        return false;
    }
    if !egress || payload_len == 0 || event.cookie != 0 {
        return emit(event);
    }
    // The socket isn't on this host, so no other hook can read the request head.
    each_head(skb, payload, payload_len, head, |done, left, len, cut| {
        event.seq = tcp.seq.wrapping_add(done);
        event.payload_len = left;
        event.head_len = len as u16;
        event.flags = if cut { SegmentFlags::CUT } else { 0 };
        let size = size_of::<WireEvent>() as u64 + u64::from(len);
        event.header = header(EventKind::Wire, size as usize);
        emit_bytes((&raw const *event).cast(), size)
    })
}

/// Sets the fields that all wire events have in common.
#[inline(always)]
fn describe(event: &mut WireEvent, skb: *mut __sk_buff, egress: bool) {
    // SAFETY: the context is valid.
    event.ifindex = unsafe { (*skb).ifindex };
    event.direction = if egress {
        Direction::Request
    } else {
        Direction::Response
    } as u8;
    event.flags = 0;
    event.head_len = 0;
    event.reserved = 0;
    event.header = header(EventKind::Wire, size_of::<WireEvent>());
}

/// Reports an ICMP error that quotes a packet between a client and an endpoint, in either direction.
#[inline(always)]
fn icmp_error(
    skb: *mut __sk_buff,
    event: &mut WireEvent,
    at: u32,
    quoted: &mut Ip,
    v6: bool,
    to_endpoint: bool,
    egress: bool,
) -> bool {
    let Some([kind, code]) = load::<[u8; 2]>(skb, at) else {
        return false;
    };
    let errors = if v6 { ICMPV6_ERRORS } else { ICMP_ERRORS };
    if kind != errors[0] && kind != errors[1] {
        return false;
    }
    if packet::ip(skb, v6, at + 8, quoted).is_none() || quoted.protocol != IPPROTO_TCP {
        return false;
    }
    // An ICMP error that this host sends to IMDS quotes a response. An incoming one quotes a request.
    let quotes_request = is_endpoint(&quoted.destination);
    if !quotes_request && !(to_endpoint && is_endpoint(&quoted.source)) {
        return false;
    }
    let Some((source, destination, seq)) = packet::quoted_tcp(skb, quoted.next) else {
        return false;
    };
    event.tuple = tuple(quoted, source, destination, quotes_request);
    // SAFETY: copied at once.
    event.cookie = unsafe { TUPLES.get(event.tuple) }.copied().unwrap_or(0);
    event.seq = seq;
    event.ack = 0;
    event.payload_len = 0;
    event.tcp_flags = 0;
    event.ttl = quoted.ttl;
    event.icmp_protocol = if v6 { IPPROTO_ICMPV6 } else { IPPROTO_ICMP };
    event.icmp_type = kind;
    event.icmp_code = code;
    event.status_len = 0;
    describe(event, skb, egress);
    emit(event)
}
