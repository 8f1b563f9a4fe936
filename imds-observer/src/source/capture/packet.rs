//! From an IP packet to what the flow table wants to know of it.
//!
//! Bodies stop here: of a server's data only response heads are kept, found by their status line and `Content-Length`.

use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;

use arrayvec::ArrayVec;
use bytes::Bytes;
use etherparse::{IpNumber, LaxIpPayloadSlice, LaxIpSlice, TcpSlice, UdpSlice};
use imds_observer_common::TrafficClass;
use lru::LruCache;
use rustc_hash::FxBuildHasher;

use super::quota::Counted;
use crate::event::{Direction, Event, FlowId, IcmpError, Packet, Vantage};
use crate::record::{LossCounts, Time};
use crate::source::resolver::may_be_resolver;

/// Longest response head that is taken over from one segment, and longest run of a request; the flow's own bounds are below.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Response heads in one segment.
const MAX_HEADS: usize = 16;

/// A captured IP packet.
pub(super) struct Frame<'a> {
    pub(super) time: Time,
    pub(super) ip: &'a [u8],
    /// The packet had more bytes than were captured.
    pub(super) cut: bool,
    pub(super) ifindex: u32,
}

/// A packet that concerns us.
pub(super) struct Found {
    /// How it counts against the quota of the interface; `None`: it does not.
    pub(super) counted: Option<Counted>,
}

pub(super) struct Reader {
    endpoints: Vec<IpAddr>,
    unfinished: LruCache<(SocketAddr, SocketAddr), (), FxBuildHasher>,
}

/// The two ends and what lies between, before the transport header is read.
struct Ip<'a> {
    source: IpAddr,
    destination: IpAddr,
    ttl: u8,
    /// Bytes after the IP header and its extensions according to the header, captured or not.
    length: usize,
    payload: LaxIpPayloadSlice<'a>,
    /// All headers before the payload were read.
    whole: bool,
}

/// Payload of an IP packet, as far as it is read.
enum Transport<'a> {
    Tcp(TcpSlice<'a>),
    Udp(UdpSlice<'a>),
    Icmp {
        error: IcmpError,
        /// Behind the header: of an error, the packet that it is about.
        quote: &'a [u8],
    },
    Other,
    /// A fragment of TCP, or its header is cut off or broken.
    Unreadable,
}

impl Reader {
    pub(super) fn new(endpoints: &[IpAddr], max_unfinished: usize) -> Self {
        let max_unfinished = NonZeroUsize::new(max_unfinished).unwrap_or(NonZeroUsize::MIN);
        Self {
            endpoints: endpoints.to_vec(),
            unfinished: LruCache::with_hasher(max_unfinished, FxBuildHasher),
        }
    }

    /// `None`: the packet is none of our business. One that is and can't be read is counted. Appends one to `out`, or several where a
    /// segment holds several response heads; none for other services' packets.
    pub(super) fn read(&mut self, frame: &Frame<'_>, loss: &mut LossCounts, out: &mut Vec<Event>) -> Option<Found> {
        let Some((source, destination, may_be_icmp)) = ends(frame.ip) else {
            // Without its addresses any packet may be one of ours.
            loss.unparsed += u64::from(frame.cut);
            return None;
        };
        let egress = match self.direction(source, destination) {
            Some(egress) => Some(egress),
            None if may_be_icmp => None,
            None if may_be_resolver(destination) || may_be_resolver(source) => {
                return to_resolver(frame.ip, source, destination);
            }
            None => return None,
        };
        let service = if egress == Some(true) { destination } else { source };
        let endpoint = egress.is_some() && self.endpoints.contains(&service);
        let counted = |class| {
            egress.filter(|_| !is_on_host(service)).map(|egress| Counted {
                egress,
                class,
                resolver: None,
            })
        };
        let mut found = Found {
            counted: counted(if endpoint {
                TrafficClass::Imds
            } else {
                TrafficClass::Other
            }),
        };
        let before = out.len();
        let Some(ip) = Ip::read(frame.ip) else {
            loss.unparsed += u64::from(endpoint);
            return egress.map(|_| found);
        };
        match ip.transport() {
            Transport::Icmp { error, quote } => {
                // Destination unreachable, time exceeded.
                let kinds = if error.v6 { [1, 3] } else { [3, 11] };
                let quoted = kinds
                    .contains(&error.kind)
                    .then(|| self.quoted(frame, &ip, error, quote))
                    .flatten();
                out.extend(quoted.map(Event::Packet));
            }
            Transport::Tcp(tcp) if endpoint => self.segment(frame, &ip, &tcp, egress == Some(true), out),
            Transport::Tcp(tcp) => found.counted = counted(class(egress, tcp.source_port(), tcp.destination_port())),
            Transport::Udp(udp) if !endpoint => {
                found.counted = counted(class(egress, udp.source_port(), udp.destination_port()));
            }
            Transport::Udp(_) | Transport::Other => {}
            Transport::Unreadable => loss.unparsed += u64::from(endpoint),
        }
        (egress.is_some() || out.len() > before).then_some(found)
    }

    /// Whether a packet goes to a service or comes from one; `None`: neither. Where both addresses could be a service's, the
    /// endpoint's decides: a client may have a link-local address of its own.
    fn direction(&self, source: IpAddr, destination: IpAddr) -> Option<bool> {
        match (self.is_service(source), self.is_service(destination)) {
            (false, false) => None,
            (false, true) => Some(true),
            (true, false) => Some(false),
            (true, true) => Some(self.endpoints.contains(&destination) || !self.endpoints.contains(&source)),
        }
    }

    /// The endpoints, and the addresses at which the provider answers next to them. Other link-local addresses are the host's own: node-local
    /// DNS caches, pods of IPv6 clusters.
    fn is_service(&self, address: IpAddr) -> bool {
        let provided = match address {
            IpAddr::V4(address) => matches!(address.octets(), [169, 254, 169, _]),
            IpAddr::V6(address) => address.segments()[..2] == [0xfd00, 0x0ec2],
        };
        provided || self.endpoints.contains(&address)
    }

    fn segment(&mut self, frame: &Frame<'_>, ip: &Ip<'_>, tcp: &TcpSlice<'_>, request: bool, out: &mut Vec<Event>) {
        let (source, destination) = (
            SocketAddr::new(ip.source, tcp.source_port()),
            SocketAddr::new(ip.destination, tcp.destination_port()),
        );
        let (direction, local, remote) = if request {
            (Direction::Request, source, destination)
        } else {
            (Direction::Response, destination, source)
        };
        // Longer than what was captured where a snap length cut it; shorter where the link layer padded it.
        let length = ip.length.saturating_sub(tcp.header_slice().len());
        let payload = tcp.payload();
        let payload = &payload[..payload.len().min(length)];
        let mut packet = Packet {
            time: frame.time,
            vantage: Vantage::Capture,
            flow: FlowId::Addresses { local, remote },
            direction,
            local,
            remote,
            sender: None,
            seq: tcp.sequence_number(),
            ack: tcp.acknowledgment_number(),
            tcp_flags: flags(tcp),
            ttl: ip.ttl,
            payload_len: length as u32,
            data: Bytes::new(),
            cut: payload.len() < length,
            retransmit: false,
            icmp: None,
            ifindex: frame.ifindex,
        };
        if request {
            packet.data = Bytes::copy_from_slice(&payload[..payload.len().min(MAX_HEAD_BYTES)]);
            packet.cut |= payload.len() > MAX_HEAD_BYTES;
            out.push(Event::Packet(packet));
            return;
        }
        let flow = (local, remote);
        let syn = packet.tcp_flags & Packet::SYN != 0;
        if syn {
            self.unfinished.pop(&flow);
        }
        let goes_on = !payload.is_empty() && !self.unfinished.is_empty() && self.unfinished.pop(&flow).is_some();
        let heads = heads(payload, goes_on);
        if heads.last().is_some_and(|head| !head.complete) && !packet.cut {
            self.unfinished.put(flow, ());
        }
        if heads.is_empty() {
            packet.cut = length > 0;
            out.push(Event::Packet(packet));
            return;
        }
        // Each piece reaches to the next head, so that none of the bytes between is looked at again.
        let first = packet.seq;
        let fin = packet.tcp_flags & Packet::FIN;
        for (at, head) in heads.iter().enumerate() {
            let from = if at == 0 { 0 } else { head.start };
            let to = heads.get(at + 1).map_or(length, |next| next.start);
            let last = at + 1 == heads.len();
            let mut piece = packet.clone();
            piece.seq = first.wrapping_add(from as u32);
            piece.payload_len = (to - from) as u32;
            // Bytes before the first head belong to a body: a head that starts there has none.
            piece.data = if head.start == from {
                Bytes::copy_from_slice(&payload[head.start..head.end])
            } else {
                Bytes::new()
            };
            piece.cut = piece.data.len() < to - from;
            if !last {
                piece.tcp_flags &= !fin;
            }
            out.push(Event::Packet(piece));
        }
    }

    /// The packet that an ICMP error quotes, if it is one of ours. Eight bytes of TCP are promised: ports and sequence number.
    fn quoted(&self, frame: &Frame<'_>, ip: &Ip<'_>, error: IcmpError, quote: &[u8]) -> Option<Packet> {
        let quoted = Ip::read(quote)?;
        let from_endpoint = self.endpoints.contains(&quoted.source);
        if !from_endpoint && !self.endpoints.contains(&quoted.destination) {
            return None;
        }
        if quoted.payload.ip_number != IpNumber::TCP || quoted.payload.fragmented {
            return None;
        }
        let tcp = quoted.payload.payload;
        let be16 = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
        let be32 = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().ok()?));
        let (source, destination) = (
            SocketAddr::new(quoted.source, be16(0)?),
            SocketAddr::new(quoted.destination, be16(2)?),
        );
        let (local, remote) = if from_endpoint {
            (destination, source)
        } else {
            (source, destination)
        };
        let header = tcp.get(12).map_or(20, |offset| usize::from(offset >> 4) * 4);
        Some(Packet {
            time: frame.time,
            vantage: Vantage::Capture,
            flow: FlowId::Addresses { local, remote },
            direction: if self.endpoints.contains(&ip.destination) {
                Direction::Request
            } else {
                Direction::Response
            },
            local,
            remote,
            sender: None,
            seq: be32(4)?,
            ack: be32(8).unwrap_or(0),
            tcp_flags: tcp.get(13).copied().unwrap_or(0),
            ttl: quoted.ttl,
            payload_len: quoted.length.saturating_sub(header) as u32,
            data: Bytes::new(),
            cut: false,
            retransmit: false,
            icmp: Some(error),
            ifindex: frame.ifindex,
        })
    }
}

impl<'a> Ip<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let (slice, stopped) = LaxIpSlice::from_slice(bytes).ok()?;
        let (source, destination, ttl, total) = match &slice {
            LaxIpSlice::Ipv4(slice) => {
                let header = slice.header();
                (
                    IpAddr::V4(header.source_addr()),
                    IpAddr::V4(header.destination_addr()),
                    header.ttl(),
                    usize::from(header.total_len()),
                )
            }
            LaxIpSlice::Ipv6(slice) => {
                let header = slice.header();
                let length = usize::from(header.payload_length());
                (
                    IpAddr::V6(header.source_addr()),
                    IpAddr::V6(header.destination_addr()),
                    header.hop_limit(),
                    if length == 0 { 0 } else { 40 + length },
                )
            }
        };
        let payload = slice.payload().clone();
        // Segments from segmentation offload may exceed the header's length field: it is 0 then.
        let total = if total == 0 { bytes.len() } else { total };
        let header = (payload.payload.as_ptr() as usize).saturating_sub(bytes.as_ptr() as usize);
        Some(Self {
            source,
            destination,
            ttl,
            length: total.saturating_sub(header),
            payload,
            whole: stopped.is_none(),
        })
    }

    fn transport(&self) -> Transport<'a> {
        if !self.whole {
            return Transport::Unreadable;
        }
        if self.payload.fragmented {
            return match self.payload.ip_number {
                IpNumber::TCP => Transport::Unreadable,
                _ => Transport::Other,
            };
        }
        let bytes = self.payload.payload;
        match self.payload.ip_number {
            IpNumber::TCP => TcpSlice::from_slice(bytes).map_or(Transport::Unreadable, Transport::Tcp),
            IpNumber::UDP => UdpSlice::from_slice_lax(bytes).map_or(Transport::Unreadable, Transport::Udp),
            number @ (IpNumber::ICMP | IpNumber::IPV6_ICMP) => match bytes.split_at_checked(8) {
                Some(([kind, code, ..], quote)) => Transport::Icmp {
                    error: IcmpError {
                        v6: number == IpNumber::IPV6_ICMP,
                        kind: *kind,
                        code: *code,
                    },
                    quote,
                },
                _ => Transport::Unreadable,
            },
            _ => Transport::Other,
        }
    }
}

/// Agents on the host answer here (ECS, EKS Pod Identity): their packets leave by no interface.
fn is_on_host(service: IpAddr) -> bool {
    match service {
        IpAddr::V4(address) => matches!(address.octets(), [169, 254, 170, _]),
        IpAddr::V6(address) => address.segments() == [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x23],
    }
}

/// A DNS packet between a client and what may be the VPC resolver.
fn to_resolver(ip: &[u8], source: IpAddr, destination: IpAddr) -> Option<Found> {
    const DNS: u16 = 53;
    let ports = match Ip::read(ip)?.transport() {
        Transport::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
        Transport::Udp(udp) => (udp.source_port(), udp.destination_port()),
        Transport::Icmp { .. } | Transport::Other | Transport::Unreadable => return None,
    };
    let (egress, resolver) = if ports.1 == DNS && may_be_resolver(destination) {
        (true, destination)
    } else if ports.0 == DNS && may_be_resolver(source) {
        (false, source)
    } else {
        return None;
    };
    Some(Found {
        counted: Some(Counted {
            egress,
            class: TrafficClass::Dns,
            resolver: Some(resolver),
        }),
    })
}

/// Source, destination, and whether it may be ICMP: all that most packets of a capture are asked for.
fn ends(ip: &[u8]) -> Option<(IpAddr, IpAddr, bool)> {
    fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
        bytes.get(at..at + N)?.try_into().ok()
    }
    match ip.first()? >> 4 {
        4 => Some((
            Ipv4Addr::from(array::<4>(ip, 12)?).into(),
            Ipv4Addr::from(array::<4>(ip, 16)?).into(),
            ip[9] == 1,
        )),
        6 => Some((
            Ipv6Addr::from(array::<16>(ip, 8)?).into(),
            Ipv6Addr::from(array::<16>(ip, 24)?).into(),
            ip[6] == 58,
        )),
        _ => None,
    }
}

fn class(egress: Option<bool>, source: u16, destination: u16) -> TrafficClass {
    match if egress == Some(true) { destination } else { source } {
        53 => TrafficClass::Dns,
        123 => TrafficClass::Ntp,
        _ => TrafficClass::Other,
    }
}

fn flags(tcp: &TcpSlice<'_>) -> u8 {
    tcp.header_slice().get(13).map_or(0, |flags| flags & 0x1f)
}

#[derive(Debug, PartialEq, Eq)]
struct Head {
    start: usize,
    end: usize,
    /// Its blank line is there.
    complete: bool,
}

/// The response heads in a segment. `goes_on`: the segment continues one.
fn heads(payload: &[u8], goes_on: bool) -> ArrayVec<Head, MAX_HEADS> {
    let mut heads = ArrayVec::new();
    let mut at = 0;
    while !heads.is_full() {
        let rest = payload.get(at..).unwrap_or_default();
        if !(rest.starts_with(b"HTTP/") || (goes_on && at == 0 && !rest.is_empty())) {
            break;
        }
        let window = &rest[..rest.len().min(MAX_HEAD_BYTES)];
        let Some(len) = end_of_head(window) else {
            let complete = window.len() < rest.len();
            heads.push(Head {
                start: at,
                end: at + window.len(),
                complete,
            });
            break;
        };
        heads.push(Head {
            start: at,
            end: at + len,
            complete: true,
        });
        // Without a length the body goes on to the end, or in chunks that aren't looked into.
        let Some(body) = content_length(&rest[..len]) else {
            break;
        };
        at = at.saturating_add(len).saturating_add(body);
    }
    heads
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    memchr::memchr_iter(b'\n', bytes).find_map(|at| match &bytes[at + 1..] {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

fn content_length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    // The first line counts too: a segment may go on with a head at any line.
    let mut lines = iter::once(0).chain(memchr::memchr_iter(b'\n', head).map(|at| at + 1));
    lines.find_map(|at| {
        let (name, behind) = head[at..].split_at_checked(NAME.len())?;
        let end = memchr::memchr(b'\n', behind).unwrap_or(behind.len());
        name.eq_ignore_ascii_case(NAME)
            .then(|| std::str::from_utf8(&behind[..end]).ok()?.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(payload: &str, goes_on: bool) -> Vec<&str> {
        heads(payload.as_bytes(), goes_on)
            .iter()
            .map(|head| &payload[head.start..head.end])
            .collect()
    }

    #[test]
    fn of_a_response_the_head_and_no_byte_of_the_body() {
        const ONE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n";
        const REST: &str = "Content-Length: 6\r\n\r\n";
        assert_eq!(found(&format!("{ONE}SECRET"), false), [ONE]);
        assert_eq!(found(&format!("{ONE}SECRET{ONE}SECRET"), false), [ONE, ONE]);
        assert_eq!(found("SECRET", false), [""; 0]);
        assert_eq!(found("SECRETHTTP/1.1 200 OK\r\n\r\n", false), [""; 0]);
        assert_eq!(found("Server: EC2ws\r\n\r\nSECRET", true), ["Server: EC2ws\r\n\r\n"]);
        assert_eq!(found(&format!("{REST}SECRET{ONE}"), true), [REST, ONE]);
        assert_eq!(
            found("HTTP/1.1 200 OK\nA: b\n\nSECRET", false),
            ["HTTP/1.1 200 OK\nA: b\n\n"]
        );
        let parts = heads(b"HTTP/1.1 200 OK\r\nSer", false);
        assert_eq!(
            parts[..],
            [Head {
                start: 0,
                end: 20,
                complete: false
            }]
        );
        assert_eq!(
            found(
                &format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\nS", usize::MAX),
                false
            )
            .len(),
            1
        );
    }
}
