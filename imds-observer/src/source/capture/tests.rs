//! Captures made byte by byte.

use std::io::Cursor;

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;
use crate::bpf::DEFAULT_ENDPOINTS;
use crate::event::{Direction, Packet};

const IMDS: [u8; 4] = [169, 254, 169, 254];
const POD: [u8; 4] = [10, 0, 0, 5];
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

fn tcp(from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let (source, destination) = if to == IMDS { (4000, 80) } else { (80, 4000) };
    let builder = PacketBuilder::ethernet2([1; 6], [2; 6])
        .ipv4(from, to, 63)
        .tcp(source, destination, 1000, 1024)
        .ack(77);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

fn udp(to: [u8; 4], port: u16) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([1; 6], [2; 6])
        .ipv4([10, 0, 0, 9], to, 64)
        .udp(999, port);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, b"?").unwrap();
    bytes
}

fn time_exceeded(quoted_frame: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([1; 6], [2; 6])
        .ipv4([10, 0, 0, 1], IMDS, 64)
        .icmpv4_raw(11, 0, [0; 4]);
    let mut bytes = Vec::new();
    // IP header and eight bytes of TCP, as routers promise.
    builder.write(&mut bytes, &quoted_frame[14..14 + 28]).unwrap();
    bytes
}

/// A pcap of these frames, one a second, cut at `snap`.
fn pcap(nanoseconds: bool, big: bool, snap: usize, frames: &[Vec<u8>]) -> Vec<u8> {
    let u32 = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let u16 = |value: u16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let mut bytes = u32(if nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 }).to_vec();
    bytes.extend([u16(2), u16(4)].concat());
    bytes.extend([u32(0), u32(0), u32(65535), u32(1)].concat());
    for (second, frame) in frames.iter().enumerate() {
        let cut = frame.len().min(snap);
        bytes.extend(
            [
                u32(100 + second as u32),
                u32(5),
                u32(cut as u32),
                u32(frame.len() as u32),
            ]
            .concat(),
        );
        bytes.extend(&frame[..cut]);
    }
    bytes
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut padded = body.to_vec();
    padded.resize(body.len().next_multiple_of(4), 0);
    let length = (padded.len() as u32 + 12).to_le_bytes();
    [&kind.to_le_bytes()[..], &length, &padded, &length].concat()
}

fn option(code: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = [code.to_le_bytes(), (value.len() as u16).to_le_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A pcapng with one interface `eth7` that counts nanoseconds.
fn pcapng(frames: &[(Vec<u8>, &str)]) -> Vec<u8> {
    let magic = [&0x1a2b_3c4d_u32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat();
    let mut bytes = block(0x0a0d_0d0a, &magic);
    let options = [option(2, b"eth7"), option(9, &[9]), option(0, b"")].concat();
    bytes.extend(block(1, &[&[1, 0, 0, 0, 0, 0, 4, 0][..], &options].concat()));
    for (second, (frame, comment)) in frames.iter().enumerate() {
        let stamp = (100 + second as u64) * SECOND + 5;
        let mut body = 0_u32.to_le_bytes().to_vec();
        body.extend(((stamp >> 32) as u32).to_le_bytes());
        body.extend((stamp as u32).to_le_bytes());
        body.extend((frame.len() as u32).to_le_bytes());
        body.extend((frame.len() as u32).to_le_bytes());
        body.extend(frame);
        body.resize(body.len().next_multiple_of(4), 0);
        if !comment.is_empty() {
            body.extend([option(1, comment.as_bytes()), option(0, b"")].concat());
        }
        bytes.extend(block(6, &body));
    }
    bytes
}

fn read(bytes: Vec<u8>) -> (Vec<Event>, Vec<(u64, Broken)>) {
    let input = Input::new("t".into(), Box::new(Cursor::new(bytes))).unwrap();
    let mut capture = Capture::new(input, &DEFAULT_ENDPOINTS, &Limits::default());
    let (mut events, mut broken) = (Vec::new(), Vec::new());
    loop {
        match capture.next_event() {
            Next::End => return (events, broken),
            Next::Event(event) => events.push(event),
            Next::Broken { at, why } => broken.push((at, why)),
        }
    }
}

fn packets(events: &[Event]) -> Vec<&Packet> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Packet(packet) => Some(packet),
            _ => None,
        })
        .collect()
}

#[test]
fn both_byte_orders_and_both_units() {
    let frames = [tcp(POD, IMDS, REQUEST)];
    for (nanoseconds, big, ns) in [
        (false, false, 5000),
        (true, false, 5),
        (false, true, 5000),
        (true, true, 5),
    ] {
        let (events, broken) = read(pcap(nanoseconds, big, 9999, &frames));
        assert!(broken.is_empty());
        let packets = packets(&events);
        assert_eq!(packets[0].time, Time(100 * SECOND + ns), "{nanoseconds} {big}");
        assert_eq!(packets[0].data, REQUEST);
        assert_eq!((packets[0].ttl, packets[0].seq, packets[0].ack), (63, 1000, 77));
        assert_eq!((packets[0].direction, packets[0].cut), (Direction::Request, false));
    }
}

#[test]
fn pcapng_names_interfaces_and_ptcpdump_processes() {
    let comment = "PID: 7\nCmd: /usr/bin/curl\nArgs: curl";
    let frames = [(tcp(POD, IMDS, REQUEST), comment), (tcp(POD, IMDS, b""), comment)];
    let (events, broken) = read(pcapng(&frames));
    assert!(broken.is_empty(), "{broken:?}");
    let callers = events
        .iter()
        .filter(|event| matches!(event, Event::Caller { .. }))
        .count();
    assert_eq!(callers, 1);
    let packets = packets(&events);
    assert_eq!(packets[0].time, Time(100 * SECOND + 5));
    assert_eq!(packets[0].sender.unwrap().key.tgid, 7);
    assert_eq!(packets[0].sender, packets[1].sender);
    let samples: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Interface(sample) => Some((&*sample.name, sample.egress[0])),
            _ => None,
        })
        .collect();
    assert_eq!(samples, [("eth7", 1), ("eth7", 1)]);
}

/// An IPv6 packet to the endpoint with these headers before its payload: each protocol number and the header's bytes from the second on.
fn ipv6(headers: &[(u8, &[u8])], last: u8, payload: &[u8]) -> Vec<u8> {
    let mut behind = Vec::new();
    for (at, (_, header)) in headers.iter().enumerate() {
        behind.push(headers.get(at + 1).map_or(last, |(next, _)| *next));
        behind.extend(*header);
    }
    behind.extend(payload);
    let mut frame = vec![2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 0x86, 0xdd, 0x60, 0, 0, 0];
    frame.extend((behind.len() as u16).to_be_bytes());
    frame.extend([headers.first().map_or(last, |(first, _)| *first), 63]);
    frame.extend(std::net::Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 5).octets());
    frame.extend(std::net::Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254).octets());
    frame.extend(behind);
    frame
}

/// PadN that fills an option header of eight bytes.
const OPTIONS: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
const HOP_BY_HOP: (u8, &[u8]) = (0, OPTIONS);
const ROUTING: (u8, &[u8]) = (43, &[0, 4, 0, 0, 0, 0, 0]);
const DESTINATION: (u8, &[u8]) = (60, OPTIONS);
const WHOLE_FRAGMENT: (u8, &[u8]) = (44, &[0, 0, 0, 0, 0, 0, 1]);
const FIRST_FRAGMENT: (u8, &[u8]) = (44, &[0, 0, 1, 0, 0, 0, 1]);
const LATER_FRAGMENT: (u8, &[u8]) = (44, &[0, 1, 0, 0, 0, 0, 1]);

#[test]
fn requests_behind_extension_headers_are_read() {
    let segment = &tcp(POD, IMDS, REQUEST)[34..];
    for headers in [
        &[][..],
        &[HOP_BY_HOP],
        &[DESTINATION],
        &[WHOLE_FRAGMENT],
        &[HOP_BY_HOP, DESTINATION, ROUTING, WHOLE_FRAGMENT, DESTINATION],
    ] {
        let (events, broken) = read(pcap(false, false, 9999, &[ipv6(headers, 6, segment)]));
        assert!(broken.is_empty(), "{headers:?}");
        assert_eq!(loss(&events), LossCounts::default(), "{headers:?}");
        let packets = packets(&events);
        assert_eq!(packets[0].data, REQUEST, "{headers:?}");
        assert_eq!(packets[0].remote.to_string(), "[fd00:ec2::254]:80");
        assert_eq!((packets[0].payload_len, packets[0].cut), (REQUEST.len() as u32, false));
    }
}

#[test]
fn fragments_of_requests_are_counted_and_those_of_datagrams_are_not() {
    let segment = &tcp(POD, IMDS, REQUEST)[34..];
    for fragment in [FIRST_FRAGMENT, LATER_FRAGMENT] {
        for (protocol, unparsed) in [(6, 1), (17, 0)] {
            let frame = ipv6(&[DESTINATION, fragment], protocol, segment);
            let (events, _) = read(pcap(false, false, 9999, &[frame]));
            assert_eq!(loss(&events).unparsed, unparsed, "{fragment:?} {protocol}");
            let mut frame = if protocol == 6 {
                tcp(POD, IMDS, REQUEST)
            } else {
                udp(IMDS, 80)
            };
            frame[20] |= 0x20;
            let (events, _) = read(pcap(false, false, 9999, &[frame]));
            assert_eq!(loss(&events).unparsed, unparsed, "IPv4 {protocol}");
        }
    }
}

/// Loss at the end.
fn loss(events: &[Event]) -> LossCounts {
    let counts = events.iter().filter_map(|event| match event {
        Event::Loss(loss) => Some(*loss),
        _ => None,
    });
    counts.last().unwrap_or_default()
}

#[test]
fn packets_cut_within_their_headers_are_counted_and_reported_once() {
    let frames = [tcp(POD, IMDS, REQUEST), tcp(IMDS, POD, b""), tcp(POD, IMDS, REQUEST)];
    for snap in [1, 13, 14, 20, 33, 34, 45, 53] {
        let (events, broken) = read(pcap(false, false, snap, &frames));
        assert_eq!(loss(&events).unparsed, 3, "snap length {snap}");
        let cuts = broken.iter().filter(|(_, why)| *why == Broken::Cut(snap)).count();
        assert_eq!((cuts, broken.len()), (1, 1), "snap length {snap}");
    }
    let (events, broken) = read(pcap(false, false, 54, &frames));
    assert!(broken.is_empty() && packets(&events)[0].cut, "the headers are whole");
    // Packets that are not IP, or that go elsewhere, don't count.
    let mut arp = tcp(POD, IMDS, REQUEST);
    arp[12..14].copy_from_slice(&[8, 6]);
    let elsewhere = tcp(POD, [10, 0, 0, 9], REQUEST);
    let (events, broken) = read(pcap(false, false, 40, &[arp, elsewhere]));
    assert!(broken.is_empty() && loss(&events) == LossCounts::default());
}

#[test]
fn drop_counters_of_pcapng_are_loss() {
    let statistics = |options: &[(u16, u64)]| {
        let mut body = vec![0; 12];
        for (code, count) in options {
            body.extend(option(*code, &count.to_le_bytes()));
        }
        body.extend(option(0, b""));
        block(5, &body)
    };
    let lost = |blocks: &[Vec<u8>]| {
        let mut bytes = pcapng(&[(tcp(POD, IMDS, REQUEST), "")]);
        bytes.extend(blocks.concat());
        let (events, broken) = read(bytes);
        assert!(broken.is_empty());
        loss(&events).ring_buffer
    };
    // isb_ifrecv and isb_usrdeliv are no drops; isb_ifdrop and isb_osdrop are.
    assert_eq!(lost(&[statistics(&[(4, 100), (8, 90)])]), 0);
    assert_eq!(lost(&[statistics(&[(4, 100), (5, 7)])]), 7);
    assert_eq!(lost(&[statistics(&[(5, 7), (7, 2)])]), 9);
    // They count from the start.
    assert_eq!(lost(&[statistics(&[(5, 3)]), statistics(&[(5, 7)])]), 7);
    assert_eq!(lost(&[statistics(&[(5, u64::MAX), (7, 2)])]), u64::MAX);
    // epb_dropcount: since the packet before. Both count the same packets.
    let packet = |count: u64| {
        let frame = tcp(POD, IMDS, REQUEST);
        let mut body = vec![0; 12];
        body.extend((frame.len() as u32).to_le_bytes());
        body.extend((frame.len() as u32).to_le_bytes());
        body.extend(&frame);
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend([option(4, &count.to_le_bytes()), option(0, b"")].concat());
        block(6, &body)
    };
    assert_eq!(lost(&[packet(4), packet(5)]), 9);
    assert_eq!(lost(&[packet(4), packet(5), statistics(&[(5, 10)])]), 10);
}

#[test]
fn a_snap_length_leaves_the_payloads_length() {
    let (events, _) = read(pcap(false, false, 14 + 40 + 6, &[tcp(POD, IMDS, REQUEST)]));
    let packets = packets(&events);
    assert_eq!(
        (&packets[0].data[..], packets[0].payload_len),
        (&REQUEST[..6], REQUEST.len() as u32)
    );
    assert!(packets[0].cut);
}

#[test]
fn of_responses_the_heads_each_at_its_place() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n";
    let (events, _) = read(pcap(
        false,
        false,
        9999,
        &[tcp(IMDS, POD, format!("{head}SECRET{head}SECRET").as_bytes())],
    ));
    let packets = packets(&events);
    let length = head.len() as u32 + 6;
    let got: Vec<_> = packets
        .iter()
        .map(|packet| (packet.seq, packet.payload_len, &packet.data[..]))
        .collect();
    assert_eq!(
        got,
        [
            (1000, length, head.as_bytes()),
            (1000 + length, length, head.as_bytes())
        ]
    );
}

#[test]
fn icmp_errors_bring_what_they_quote() {
    let (events, _) = read(pcap(false, false, 9999, &[time_exceeded(&tcp(IMDS, POD, &[0; 10]))]));
    let packets = packets(&events);
    let icmp = packets[0].icmp.unwrap();
    assert_eq!((icmp.v6, icmp.kind, icmp.code), (false, 11, 0));
    assert_eq!((packets[0].seq, packets[0].payload_len), (1000, 10));
    assert_eq!(packets[0].direction, Direction::Request);
    assert_eq!(packets[0].local.to_string(), "10.0.0.5:4000");
}

#[test]
fn dns_and_ntp_count_and_other_protocols_do_not() {
    let frames = [
        udp([169, 254, 169, 253], 53),
        udp([169, 254, 169, 123], 123),
        udp([1, 1, 1, 1], 53),
        tcp(POD, [1, 2, 3, 4], REQUEST),
    ];
    let (events, _) = read(pcap(false, false, 9999, &frames));
    let egress: Vec<_> = events
        .iter()
        .map(|event| match event {
            Event::Interface(sample) => sample.egress,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(egress, [[0, 1, 0, 0], [0, 0, 1, 0]]);
}

#[test]
fn of_dns_to_private_addresses_only_that_to_the_vpc_resolver_counts() {
    let frames = [
        udp([10, 0, 0, 2], 53),
        udp([10, 0, 0, 2], 5353),
        udp([10, 0, 0, 10], 53),
        udp([172, 17, 0, 2], 53),
        udp([169, 254, 20, 10], 53),
    ];
    let (events, _) = read(pcap(false, false, 9999, &frames));
    let [Event::Interface(sample)] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(sample.egress, [0, 1, 0, 0]);
    assert_eq!(sample.resolver.as_ref().unwrap().address, "10.0.0.2");
}

#[test]
fn breaks_are_reported_with_their_place() {
    let whole = pcap(false, false, 9999, &[tcp(POD, IMDS, REQUEST), tcp(POD, IMDS, REQUEST)]);
    let first = 24 + (whole.len() - 24) / 2;
    let (events, broken) = read(whole[..whole.len() - 3].to_vec());
    assert_eq!(
        (packets(&events).len(), broken),
        (1, vec![(first as u64, Broken::CutOff)])
    );

    let (_, broken) = read(whole[..10].to_vec());
    assert_eq!(broken, [(0, Broken::Header)]);

    let mut huge = whole.clone();
    huge[first + 8..first + 12].copy_from_slice(&u32::MAX.to_le_bytes());
    let (events, broken) = read(huge);
    assert_eq!(packets(&events).len(), 1);
    assert_eq!(broken[0].0, first as u64);

    let mut strange = whole;
    strange[20] = 105;
    let (events, broken) = read(strange);
    assert!(packets(&events).is_empty());
    assert_eq!(broken, [(0, Broken::LinkType(105))]);
}

#[test]
fn stamps_of_any_resolution() {
    let units = |resolution, binary, offset_s| Units {
        resolution,
        binary,
        offset_s,
    };
    assert_eq!(units(0, false, 0).time(3), Time(3 * SECOND));
    assert_eq!(units(3, false, 1).time(1500), Time(2 * SECOND + SECOND / 2));
    assert_eq!(units(10, true, 0).time(1536), Time(SECOND + SECOND / 2));
    assert_eq!(units(6, false, -10).time(0), Time(0));
    let _ = units(127, true, i64::MAX).time(u64::MAX);
    let _ = units(127, false, i64::MIN).time(u64::MAX);
}

proptest! {
    #[test]
    fn any_bytes_behind_a_header_end(noise in proptest::collection::vec(any::<u8>(), 0..600), big: bool) {
        read([pcap(false, big, 0, &[]), noise.clone()].concat());
        read([pcapng(&[]), noise].concat());
    }

    #[test]
    fn any_change_of_a_capture_ends(at in 0..900_usize, byte: u8, ng: bool) {
        let frames = [tcp(POD, IMDS, REQUEST), time_exceeded(&tcp(IMDS, POD, &[0; 10])), tcp(IMDS, POD, b"HTTP/1.1 200 OK\r\n\r\n")];
        let mut bytes = if ng {
            pcapng(&frames.map(|frame| (frame, "PID: 7\nCmd: x")))
        } else {
            pcap(false, false, 9999, &frames)
        };
        let at = at % bytes.len();
        bytes[at] = byte;
        if Input::new("t".into(), Box::new(Cursor::new(bytes.clone()))).unwrap().format != Format::Ndjson {
            read(bytes);
        }
    }

    #[test]
    fn any_frame_is_read_or_passed_over(frame in proptest::collection::vec(any::<u8>(), 0..200), link in 0..300_i32) {
        let Some(link) = Link::of(link) else { return Ok(()) };
        if let Some(placed) = link.place(&frame) {
            let frame = Frame { time: Time(0), ip: placed.ip, cut: false, ifindex: 1 };
            PacketReader::new(&DEFAULT_ENDPOINTS, 4).read(&frame, &mut LossCounts::default(), &mut Vec::new());
        }
    }
}
