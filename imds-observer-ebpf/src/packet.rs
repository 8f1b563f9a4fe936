//! The headers of a packet, each read only once.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use imds_observer_common::{Tuple, mapped_v4};
use network_types::eth::EtherType;
use network_types::ip::{IpProto, Ipv4Hdr, Ipv6Hdr};
use network_types::tcp::TcpHdr;

/// Values as in `__sk_buff::protocol`, in network byte order.
pub(crate) const ETH_P_IP: u16 = EtherType::Ipv4 as u16;
pub(crate) const ETH_P_IPV6: u16 = EtherType::Ipv6 as u16;
pub(crate) const ETH_P_8021Q: u16 = EtherType::Ieee8021q as u16;
pub(crate) const ETH_P_8021AD: u16 = EtherType::Ieee8021ad as u16;
pub(crate) const IPPROTO_GRE: u8 = IpProto::Gre as u8;
pub(crate) const IPPROTO_ICMP: u8 = IpProto::Icmp as u8;
pub(crate) const IPPROTO_TCP: u8 = IpProto::Tcp as u8;
pub(crate) const IPPROTO_UDP: u8 = IpProto::Udp as u8;
pub(crate) const IPPROTO_ICMPV6: u8 = IpProto::Ipv6Icmp as u8;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// IP header of either family. It is aligned, so that addresses are copied by words.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct Ip {
    pub(crate) source: [u8; 16],
    pub(crate) destination: [u8; 16],
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    /// Whether this is a fragment other than the first, which has no transport header.
    pub(crate) later_fragment: bool,
    /// Offset of the data after the IP headers.
    pub(crate) next: u32,
    /// Offset of the packet's end according to the IP header; 0: longer than 64 KiB.
    pub(crate) end: u32,
}

/// TCP header.
#[derive(Clone, Copy)]
pub(crate) struct Tcp {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) header_len: u32,
}

/// A header with the alignment of a word. The header itself has an alignment of 1, and would be copied byte by byte.
#[repr(align(4))]
#[derive(Clone, Copy)]
struct Words<T>(T);

/// Reads `T` at `offset` from the start of the data, in whichever page of the packet it is. `T` must not contain padding.
#[inline(always)]
pub(crate) fn load<T: Copy>(skb: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: the helper fills the whole value or fails.
    let result = unsafe { bpf_skb_load_bytes(skb.cast(), offset, value.as_mut_ptr().cast(), size_of::<T>() as u32) };
    // SAFETY: the helper has filled the value.
    (result == 0).then(|| unsafe { value.assume_init() })
}

#[inline(always)]
pub(crate) fn load_payload(skb: *mut __sk_buff, offset: u32, to: *mut u8, len: u32) -> bool {
    // SAFETY: the caller provides a buffer of `len` bytes, which the verifier checks.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, to.cast(), len) == 0 }
}

impl From<&TcpHdr> for Tcp {
    #[inline(always)]
    fn from(header: &TcpHdr) -> Self {
        // The crate's accessors would become functions that return pointers to the stack, which the verifier rejects.
        // SAFETY: the field is two bytes, any bits of which are valid.
        let [offset, flags]: [u8; 2] = unsafe { core::mem::transmute(header._bitfield_1) };
        Self {
            source: u16::from_be_bytes(header.source),
            destination: u16::from_be_bytes(header.dest),
            seq: u32::from_be_bytes(header.seq),
            ack: u32::from_be_bytes(header.ack_seq),
            flags: flags & 0x3f,
            header_len: u32::from(offset >> 4) * 4,
        }
    }
}

/// Reads the IP header at `at` (the packet's own, or one that an ICMP error quotes) into a map's memory: two headers and their raw bytes
/// would not fit on the stack.
#[inline(always)]
pub(crate) fn ip(skb: *mut __sk_buff, v6: bool, at: u32, ip: &mut Ip) -> Option<()> {
    if v6 {
        let Words(header): Words<Ipv6Hdr> = load(skb, at)?;
        if header.vcf[0] >> 4 != 6 {
            return None;
        }
        ip.source = header.src_addr;
        ip.destination = header.dst_addr;
        ip.protocol = header.next_hdr;
        ip.ttl = header.hop_limit;
        ip.later_fragment = false;
        ip.next = at + Ipv6Hdr::LEN as u32;
        ip.end = match u16::from_be_bytes(header.payload_len) {
            0 => 0,
            payload => ip.next + u32::from(payload),
        };
        return skip_extensions(skb, ip);
    }
    let Words(header): Words<Ipv4Hdr> = load(skb, at)?;
    if header.vihl >> 4 != 4 {
        return None;
    }
    ip.source = mapped_v4(header.src_addr);
    ip.destination = mapped_v4(header.dst_addr);
    ip.protocol = header.proto;
    ip.ttl = header.ttl;
    ip.later_fragment = (u16::from_be_bytes(header.frags) & 0x1fff) != 0;
    ip.next = at + u32::from(header.vihl & 15) * 4;
    ip.end = match u16::from_be_bytes(header.tot_len) {
        0 => 0,
        total => at + u32::from(total),
    };
    Some(())
}

/// Limit on skipped extension headers. A TCP socket sends up to four: hop-by-hop options, two with destination options, and routing.
const MAX_EXTENSIONS: u32 = 4;

/// Skips the extension headers of IPv6. If there are more than the limit, the protocol is still that of an extension header.
#[inline(always)]
fn skip_extensions(skb: *mut __sk_buff, ip: &mut Ip) -> Option<()> {
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(ip.protocol) || ip.later_fragment {
            break;
        }
        let [next, length, offset @ ..]: [u8; 4] = load(skb, ip.next)?;
        let length = u32::from(length);
        ip.next += match ip.protocol {
            FRAGMENT => {
                ip.later_fragment = u16::from_be_bytes(offset) & !7 != 0;
                8
            }
            AUTHENTICATION => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        ip.protocol = next;
    }
    Some(())
}

/// Whether a packet to or from an endpoint may be TCP that can't be read: after too many extension headers, or in a later fragment.
#[inline(always)]
pub(crate) fn may_be_unread_tcp(ip: &Ip) -> bool {
    is_extension(ip.protocol) || ip.later_fragment && ip.protocol == IPPROTO_TCP
}

/// Offset and length of the TCP payload.
#[inline(always)]
pub(crate) fn payload(skb: *mut __sk_buff, ip: &Ip, tcp: &Tcp) -> (u32, u32) {
    // SAFETY: the context is valid.
    let end = if ip.end == 0 { unsafe { (*skb).len } } else { ip.end };
    let start = ip.next + tcp.header_len;
    (start, end.saturating_sub(start))
}

#[inline(always)]
pub(crate) fn tcp(skb: *mut __sk_buff, at: u32) -> Option<Tcp> {
    load::<Words<TcpHdr>>(skb, at).map(|Words(header)| Tcp::from(&header))
}

/// Ports and sequence number, the only parts of a TCP header that an ICMP error must quote.
#[inline(always)]
pub(crate) fn quoted_tcp(skb: *mut __sk_buff, at: u32) -> Option<(u16, u16, u32)> {
    let [a, b, c, d, seq @ ..]: [u8; 8] = load(skb, at)?;
    Some((
        u16::from_be_bytes([a, b]),
        u16::from_be_bytes([c, d]),
        u32::from_be_bytes(seq),
    ))
}

/// The flow of a packet that is sent to an endpoint (`request`) or comes from one.
#[inline(always)]
pub(crate) fn tuple(ip: &Ip, source_port: u16, destination_port: u16, request: bool) -> Tuple {
    if request {
        Tuple {
            local: ip.source,
            remote: ip.destination,
            local_port: source_port,
            remote_port: destination_port,
        }
    } else {
        Tuple {
            local: ip.destination,
            remote: ip.source,
            local_port: destination_port,
            remote_port: source_port,
        }
    }
}

/// Key of the map that joins a segment before NAT with the same segment after NAT. NAT changes neither the sequence nor the acknowledgment
/// number. A SYN acknowledges nothing, so its key contains the remote port instead.
#[inline(always)]
pub(crate) fn sequence_key(tcp: &Tcp) -> u64 {
    let other = if tcp.flags & SYN != 0 {
        u32::from(tcp.destination)
    } else {
        tcp.ack
    };
    u64::from(tcp.seq) | (u64::from(other) << 32)
}

const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;

/// Whether this is an IPv6 extension header that TCP may follow: hop-by-hop options, routing, fragment, authentication, destination
/// options.
#[inline(always)]
pub(crate) fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | FRAGMENT | AUTHENTICATION | 60)
}

/// Whether `own` is the client's port. If both ends have an endpoint's address, the server is the one with the lower (well-known) port.
#[inline(always)]
pub(crate) fn is_clients_port(own: u16, other: u16) -> bool {
    own > other
}
