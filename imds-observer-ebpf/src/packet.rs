//! The headers of a packet, read once.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use imds_observer_common::{Tuple, mapped_v4};

pub(crate) const ETH_P_IP: u16 = 0x0800;
pub(crate) const ETH_P_IPV6: u16 = 0x86dd;
pub(crate) const IPPROTO_ICMP: u8 = 1;
pub(crate) const IPPROTO_TCP: u8 = 6;
pub(crate) const IPPROTO_UDP: u8 = 17;
pub(crate) const IPPROTO_ICMPV6: u8 = 58;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;

/// IP header, of either family.
#[derive(Clone, Copy)]
pub(crate) struct Ip {
    pub(crate) source: [u8; 16],
    pub(crate) destination: [u8; 16],
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    /// A fragment other than the first: no transport header.
    pub(crate) later_fragment: bool,
    /// Offset of what follows.
    pub(crate) next: u32,
    /// Offset of the packet's end, as the IP header says; 0: longer than 64 KiB.
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

/// Reads `T` at `offset` from the start of the data, wherever in the packet's pages it lies. All bytes of `T` are data.
#[inline(always)]
pub(crate) fn load<T: Copy>(skb: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: the helper fills the value whole or fails.
    let result = unsafe { bpf_skb_load_bytes(skb.cast(), offset, value.as_mut_ptr().cast(), size_of::<T>() as u32) };
    // SAFETY: filled.
    (result == 0).then(|| unsafe { value.assume_init() })
}

#[inline(always)]
pub(crate) fn load_payload(skb: *mut __sk_buff, offset: u32, to: *mut u8, len: u32) -> bool {
    // SAFETY: the caller gives `len` bytes of room; the verifier checks it.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, to.cast(), len) == 0 }
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RawTcp {
    source: [u8; 2],
    destination: [u8; 2],
    seq: [u8; 4],
    ack: [u8; 4],
    offset: u8,
    flags: u8,
    window: [u8; 2],
    checksum: [u8; 2],
    urgent: [u8; 2],
}

impl RawTcp {
    #[inline(always)]
    pub(crate) fn decode(&self) -> Tcp {
        Tcp {
            source: u16::from_be_bytes(self.source),
            destination: u16::from_be_bytes(self.destination),
            seq: u32::from_be_bytes(self.seq),
            ack: u32::from_be_bytes(self.ack),
            flags: self.flags & 0x3f,
            header_len: u32::from(self.offset >> 4) * 4,
        }
    }
}

/// IP header at `at` (the packet's own, or one that an ICMP error quotes), into a map's memory: two of these and the
/// raw bytes beside them would not fit onto the stack.
#[inline(always)]
pub(crate) fn ip(skb: *mut __sk_buff, v6: bool, at: u32, ip: &mut Ip) -> Option<()> {
    if v6 {
        // Version, payload length, next header, hop limit.
        let first: [u8; 8] = load(skb, at)?;
        if first[0] >> 4 != 6 {
            return None;
        }
        ip.source = load(skb, at + 8)?;
        ip.destination = load(skb, at + 24)?;
        ip.protocol = first[6];
        ip.ttl = first[7];
        ip.later_fragment = false;
        ip.next = at + 40;
        ip.end = match u16::from_be_bytes([first[4], first[5]]) {
            0 => 0,
            payload => at + 40 + u32::from(payload),
        };
        return Some(());
    }
    // Version and length, TOS, total, id, fragment, TTL, protocol.
    let first: [u8; 10] = load(skb, at)?;
    if first[0] >> 4 != 4 {
        return None;
    }
    ip.source = mapped_v4(load(skb, at + 12)?);
    ip.destination = mapped_v4(load(skb, at + 16)?);
    ip.protocol = first[9];
    ip.ttl = first[8];
    ip.later_fragment = (u16::from_be_bytes([first[6], first[7]]) & 0x1fff) != 0;
    ip.next = at + u32::from(first[0] & 15) * 4;
    ip.end = match u16::from_be_bytes([first[2], first[3]]) {
        0 => 0,
        total => at + u32::from(total),
    };
    Some(())
}

/// Offset of the TCP payload, and its length.
#[inline(always)]
pub(crate) fn payload(skb: *mut __sk_buff, ip: &Ip, tcp: &Tcp) -> (u32, u32) {
    // SAFETY: the context is valid.
    let end = if ip.end == 0 { unsafe { (*skb).len } } else { ip.end };
    let start = ip.next + tcp.header_len;
    (start, end.saturating_sub(start))
}

#[inline(always)]
pub(crate) fn tcp(skb: *mut __sk_buff, at: u32) -> Option<Tcp> {
    load::<RawTcp>(skb, at).map(|raw| raw.decode())
}

/// Ports and sequence number: all of a TCP header that an ICMP error must quote.
#[inline(always)]
pub(crate) fn quoted_tcp(skb: *mut __sk_buff, at: u32) -> Option<(u16, u16, u32)> {
    let [a, b, c, d, seq @ ..]: [u8; 8] = load(skb, at)?;
    Some((
        u16::from_be_bytes([a, b]),
        u16::from_be_bytes([c, d]),
        u32::from_be_bytes(seq),
    ))
}

/// The flow of a packet that goes to an endpoint (`request`) or comes from one.
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

/// Key of the map that joins a connection across NAT: its first sequence number, which NAT leaves alone.
#[inline(always)]
pub(crate) fn sequence_key(seq: u32, remote_port: u16) -> u64 {
    u64::from(seq) | (u64::from(remote_port) << 32)
}
