//! From a captured frame to its IP packet: the link layers that captures of a host have.

/// A link layer that is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Ethernet,
    /// Linux cooked, version 1: `tcpdump -i any` until libpcap 1.10.
    Cooked,
    /// Version 2: with the interface's index.
    Cooked2,
    /// IP without a link layer.
    Raw,
    /// Four bytes of address family, in the byte order of the capturing host.
    Loopback,
}

/// Which way a packet went at the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    In,
    Out,
}

/// The IP packet in a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LinkPayload<'a> {
    pub(super) ip: &'a [u8],
    pub(super) way: Option<Way>,
    pub(super) ifindex: Option<u32>,
}

const ETHERTYPE_IP: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// 802.1Q, 802.1ad, and what was used for stacked tags before 802.1ad.
const ETHERTYPE_VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];
/// Stacked tags that are looked behind.
const MAX_TAGS: usize = 4;

impl Link {
    /// By the number in the file: <https://www.tcpdump.org/linktypes.html>. Some systems write their own numbers for raw IP.
    pub(super) fn of(number: i32) -> Option<Self> {
        // The upper bits of the pcap header's field are the length of the frame check sequence.
        Some(match number & 0xffff {
            0 | 108 => Self::Loopback,
            1 => Self::Ethernet,
            12 | 14 | 101 | 228 | 229 => Self::Raw,
            113 => Self::Cooked,
            276 => Self::Cooked2,
            _ => return None,
        })
    }

    /// Bytes in front of the network layer, without tags.
    pub(super) fn header_bytes(self) -> usize {
        match self {
            Self::Raw => 1,
            Self::Loopback => 5,
            Self::Ethernet => 14,
            Self::Cooked => 16,
            Self::Cooked2 => 20,
        }
    }

    /// `None`: not IP, or too short.
    pub(super) fn place(self, frame: &[u8]) -> Option<LinkPayload<'_>> {
        let (ethertype, rest, kind, ifindex) = match self {
            Self::Raw => return plain(frame),
            Self::Loopback => return plain(frame.get(4..)?),
            Self::Ethernet => (be16(frame, 12)?, frame.get(14..)?, None, None),
            Self::Cooked => (be16(frame, 14)?, frame.get(16..)?, Some(be16(frame, 0)?), None),
            Self::Cooked2 => (
                be16(frame, 0)?,
                frame.get(20..)?,
                Some(u16::from(*frame.get(10)?)),
                Some(u32::from_be_bytes(frame.get(4..8)?.try_into().ok()?)),
            ),
        };
        let ip = behind_tags(ethertype, rest)?;
        Some(LinkPayload {
            ip,
            // Linux' packet types: 4 is outgoing, all others came in.
            way: kind.map(|kind| if kind == 4 { Way::Out } else { Way::In }),
            ifindex,
        })
    }
}

fn plain(ip: &[u8]) -> Option<LinkPayload<'_>> {
    matches!(ip.first()? >> 4, 4 | 6).then_some(LinkPayload {
        ip,
        way: None,
        ifindex: None,
    })
}

fn behind_tags(mut ethertype: u16, mut rest: &[u8]) -> Option<&[u8]> {
    for _ in 0..MAX_TAGS {
        if !ETHERTYPE_VLAN.contains(&ethertype) {
            break;
        }
        ethertype = be16(rest, 2)?;
        rest = rest.get(4..)?;
    }
    matches!(ethertype, ETHERTYPE_IP | ETHERTYPE_IPV6).then_some(rest)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_packet_behind_every_link_layer() {
        let ip = [0x45, 0, 0, 20];
        let behind = |header: &[u8]| [header, &ip].concat();
        let ethernet = [&[0; 12][..], &[8, 0]].concat();
        let vlan = [&[0; 12][..], &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0]].concat();
        let cooked = [&[0, 4][..], &[0; 12], &[8, 0]].concat();
        let cooked2 = [&[8, 0, 0, 0, 0, 0, 0, 7, 0, 1, 0][..], &[0; 9]].concat();
        for (number, header, way, ifindex) in [
            (1, ethernet, None, None),
            (1, vlan, None, None),
            (113, cooked, Some(Way::Out), None),
            (276, cooked2, Some(Way::In), Some(7)),
            (101, Vec::new(), None, None),
            (0, vec![2, 0, 0, 0], None, None),
        ] {
            let frame = behind(&header);
            let wanted = LinkPayload { ip: &ip, way, ifindex };
            assert_eq!(Link::of(number).unwrap().place(&frame), Some(wanted), "{number}");
            for len in 0..header.len() {
                assert_eq!(Link::of(number).unwrap().place(&frame[..len]), None);
            }
        }
        assert_eq!(Link::of(105), None);
    }
}
