//! Handmade packets, as the kernel programs and captures show them.

use std::net::SocketAddr;

use bytes::Bytes;
use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::event::{
    ConnectAttempt, ConnectResult, Direction, Event, FlowId, IcmpError, Packet, PacketDrop, ProcessKey, Redirection,
    Sender, SocketChange, SocketState, Vantage,
};
use crate::imds::Hasher;
use crate::record::{Body, Connect, ConnectOutcome, Exchange, ExchangeOutcome, ImdsVersion, LossCounts, SECOND, Time};

const MS: u64 = 1_000_000;
const T0: u64 = 1_700_000_000 * SECOND;
const ISN: u32 = u32::MAX - 20;
const SERVER_ISN: u32 = u32::MAX - 5;
const ACK: u8 = Packet::ACK;
const PUT: &str = "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token: S3CR3TS3CR3TS3CR3T\r\n\r\n")
}

/// A connection, packet by packet.
struct World {
    table: FlowTable,
    facts: Vec<Fact>,
    flow: FlowId,
    local: SocketAddr,
    remote: SocketAddr,
    vantage: Vantage,
    ms: u64,
    sender_cgroup: u64,
}

impl World {
    fn live() -> Self {
        Self::new(FlowId::Cookie(0x42), Vantage::Socket)
    }

    fn capture() -> Self {
        let (local, remote) = (address("10.0.1.5:43122"), address("169.254.169.254:80"));
        Self::new(FlowId::Addresses { local, remote }, Vantage::Capture)
    }

    fn new(flow: FlowId, vantage: Vantage) -> Self {
        Self {
            table: FlowTable::new(Limits::default(), Hasher::with_salt(1, 2)),
            facts: Vec::new(),
            flow,
            local: address("10.0.1.5:43122"),
            remote: address("169.254.169.254:80"),
            vantage,
            ms: 0,
            sender_cgroup: 9,
        }
    }

    fn time(&self) -> Time {
        Time(T0 + self.ms * MS)
    }

    fn at(&mut self, ms: u64) -> &mut Self {
        self.ms = ms;
        self
    }

    fn sender() -> Sender {
        Sender {
            key: ProcessKey {
                start_time_ns: 1,
                tgid: 77,
                exec_id: 1,
            },
            tid: 78,
            cgroup_id: 9,
            netns: 1,
        }
    }

    fn send(&mut self, event: &Event) -> &mut Self {
        self.table.handle(event, &mut self.facts);
        self
    }

    fn raw(&self, direction: Direction, flags: u8, seq: u32, ack: u32, data: &[u8]) -> Packet {
        Packet {
            time: self.time(),
            vantage: self.vantage,
            flow: self.flow,
            direction,
            local: self.local,
            remote: self.remote,
            sender: (self.vantage == Vantage::Socket && direction == Direction::Request).then(|| Sender {
                cgroup_id: self.sender_cgroup,
                ..Self::sender()
            }),
            seq,
            ack,
            tcp_flags: flags,
            ttl: if direction == Direction::Request { 64 } else { 255 },
            payload_len: data.len() as u32,
            data: Bytes::copy_from_slice(data),
            cut: false,
            retransmit: false,
            icmp: None,
            ifindex: 2,
        }
    }

    /// A client's packet at offset `at` of its bytes, when it has `got` bytes of the server's.
    fn client(&mut self, flags: u8, at: u32, got: u32, data: &str) -> &mut Self {
        let seq = ISN.wrapping_add(1).wrapping_add(at);
        let packet = self.raw(
            Direction::Request,
            flags,
            seq,
            SERVER_ISN.wrapping_add(1).wrapping_add(got),
            data.as_bytes(),
        );
        self.both(packet)
    }

    /// A client's packet as the socket and, live, then the uplink see it.
    fn both(&mut self, packet: Packet) -> &mut Self {
        let mut wire = packet.clone();
        self.send(&Event::Packet(packet));
        if self.vantage == Vantage::Socket {
            wire.vantage = Vantage::Uplink;
            wire.sender = None;
            wire.ttl -= 1;
            wire.data = Bytes::new();
            wire.local = address("192.168.0.10:5000");
            self.send(&Event::Packet(wire));
        }
        self
    }

    fn server_packet(&self, flags: u8, at: u32, got: u32, data: &str, ttl: u8) -> Packet {
        let seq = SERVER_ISN.wrapping_add(1).wrapping_add(at);
        let ack = ISN.wrapping_add(1).wrapping_add(got);
        let mut packet = self.raw(Direction::Response, flags, seq, ack, data.as_bytes());
        packet.ttl = ttl;
        packet
    }

    /// A server's packet that arrives and is delivered.
    fn server(&mut self, flags: u8, at: u32, got: u32, data: &str) -> &mut Self {
        if self.vantage == Vantage::Socket {
            self.arrives(flags, at, got, data, 255);
        }
        let ttl = if self.vantage == Vantage::Socket { 254 } else { 255 };
        let packet = self.server_packet(flags, at, got, data, ttl);
        self.send(&Event::Packet(packet))
    }

    /// A server's packet that only the uplink sees.
    fn arrives(&mut self, flags: u8, at: u32, got: u32, data: &str, ttl: u8) -> &mut Self {
        let mut packet = self.server_packet(flags, at, got, data, ttl);
        if packet.vantage == Vantage::Socket {
            packet.vantage = Vantage::Uplink;
            packet.local = address("192.168.0.10:5000");
        }
        self.send(&Event::Packet(packet))
    }

    fn handshake(&mut self) -> &mut Self {
        let mut syn = self.raw(Direction::Request, Packet::SYN, ISN, 0, b"");
        syn.time = self.time();
        self.both(syn);
        let syn_ack = self.raw(
            Direction::Response,
            Packet::SYN | ACK,
            SERVER_ISN,
            ISN.wrapping_add(1),
            b"",
        );
        let mut wire = syn_ack.clone();
        if self.vantage == Vantage::Socket {
            wire.vantage = Vantage::Uplink;
            self.send(&Event::Packet(wire));
        }
        self.send(&Event::Packet(syn_ack));
        self.client(ACK, 0, 0, "")
    }

    fn syn(&mut self) -> &mut Self {
        let packet = self.raw(Direction::Request, Packet::SYN, ISN, 0, b"");
        self.send(&Event::Packet(packet))
    }

    fn connect(&mut self) -> &mut Self {
        let event = Event::Connect(ConnectAttempt {
            time: self.time(),
            flow: self.flow,
            remote: self.remote,
            sender: Self::sender(),
        });
        self.send(&event)
    }

    fn returned(&mut self, errno: i32) -> &mut Self {
        let event = Event::ConnectReturned(ConnectResult {
            time: self.time(),
            flow: self.flow,
            errno,
        });
        self.send(&event)
    }

    fn socket(&mut self, state: SocketState, error: u32) -> &mut Self {
        let event = Event::Socket(SocketChange {
            time: self.time(),
            flow: self.flow,
            state,
            unconnected: false,
            received: None,
            error,
            local: self.local,
            remote: self.remote,
        });
        self.send(&event)
    }

    fn closes_unconnected(&mut self, error: u32) -> &mut Self {
        let event = Event::Socket(SocketChange {
            time: self.time(),
            flow: self.flow,
            state: SocketState::Closed,
            unconnected: true,
            received: None,
            error,
            local: self.local,
            remote: self.remote,
        });
        self.send(&event)
    }

    fn dropped(
        &mut self,
        direction: Direction,
        seq: u32,
        len: u32,
        flags: u8,
        reason: &str,
        location: &str,
    ) -> &mut Self {
        let event = Event::Drop(PacketDrop {
            time: self.time(),
            flow: self.flow,
            local: self.local,
            remote: self.remote,
            direction,
            sender: None,
            seq,
            payload_len: len,
            tcp_flags: flags,
            ttl: 1,
            reason: Some(reason.into()),
            location: Some(location.into()),
            netns: 5,
        });
        self.send(&event)
    }

    fn wait(&mut self, ms: u64) -> &mut Self {
        self.ms = ms;
        self.table.advance(self.time(), &mut self.facts);
        self
    }

    fn end(&mut self) -> &mut Self {
        let now = self.time();
        self.table.finish(now, &mut self.facts);
        self
    }

    fn exchanges(&self) -> Vec<Fact<&Exchange>> {
        exchanges(&self.facts)
    }

    fn only(&self) -> Fact<&Exchange> {
        let exchanges = self.exchanges();
        assert_eq!(exchanges.len(), 1, "{:#?}", self.facts);
        exchanges[0]
    }

    fn connects(&self) -> Vec<Fact<&Connect>> {
        let connects = self.facts.iter().filter_map(|fact| match &fact.body {
            Body::Connect(connect) => Some(of(fact, connect)),
            _ => None,
        });
        connects.collect()
    }

    fn failure(&self) -> Fact<&Connect> {
        let connects = self.connects();
        assert_eq!(connects.len(), 1, "{:#?}", self.facts);
        connects[0]
    }
}

fn of<'a, B>(fact: &Fact, body: &'a B) -> Fact<&'a B> {
    Fact {
        flow: fact.flow,
        sender: fact.sender,
        ifindex: fact.ifindex,
        time: fact.time,
        body,
    }
}

fn exchanges(facts: &[Fact]) -> Vec<Fact<&Exchange>> {
    let exchanges = facts.iter().filter_map(|fact| match &fact.body {
        Body::Exchange(exchange) => Some(of(fact, exchange)),
        _ => None,
    });
    exchanges.collect()
}

fn len(text: &str) -> u32 {
    text.len() as u32
}

#[test]
fn healthy_live() {
    let mut world = World::live();
    world.connect().handshake().at(1).client(ACK, 0, 0, PUT);
    assert!(world.facts.is_empty());
    world.at(3).server(ACK, 0, len(PUT), OK);
    let exchange = world.only();
    assert_eq!(exchange.outcome, ExchangeOutcome::Answered);
    assert_eq!(exchange.time, Time(T0 + MS));
    assert_eq!(exchange.sender, Some(World::sender()));
    assert_eq!(exchange.connection.id, "42");
    assert_eq!(
        exchange.connection.local.as_deref(),
        Some("10.0.1.5:43122"),
        "before NAT"
    );
    assert_eq!(exchange.connection.exchange, 1);
    assert_eq!(exchange.request.imds_version, Some(ImdsVersion::Token));
    assert_eq!(exchange.request.ttl, Some(63), "as on the wire");
    let response = exchange.response.as_ref().unwrap();
    assert_eq!(
        (response.status, response.ttl, response.delivered),
        (Some(200), Some(255), Some(true))
    );
    assert_eq!((exchange.latency_ns, exchange.waited_ns), (Some(2 * MS), Some(2 * MS)));
    assert_eq!(exchange.connect_ns, Some(0));
    world
        .client(ACK | Packet::FIN, len(PUT), 100, "")
        .socket(SocketState::Closed, 0)
        .wait(60_000);
    assert_eq!(world.facts.len(), 1);
    assert!(world.table.is_empty(), "closed flows are forgotten");
}

/// Live, only the beginning of a response leaves the kernel, and no FIN that a known socket receives.
#[test]
fn a_closed_socket_shows_the_length_of_its_last_response() {
    const ROLE: &str =
        "GET /latest/meta-data/iam/security-credentials/app HTTP/1.1\r\nHost: a\r\nX-aws-ec2-metadata-token: t\r\n\r\n";
    for received in [None, Some(378)] {
        let mut world = World::live();
        world
            .handshake()
            .at(1)
            .client(ACK, 0, 0, ROLE)
            .at(3)
            .server(ACK, 0, len(ROLE), OK)
            .at(4);
        let event = Event::Socket(SocketChange {
            time: world.time(),
            flow: world.flow,
            state: SocketState::Closed,
            unconnected: false,
            received,
            error: 0,
            local: world.local,
            remote: world.remote,
        });
        world.send(&event).wait(60_000);
        let response = world.only().response.as_ref().unwrap();
        assert_eq!((response.status, response.length), (Some(200), received.map(u64::from)));
    }
}

#[test]
fn lost_token_response_live() {
    let mut world = World::live();
    world.handshake().at(1).client(ACK, 0, 0, PUT);
    for ms in [2, 202, 642] {
        world.at(ms).arrives(ACK, 0, len(PUT), OK, 1);
        let seq = SERVER_ISN.wrapping_add(1);
        world.dropped(Direction::Response, seq, 15, ACK, "IP_INHDR", "ip_forward");
    }
    assert!(world.exchanges().is_empty());
    world.at(1001).client(ACK | Packet::FIN, len(PUT), 0, "");
    let exchange = world.only();
    assert_eq!(exchange.outcome, ExchangeOutcome::Lost);
    assert_eq!((exchange.latency_ns, exchange.waited_ns), (Some(MS), Some(1000 * MS)));
    let response = exchange.response.as_ref().unwrap();
    assert_eq!(
        (response.status, response.ttl, response.delivered),
        (Some(200), Some(1), Some(false))
    );
    assert_eq!(response.retransmits, 2);
    let drops = world
        .facts
        .iter()
        .filter(|fact| matches!(&fact.body, Body::Drop(drop) if drop.ttl == Some(1) && drop.netns == Some(5)));
    assert_eq!(drops.count(), 3);
    world.at(1502).arrives(ACK, 0, len(PUT), OK, 1).wait(60_000).end();
    assert_eq!(world.exchanges().len(), 1, "reported once");
}

#[test]
fn lost_without_any_sign_of_the_client() {
    let mut world = World::live();
    world
        .handshake()
        .at(1)
        .client(ACK, 0, 0, PUT)
        .at(2)
        .arrives(ACK, 0, len(PUT), OK, 1);
    world.wait(20_001);
    assert!(world.exchanges().is_empty());
    world.wait(20_003);
    assert_eq!(world.only().outcome, ExchangeOutcome::Lost);
    assert_eq!(world.only().waited_ns, None);
}

#[test]
fn delivery_reported_before_the_wire() {
    let mut world = World::live();
    world.handshake().at(1).client(ACK, 0, 0, PUT).at(2);
    let delivered = world.server_packet(ACK, 0, len(PUT), OK, 254);
    world.send(&Event::Packet(delivered));
    assert!(world.exchanges().is_empty(), "the wire's TTL may still come");
    world.arrives(ACK, 0, len(PUT), OK, 255);
    assert_eq!(world.only().response.as_ref().unwrap().ttl, Some(255));
}

#[test]
fn delivery_reported_after_the_client_left() {
    let mut world = World::live();
    world
        .handshake()
        .at(1)
        .client(ACK, 0, 0, PUT)
        .at(2)
        .arrives(ACK, 0, len(PUT), OK, 255);
    world.client(ACK | Packet::FIN, len(PUT), 0, "").at(3);
    let delivered = world.server_packet(ACK, 0, len(PUT), OK, 254);
    world.send(&Event::Packet(delivered));
    assert_eq!(world.only().outcome, ExchangeOutcome::Answered);
}

#[test]
fn socket_alone_is_enough() {
    let mut world = World::live();
    let request = world.raw(Direction::Request, ACK, 100, 900, PUT.as_bytes());
    let mut response = world.raw(Direction::Response, ACK, 900, 100 + len(PUT), OK.as_bytes());
    response.ttl = 7;
    world.send(&Event::Packet(request)).send(&Event::Packet(response));
    let exchange = world.only();
    assert_eq!(
        (exchange.request.ttl, exchange.request.ttl_on_wire),
        (Some(64), Some(false)),
        "the socket's own"
    );
    assert_eq!(exchange.response.as_ref().unwrap().ttl, None, "not seen on the wire");
}

#[rstest]
#[case::client_gives_up("fin", ExchangeOutcome::Closed, true)]
#[case::client_resets("rst", ExchangeOutcome::Closed, true)]
#[case::server_resets("server rst", ExchangeOutcome::Reset, true)]
#[case::server_closes("server fin", ExchangeOutcome::Unanswered, true)]
#[case::silence("silence", ExchangeOutcome::Unanswered, false)]
#[case::observer_stops("end", ExchangeOutcome::Open, false)]
fn no_answer(
    #[case] how: &str,
    #[case] outcome: ExchangeOutcome,
    #[case] client_knows: bool,
    #[values(true, false)] live: bool,
) {
    let mut world = if live { World::live() } else { World::capture() };
    world.handshake().at(1).client(ACK, 0, 0, PUT).at(301);
    match how {
        "fin" => world
            .client(ACK | Packet::FIN, len(PUT), 0, "")
            .wait(if live { 5_000 } else { 901_500 }),
        "rst" => world.client(ACK | Packet::RST, len(PUT), 0, "").wait(400),
        "server rst" => world.server(ACK | Packet::RST, 0, len(PUT), "").wait(400),
        "server fin" => world.server(ACK | Packet::FIN, 0, len(PUT), "").wait(500),
        // A capture has time: there a long poll may still be answered.
        "silence" => world.wait(if live { 21_000 } else { 901_500 }),
        _ => world.end(),
    };
    let exchange = world.only();
    let waited = client_knows.then_some(300 * MS);
    assert_eq!(
        (exchange.outcome, exchange.waited_ns, exchange.latency_ns),
        (outcome, waited, None)
    );
    assert_eq!(exchange.response, None);
}

#[test]
fn half_closed_clients_still_read() {
    let mut world = World::live();
    world
        .handshake()
        .at(1)
        .client(ACK | Packet::FIN, 0, 0, PUT)
        .at(500)
        .server(ACK, 0, len(PUT) + 1, OK);
    assert_eq!(world.only().outcome, ExchangeOutcome::Answered);
}

/// The socket is still open: its process waits, regardless of the clock.
#[rstest]
#[case::half_closed_for_four_seconds(true, 4_000)]
#[case::half_closed_for_ten_minutes(true, 600_000)]
#[case::open_for_a_minute(false, 60_000)]
#[case::a_long_poll_of_an_hour(false, 3_600_000)]
fn an_answer_comes_as_long_as_the_socket_is_there(#[case] half_closed: bool, #[case] ms: u64) {
    let mut world = World::live();
    world.connect().socket(SocketState::SynSent, 0).handshake().at(1);
    if half_closed {
        world
            .client(ACK, 0, 0, PUT)
            .socket(SocketState::HalfClosed, 0)
            .client(ACK | Packet::FIN, len(PUT), 0, "");
    } else {
        world.client(ACK, 0, 0, PUT);
    }
    let sent = len(PUT) + u32::from(half_closed);
    world.wait(ms - 1);
    assert_eq!(world.exchanges().len(), 0, "nothing is decided yet");
    world.at(ms).server(ACK, 0, sent, OK).wait(20);
    let exchange = world.only();
    assert_eq!(exchange.outcome, ExchangeOutcome::Answered);
    assert_eq!(exchange.response.as_ref().unwrap().delivered, Some(true));
    assert_eq!(exchange.latency_ns, Some((ms - 1) * MS));
}

#[rstest]
#[case::the_process_closes("released", ExchangeOutcome::Closed)]
#[case::the_kernel_closes("closed", ExchangeOutcome::Closed)]
#[case::the_server_closes("server fin", ExchangeOutcome::Unanswered)]
#[case::the_server_resets("server rst", ExchangeOutcome::Reset)]
#[case::the_observer_stops("end", ExchangeOutcome::Open)]
fn a_half_closed_client_without_an_answer(#[case] how: &str, #[case] outcome: ExchangeOutcome) {
    let mut world = World::live();
    world
        .connect()
        .socket(SocketState::SynSent, 0)
        .handshake()
        .at(1)
        .client(ACK, 0, 0, PUT)
        .socket(SocketState::HalfClosed, 0)
        .client(ACK | Packet::FIN, len(PUT), 0, "")
        .wait(30_000);
    assert_eq!(world.exchanges().len(), 0);
    world.at(30_001);
    let sent = len(PUT) + 1;
    match how {
        "released" => world.socket(SocketState::Released, 0).wait(30_500),
        "closed" => world.socket(SocketState::Closed, 0).wait(30_500),
        "server fin" => world.server(ACK | Packet::FIN, 0, sent, "").wait(30_500),
        "server rst" => world.server(ACK | Packet::RST, 0, sent, "").wait(30_500),
        _ => world.end(),
    };
    let exchange = world.only();
    assert_eq!(exchange.outcome, outcome);
    let waited = (how != "end").then_some(30_000 * MS);
    assert_eq!(exchange.waited_ns, waited, "until it really left");
}

/// `close()` of a socket with `SO_LINGER` 0: the kernel sets an error and clears the addresses itself.
#[test]
fn a_client_that_aborts_is_no_server_that_resets() {
    let mut world = World::live();
    world
        .connect()
        .socket(SocketState::SynSent, 0)
        .handshake()
        .at(1)
        .client(ACK, 0, 0, PUT)
        .at(201)
        .socket(SocketState::Closed, 0)
        .client(ACK | Packet::RST, len(PUT), 0, "");
    let (local, remote) = (world.local, world.remote);
    (world.local, world.remote) = (address("0.0.0.0:0"), address("169.254.169.254:0"));
    world.socket(SocketState::ErrorReport, libc::ECONNRESET as u32);
    (world.local, world.remote) = (local, remote);
    world.wait(500);
    let exchange = world.only();
    assert_eq!(exchange.outcome, ExchangeOutcome::Closed);
    assert_eq!(exchange.connection.remote, "169.254.169.254:80");
    assert_eq!(exchange.connection.local.as_deref(), Some("10.0.1.5:43122"));
    // The server's reset is in the socket when it closes.
    let mut world = World::live();
    world
        .connect()
        .socket(SocketState::SynSent, 0)
        .handshake()
        .at(1)
        .client(ACK, 0, 0, PUT)
        .at(201)
        .socket(SocketState::Closed, libc::ECONNRESET as u32)
        .wait(500);
    assert_eq!(world.only().outcome, ExchangeOutcome::Reset);
}

/// Aborted while connecting: the client closed; not an error of the server.
#[test]
fn an_aborted_attempt_is_a_timeout() {
    let mut world = World::live();
    world.connect().socket(SocketState::SynSent, 0).syn().at(2_000);
    world
        .closes_unconnected(0)
        .socket(SocketState::ErrorReport, libc::ECONNRESET as u32)
        .wait(5_000);
    let failure = world.failure();
    assert_eq!((failure.outcome, failure.errno), (ConnectOutcome::Timeout, None));
}

/// Another program at the socket's cgroup may refuse what ours has let in: only the socket knows.
#[test]
fn a_syn_ack_that_is_refused_behind_the_hook_connects_nothing() {
    let mut world = World::live();
    world.connect().socket(SocketState::SynSent, 0);
    for at in [0, 1_000, 3_000] {
        world.at(at);
        let syn = world.raw(Direction::Request, Packet::SYN, ISN, 0, b"");
        world.both(syn);
        world.server(Packet::SYN | ACK, u32::MAX, 0, "").dropped(
            Direction::Response,
            SERVER_ISN,
            0,
            Packet::SYN | ACK,
            "SOCKET_FILTER",
            "sk_filter_trim_cap",
        );
    }
    world.at(5_000).closes_unconnected(libc::ETIMEDOUT as u32).wait(6_000);
    let failure = world.failure();
    assert_eq!(failure.outcome, ConnectOutcome::Timeout);
    assert_eq!((failure.syns, failure.wire_syns, failure.syn_acks), (3, 3, 3));
    assert_eq!(
        failure.dropped.as_ref().map(ToString::to_string).as_deref(),
        Some("SOCKET_FILTER@sk_filter_trim_cap")
    );
    assert_eq!(world.exchanges().len(), 0);
}

/// Without the drop's record as well: the client sends its SYN again, and its socket closes unconnected.
#[test]
fn a_syn_ack_that_vanishes_behind_the_hook_connects_nothing() {
    let mut world = World::live();
    world.connect().socket(SocketState::SynSent, 0);
    for at in [0, 1_000] {
        world.at(at);
        let syn = world.raw(Direction::Request, Packet::SYN, ISN, 0, b"");
        world.both(syn);
        world.server(Packet::SYN | ACK, u32::MAX, 0, "");
    }
    world.at(2_000).closes_unconnected(0).wait(7_000);
    let failure = world.failure();
    assert_eq!(
        (
            failure.outcome,
            failure.syn_acks,
            failure.dropped.as_ref().map(ToString::to_string).as_deref()
        ),
        (ConnectOutcome::Timeout, 2, None)
    );
}

/// A connection that is made ahead of its first request, and one that is never used.
#[test]
fn an_idle_connection_is_no_failure() {
    let mut world = World::live();
    world
        .connect()
        .socket(SocketState::SynSent, 0)
        .handshake()
        .wait(600_000);
    world.at(600_001).socket(SocketState::Closed, 0).wait(605_000);
    assert_eq!(world.connects().len(), 0);
    // The kernel goes on trying for as long as it is configured to.
    let mut world = World::live();
    world.connect().socket(SocketState::SynSent, 0).syn().wait(400_000);
    assert_eq!(world.connects().len(), 0, "it still tries");
    world
        .at(500_000)
        .closes_unconnected(libc::ETIMEDOUT as u32)
        .wait(505_000);
    assert_eq!(world.failure().outcome, ConnectOutcome::Timeout);
}

/// A lost event may have been the end of a socket. Then a long silence decides.
#[test]
fn a_socket_whose_end_may_have_been_lost_is_given_up_by_time() {
    let mut world = World::live();
    world
        .connect()
        .socket(SocketState::SynSent, 0)
        .handshake()
        .at(1)
        .client(ACK, 0, 0, PUT)
        .wait(60_000)
        .send(&Event::Loss(LossCounts {
            ring_buffer: 1,
            ..LossCounts::default()
        }))
        .wait(800_000);
    assert_eq!(world.exchanges().len(), 0);
    world.wait(1_000_000);
    assert_eq!(world.only().outcome, ExchangeOutcome::Unanswered);
}

/// A bound is reached: what is known goes out, and is counted.
#[test]
fn a_connection_that_makes_room_is_reported() {
    let mut world = World::live();
    world.table = FlowTable::new(
        Limits {
            flows: 1,
            ..Limits::default()
        },
        Hasher::with_salt(1, 2),
    );
    world
        .connect()
        .socket(SocketState::SynSent, 0)
        .handshake()
        .at(1)
        .client(ACK, 0, 0, PUT);
    world.flow = FlowId::Cookie(0x43);
    world.at(50).connect();
    assert_eq!(world.only().outcome, ExchangeOutcome::Open);
    assert_eq!(world.table.loss().evicted, 1);
}

/// A capture shows no socket: what closes its sending side may read on until the other side ends as well.
#[test]
fn a_half_closed_client_in_a_capture() {
    let mut world = World::capture();
    world
        .handshake()
        .at(1)
        .client(ACK | Packet::FIN, 0, 0, PUT)
        .wait(240_000);
    assert_eq!(world.exchanges().len(), 0);
    let whole = format!("{OK}\r\nContent-Length: 0\r\n\r\n");
    world
        .at(240_001)
        .server(ACK, 0, len(PUT) + 1, &whole)
        .client(ACK, len(PUT) + 1, len(&whole), "");
    assert_eq!(world.only().outcome, ExchangeOutcome::Answered);
    let mut world = World::capture();
    world
        .handshake()
        .at(1)
        .client(ACK | Packet::FIN, 0, 0, PUT)
        .wait(5_000)
        .end();
    assert_eq!(world.only().outcome, ExchangeOutcome::Closed);
}

#[test]
fn keep_alive() {
    let mut world = World::live();
    world.handshake();
    let (mut sent, mut got) = (0, 0);
    for number in 1..=5_u32 {
        let request = get(&format!("/latest/meta-data/{number}"));
        world.at(u64::from(number) * 10).client(ACK, sent, got, &request);
        sent += len(&request);
        world.at(u64::from(number) * 10 + 1).server(ACK, got, sent, OK);
        got += 300;
        let exchanges = world.exchanges();
        let exchange = exchanges.last().unwrap();
        assert_eq!(exchanges.len(), number as usize);
        assert_eq!(exchange.connection.exchange, number);
        assert_eq!(exchange.request.path, Some(format!("/latest/meta-data/{number}")));
        assert_eq!(exchange.latency_ns, Some(MS));
        assert_eq!(exchange.connect_ns.is_some(), number == 1);
    }
}

#[test]
fn pipelined() {
    let mut world = World::live();
    let (one, two) = (get("/latest/meta-data/1"), get("/latest/meta-data/2"));
    world.handshake().at(1).client(ACK, 0, 0, &format!("{one}{two}"));
    let asked = len(&one) + len(&two);
    world
        .at(2)
        .server(ACK, 0, asked, OK)
        .at(3)
        .server(ACK, 200, asked, "HTTP/1.1 404 Not");
    let status: Vec<_> = world
        .exchanges()
        .iter()
        .map(|exchange| exchange.response.as_ref().unwrap().status)
        .collect();
    assert_eq!(status, [Some(200), Some(404)]);
}

#[test]
fn answers_hidden_behind_another_are_not_called_missing() {
    let mut world = World::live();
    let (one, two) = (get("/latest/meta-data/1"), get("/latest/meta-data/2"));
    world.handshake().at(1).client(ACK, 0, 0, &format!("{one}{two}"));
    world
        .at(2)
        .server(ACK, 0, len(&one) + len(&two), OK)
        .at(9)
        .client(ACK | Packet::FIN, 0, 0, "")
        .wait(5000);
    assert_eq!(world.only().request.path.as_deref(), Some("/latest/meta-data/1"));
    assert_eq!(world.table.loss().truncated, 1);
}

#[test]
fn long_heads_in_several_events() {
    let mut world = World::live();
    let filler = "x".repeat(3000);
    let head = format!("GET / HTTP/1.1\r\nX-Filler: {filler}\r\nX-AWS-EC2-Metadata-Token : S3CR3T\r\n\r\n");
    world.handshake().at(1);
    for (at, part) in head.as_bytes().chunks(512).enumerate() {
        let mut packet = world.raw(
            Direction::Request,
            ACK,
            ISN.wrapping_add(1 + at as u32 * 512),
            SERVER_ISN.wrapping_add(1),
            part,
        );
        packet.payload_len = len(&head) - at as u32 * 512;
        world.send(&Event::Packet(packet));
    }
    world.server(ACK, 0, len(&head), OK);
    assert_eq!(world.only().request.imds_version, Some(ImdsVersion::V2));
    assert!(world.only().request.token.is_some());
    assert_eq!(world.table.loss(), LossCounts::default());
}

#[test]
fn cut_heads_say_what_they_show() {
    let mut world = World::live();
    world.handshake().at(1);
    let mut packet = world.raw(
        Direction::Request,
        ACK,
        ISN.wrapping_add(1),
        SERVER_ISN.wrapping_add(1),
        b"GET /latest/user-data HTTP/1.1\r\nX-F: xx",
    );
    packet.payload_len = 9000;
    packet.cut = true;
    world.send(&Event::Packet(packet)).server(ACK, 0, 9000, OK);
    assert_eq!(world.only().request.path.as_deref(), Some("/latest/user-data"));
    assert_eq!(world.only().request.imds_version, None);
    assert_eq!(world.table.loss().truncated, 1);
    let next = get("/latest/meta-data/");
    world
        .at(9)
        .client(ACK, 9000, 300, &next)
        .server(ACK, 300, 9000 + len(&next), OK);
    assert_eq!(world.exchanges()[1].request.imds_version, Some(ImdsVersion::V2));
}

#[test]
fn what_is_no_http() {
    let mut world = World::live();
    world
        .handshake()
        .at(1)
        .client(ACK, 0, 0, "\u{16}\u{3}\u{1}hello")
        .at(2)
        .server(ACK, 0, 8, "HTTP/1.1 400 Bad");
    let exchange = world.only();
    assert_eq!(
        (&exchange.request.method, exchange.request.imds_version),
        (&None, Some(ImdsVersion::Other))
    );
    assert_eq!(world.table.loss().unparsed, 1);
}

#[test]
fn a_body_is_no_request() {
    let mut world = World::live();
    let put = "PUT /latest/api/token HTTP/1.1\r\nContent-Length: 14\r\n\r\nGET / HTTP/1.1";
    world
        .handshake()
        .at(1)
        .client(ACK, 0, 0, put)
        .server(ACK, 0, len(put), OK);
    let next = get("/latest/");
    world
        .client(ACK, len(put), 200, &next)
        .server(ACK, 200, len(put) + len(&next), OK)
        .end();
    assert_eq!(world.exchanges().len(), 2);
}

#[test]
fn continue_is_no_answer() {
    let mut world = World::live();
    world
        .handshake()
        .client(ACK, 0, 0, PUT)
        .server(ACK, 0, len(PUT), "HTTP/1.1 100 Con");
    assert!(world.exchanges().is_empty());
    world.server(ACK, 25, len(PUT), OK);
    assert_eq!(world.only().response.as_ref().unwrap().status, Some(200));
}

#[test]
fn missing_bytes_reset_the_pair() {
    let mut world = World::live();
    let request = get("/latest/meta-data/");
    let (first, second) = request.split_at(20);
    world.handshake().at(1).client(ACK, 0, 0, first);
    // A segment between them is never seen, and a whole request may have been in it.
    world
        .at(2)
        .client(ACK, 50, 0, second)
        .at(3)
        .client(ACK, 50 + len(second), 0, PUT);
    world.at(100).server(ACK, 0, 50 + len(second) + len(PUT), OK).end();
    assert!(world.exchanges().is_empty(), "{:#?}", world.facts);
    assert!(world.table.loss().truncated > 0);
}

#[test]
fn starting_in_mid_stream() {
    let mut world = World::live();
    world
        .client(ACK, 1000, 70, "ta-token: S3CR3TS3CR3T\r\n\r\n")
        .server(ACK, 70, 1026, OK);
    world
        .at(5)
        .client(ACK, 1026, 300, PUT)
        .at(6)
        .server(ACK, 300, 1026 + len(PUT), OK);
    assert_eq!(world.only().request.imds_version, Some(ImdsVersion::Token));
}

#[test]
fn retransmitted_requests_are_counted() {
    let mut world = World::live();
    world.handshake().at(1).client(ACK, 0, 0, PUT).at(210);
    let mut again = world.raw(
        Direction::Request,
        ACK,
        ISN.wrapping_add(1),
        SERVER_ISN.wrapping_add(1),
        PUT.as_bytes(),
    );
    again.retransmit = true;
    world.both(again).at(220).server(ACK, 0, len(PUT), OK);
    assert_eq!(world.only().request.retransmits, 1);
    assert_eq!(world.only().latency_ns, Some(219 * MS));
}

// Captures.

#[test]
fn healthy_capture() {
    let mut world = World::capture();
    let response = "HTTP/1.1 200 OK\r\nServer: EC2ws\r\nContent-Length: 56\r\n\r\n";
    world
        .handshake()
        .at(1)
        .client(ACK, 0, 0, PUT)
        .at(2)
        .server(ACK, 0, len(PUT), response);
    assert!(world.exchanges().is_empty(), "not acknowledged yet");
    world.at(3).client(ACK, len(PUT), len(response) + 56, "");
    let exchange = world.only();
    let response = exchange.response.as_ref().unwrap();
    assert_eq!(response.server.as_deref(), Some("EC2ws"));
    assert_eq!((response.via_proxy, response.delivered), (Some(false), Some(true)));
    assert_eq!((exchange.latency_ns, exchange.waited_ns), (Some(MS), Some(MS)));
}

#[rstest]
#[case::icmp(true, 1)]
#[case::repeated(false, 3)]
fn lost_token_response_in_a_capture(#[case] icmp: bool, #[case] times: u64) {
    let mut world = World::capture();
    world.handshake().at(1).client(ACK, 0, 0, PUT);
    for at in 0..times {
        world
            .at(2 + at * 200)
            .arrives(ACK, 0, len(PUT), "HTTP/1.1 200 OK\r\n\r\n", 1);
        if icmp {
            let mut quote = world.server_packet(ACK, 0, len(PUT), "", 1);
            quote.direction = Direction::Request;
            quote.icmp = Some(IcmpError {
                v6: false,
                kind: 11,
                code: 0,
            });
            world.send(&Event::Packet(quote));
        }
    }
    world.at(1001).client(ACK | Packet::FIN, len(PUT), 0, "");
    let exchange = world.only();
    assert_eq!(
        (exchange.outcome, exchange.waited_ns),
        (ExchangeOutcome::Lost, Some(1000 * MS))
    );
    let response = exchange.response.as_ref().unwrap();
    assert_eq!(
        (response.ttl, response.delivered, u64::from(response.retransmits)),
        (Some(1), Some(false), times - 1)
    );
    assert_eq!(
        response.icmp.map(|icmp| icmp.to_string()).as_deref(),
        icmp.then_some("11/0")
    );
}

#[test]
fn a_capture_that_ends_too_soon_says_null() {
    let mut world = World::capture();
    world
        .handshake()
        .at(1)
        .client(ACK, 0, 0, PUT)
        .at(2)
        .server(ACK, 0, len(PUT), "HTTP/1.1 200 OK\r\n\r\n")
        .end();
    assert_eq!(world.only().outcome, ExchangeOutcome::Answered);
    assert_eq!(world.only().response.as_ref().unwrap().delivered, None);
}

/// tcpdump -i any on a node: the pod's side and, behind NAT, the uplink's.
#[test]
fn both_sides_of_nat_are_one_connection() {
    let mut world = World::capture();
    let (pod, node) = (address("10.0.1.5:43122"), address("192.168.0.10:6000"));
    let side = |world: &mut World, local: SocketAddr| {
        world.local = local;
        world.flow = FlowId::Addresses {
            local,
            remote: world.remote,
        };
    };
    let each = |world: &mut World, ttls: [(SocketAddr, u8); 2], packet: Packet| {
        for (local, ttl) in ttls {
            side(world, local);
            let mut packet = packet.clone();
            packet.local = local;
            packet.flow = world.flow;
            packet.ttl = ttl;
            world.send(&Event::Packet(packet));
        }
    };
    let out = [(pod, 64), (node, 63)];
    let back = [(node, 255), (pod, 254)];
    let first = SERVER_ISN.wrapping_add(1);
    let syn = world.raw(Direction::Request, Packet::SYN, ISN, 0, b"");
    each(&mut world, out, syn);
    let syn_ack = world.raw(
        Direction::Response,
        Packet::SYN | ACK,
        SERVER_ISN,
        ISN.wrapping_add(1),
        b"",
    );
    each(&mut world, back, syn_ack);
    world.at(1);
    let put = world.raw(Direction::Request, ACK, ISN.wrapping_add(1), first, PUT.as_bytes());
    each(&mut world, out, put);
    let ok = world.raw(
        Direction::Response,
        ACK,
        first,
        ISN.wrapping_add(1 + len(PUT)),
        b"HTTP/1.1 200 OK\r\n\r\n",
    );
    each(&mut world, back, ok);
    let ack = world.raw(
        Direction::Request,
        ACK,
        ISN.wrapping_add(1 + len(PUT)),
        first.wrapping_add(19),
        b"",
    );
    each(&mut world, out, ack);
    let exchange = world.only();
    assert_eq!(exchange.connection.local.as_deref(), Some("10.0.1.5:43122"));
    assert_eq!((exchange.request.ttl, exchange.request.retransmits), (Some(63), 0));
    let response = exchange.response.as_ref().unwrap();
    assert_eq!((response.ttl, response.retransmits), (Some(255), 0));
    world.end();
    assert_eq!(world.facts.len(), 1);
}

#[test]
fn a_port_used_again_is_another_connection() {
    let mut world = World::capture();
    world.handshake().at(1).client(ACK, 0, 0, PUT).at(2);
    let syn = world.raw(Direction::Request, Packet::SYN, 5_000_000, 0, b"");
    world.at(1000).send(&Event::Packet(syn));
    assert_eq!(world.only().outcome, ExchangeOutcome::Closed);
    let put = world.raw(Direction::Request, ACK, 5_000_001, 77, PUT.as_bytes());
    world.send(&Event::Packet(put)).end();
    let exchanges = world.exchanges();
    assert_ne!(exchanges[0].connection.id, exchanges[1].connection.id);
    assert_eq!(exchanges[1].connection.exchange, 1);
}

/// The server answers the SYN with an acknowledgement of the port's connection before; the client refuses it, and sends the SYN again.
#[test]
fn a_port_in_time_wait_ends_no_attempt() {
    for mut world in [World::live(), World::capture()] {
        world.syn();
        let reset = world.raw(Direction::Request, Packet::RST, 777, 0, b"");
        world.at(1).send(&Event::Packet(reset)).at(200).handshake();
        world
            .at(201)
            .client(ACK, 0, 0, PUT)
            .at(202)
            .server(ACK, 0, len(PUT), OK);
        world.at(203).client(ACK, len(PUT), 200, "").end();
        assert_eq!(world.only().outcome, ExchangeOutcome::Answered);
        assert!(world.connects().is_empty());
    }
}

#[test]
fn a_segment_seen_at_the_uplink_first_is_its_sockets() {
    let mut world = World::live();
    let put = world.raw(
        Direction::Request,
        ACK,
        ISN.wrapping_add(1),
        SERVER_ISN.wrapping_add(1),
        PUT.as_bytes(),
    );
    let behind_nat = |packet: &Packet| {
        let local = address("192.168.0.10:5000");
        Packet {
            vantage: Vantage::Uplink,
            flow: FlowId::Addresses {
                local,
                remote: packet.remote,
            },
            local,
            sender: None,
            ttl: packet.ttl - 1,
            ..packet.clone()
        }
    };
    world.send(&Event::Packet(behind_nat(&put)));
    world.at(1).send(&Event::Packet(put));
    world.at(2);
    let ok = world.server_packet(ACK, 0, len(PUT), OK, 2);
    world
        .send(&Event::Packet(behind_nat(&ok)))
        .send(&Event::Packet(ok))
        .end();
    let exchange = world.only();
    assert_eq!((exchange.flow, exchange.sender), (world.flow, Some(World::sender())));
    assert_eq!(
        (exchange.request.ttl, exchange.request.ttl_on_wire),
        (Some(63), Some(true))
    );
    assert_eq!(exchange.response.as_ref().unwrap().ttl, Some(1));
    assert_eq!(world.facts.len(), 1);
}

#[test]
fn where_a_packet_goes_instead_is_recorded() {
    let mut world = World::live();
    world.connect().syn();
    let event = Event::Redirection(Redirection {
        time: world.time(),
        flow: world.flow,
        local: world.local,
        remote: world.remote,
        to: address("127.0.0.1:1338"),
    });
    world.send(&event).client(ACK, 0, 0, PUT).at(1);
    world.vantage = Vantage::Socket;
    let ok = world.server_packet(ACK, 0, len(PUT), OK, 64);
    world.send(&Event::Packet(ok)).end();
    assert_eq!(world.only().connection.redirected_to.as_deref(), Some("127.0.0.1:1338"));
}

// Attempts.

#[rstest]
#[case(errno::ECONNREFUSED, ConnectOutcome::Refused)]
#[case(errno::ENETUNREACH, ConnectOutcome::NoRoute)]
#[case(errno::EINVAL, ConnectOutcome::NoRoute)]
#[case(errno::EHOSTUNREACH, ConnectOutcome::HostUnreachable)]
#[case(errno::EPERM, ConnectOutcome::Denied)]
#[case(errno::EACCES, ConnectOutcome::Denied)]
#[case(errno::ETIMEDOUT, ConnectOutcome::Timeout)]
#[case(99, ConnectOutcome::Error)]
fn errnos(#[case] errno: i32, #[case] outcome: ConnectOutcome) {
    let mut world = World::live();
    world
        .connect()
        .at(1)
        .socket(SocketState::SynSent, 0)
        .socket(SocketState::Closed, 0)
        .returned(errno)
        .wait(200);
    let failure = world.failure();
    assert_eq!(
        (failure.outcome, failure.errno, failure.elapsed_ns),
        (outcome, Some(errno), MS)
    );
    assert_eq!(failure.sender, Some(World::sender()));
    world.wait(200_000).end();
    assert_eq!(world.facts.len(), 1);
}

#[test]
fn refused_by_the_server() {
    let mut world = World::live();
    world
        .connect()
        .syn()
        .returned(errno::EINPROGRESS)
        .at(1)
        .server(ACK | Packet::RST, 0, 0, "");
    world
        .socket(SocketState::ErrorReport, errno::ECONNREFUSED as u32)
        .socket(SocketState::Closed, 0)
        .wait(200);
    let failure = world.failure();
    assert_eq!(
        (failure.outcome, failure.errno),
        (ConnectOutcome::Refused, Some(errno::ECONNREFUSED))
    );
    assert_eq!(failure.syns, 1);
}

#[test]
fn an_end_waits_for_a_drop_that_waits_for_its_name() {
    let mut world = World::live();
    world.connect().syn();
    let since = world.time();
    world.table.hold(Some(since));
    // Neither the time of other events nor the clock decides.
    world.at(1000).closes_unconnected(0);
    world.at(9000).closes_unconnected(0).wait(9000);
    assert!(world.connects().is_empty(), "{:#?}", world.facts);
    world.table.hold(None);
    world.at(0).dropped(
        Direction::Request,
        ISN,
        0,
        Packet::SYN,
        "BPF_CGROUP_EGRESS",
        "__ip_finish_output",
    );
    world.wait(9100);
    assert_eq!(
        world.failure().dropped.as_ref().map(ToString::to_string).as_deref(),
        Some("BPF_CGROUP_EGRESS@__ip_finish_output")
    );
}

#[test]
fn neighbour_that_never_answers() {
    let mut world = World::live();
    world
        .connect()
        .syn()
        .returned(errno::EINPROGRESS)
        .at(2000)
        .socket(SocketState::Closed, 0);
    world
        .at(3050)
        .dropped(
            Direction::Request,
            ISN,
            0,
            Packet::SYN,
            "NEIGH_FAILED",
            "neigh_invalidate",
        )
        .wait(3051);
    let failure = world.failure();
    assert_eq!(failure.outcome, ConnectOutcome::Timeout);
    assert_eq!(
        failure.dropped.as_ref().map(ToString::to_string).as_deref(),
        Some("NEIGH_FAILED@neigh_invalidate")
    );
    assert_eq!(failure.elapsed_ns, 2000 * MS);
    assert!(world.facts.iter().any(|fact| matches!(fact.body, Body::Drop(_))));
    world.wait(60_000).end();
    assert_eq!(world.connects().len(), 1);
}

#[test]
fn silence() {
    let mut world = World::live();
    world.connect();
    for ms in [0, 1000, 3000] {
        let mut syn = world.at(ms).raw(Direction::Request, Packet::SYN, ISN, 0, b"");
        syn.retransmit = ms > 0;
        world.both(syn);
    }
    world.at(5000).socket(SocketState::Closed, 0).wait(5100);
    let failure = world.failure();
    assert_eq!((failure.outcome, failure.errno), (ConnectOutcome::Timeout, None));
    assert_eq!((failure.syns, failure.wire_syns), (3, 3));
    assert_eq!(failure.elapsed_ns, 5000 * MS);
}

#[test]
fn a_socket_that_tries_twice_fails_twice() {
    let mut world = World::live();
    world
        .connect()
        .at(1)
        .returned(errno::ECONNREFUSED)
        .at(2)
        .connect()
        .at(3)
        .returned(errno::ECONNREFUSED)
        .wait(500)
        .end();
    assert_eq!(world.connects().len(), 2);
}

#[test]
fn asking_again_how_it_went_is_no_new_attempt() {
    let mut world = World::live();
    world
        .connect()
        .syn()
        .returned(errno::EINPROGRESS)
        .at(1)
        .connect()
        .returned(errno::EALREADY)
        .at(2)
        .handshake();
    world
        .connect()
        .returned(errno::EISCONN)
        .client(ACK, 0, 0, PUT)
        .server(ACK, 0, len(PUT), OK)
        .end();
    assert_eq!(world.facts.len(), 1, "{:#?}", world.facts);
    assert_eq!(world.only().outcome, ExchangeOutcome::Answered);
}

#[test]
fn a_socket_that_fails_and_then_connects() {
    let mut world = World::live();
    world
        .connect()
        .syn()
        .returned(errno::EINPROGRESS)
        .at(1)
        .socket(SocketState::ErrorReport, errno::ECONNREFUSED as u32);
    world.socket(SocketState::Closed, 0).at(5).connect();
    assert_eq!(world.failure().outcome, ConnectOutcome::Refused);
    let (isn, first) = (9_000_000, 500);
    let syn = world.raw(Direction::Request, Packet::SYN, isn, 0, b"");
    let put = world.raw(Direction::Request, ACK, isn + 1, first, PUT.as_bytes());
    let ok = world.raw(Direction::Response, ACK, first, isn + 1 + len(PUT), OK.as_bytes());
    world
        .send(&Event::Packet(syn))
        .send(&Event::Packet(put))
        .send(&Event::Packet(ok))
        .end();
    assert_eq!(world.only().outcome, ExchangeOutcome::Answered);
    assert_eq!(world.connects().len(), 1);
}

#[test]
fn asking_a_connected_socket_and_leaving_is_no_failure() {
    let mut world = World::live();
    world.connect().handshake().at(1).connect().returned(errno::EISCONN);
    world
        .at(2)
        .client(ACK | Packet::FIN, 0, 0, "")
        .socket(SocketState::Closed, 0)
        .wait(9000)
        .end();
    assert!(world.facts.is_empty(), "{:#?}", world.facts);
}

/// A sandbox with a network stack of its own: the uplink sees that something is asked, and what TTL the answer has.
#[test]
fn a_client_without_a_socket_here() {
    let mut world = World::capture();
    world.vantage = Vantage::Uplink;
    let bare = |packet: Packet| {
        Event::Packet(Packet {
            data: Bytes::new(),
            ..packet
        })
    };
    let syn = world.raw(Direction::Request, Packet::SYN, ISN, 0, b"");
    let put = world.raw(
        Direction::Request,
        ACK,
        ISN.wrapping_add(1),
        SERVER_ISN.wrapping_add(1),
        PUT.as_bytes(),
    );
    world.send(&bare(syn)).at(1).send(&bare(put));
    for ms in [2, 202] {
        world.at(ms).arrives(ACK, 0, len(PUT), OK, 1);
    }
    world.wait(21_000);
    let exchange = world.only();
    assert_eq!((exchange.outcome, exchange.ifindex), (ExchangeOutcome::Lost, 2));
    assert_eq!((&exchange.request.method, exchange.request.imds_version), (&None, None));
    assert_eq!(exchange.response.as_ref().unwrap().ttl, Some(1));
    assert!(world.connects().is_empty());
}

/// A VLAN device and its parent, a bond and its slave: one packet passes TC twice.
#[test]
fn copies_at_two_uplinks_count_once() {
    let mut world = World::live();
    let syn = world.raw(Direction::Request, Packet::SYN, ISN, 0, b"");
    let copy = |mut packet: Packet, ifindex: u32| {
        packet.vantage = Vantage::Uplink;
        packet.ifindex = ifindex;
        packet.time = packet.time.plus_ns(10_000 * u64::from(ifindex));
        Event::Packet(packet)
    };
    world
        .connect()
        .send(&Event::Packet(syn.clone()))
        .send(&copy(syn.clone(), 3))
        .send(&copy(syn, 4));
    world.at(2000).socket(SocketState::Closed, 0).wait(9000);
    assert_eq!((world.failure().syns, world.failure().wire_syns), (1, 1));

    let mut world = World::live();
    world.handshake().at(1).client(ACK, 0, 0, PUT).at(2);
    let response = world.server_packet(ACK, 0, len(PUT), OK, 1);
    world.send(&copy(response.clone(), 3)).send(&copy(response, 4));
    world.at(1001).client(ACK | Packet::FIN, len(PUT), 0, "");
    assert_eq!(world.only().response.as_ref().unwrap().retransmits, 0);
}

#[test]
fn denied_behind_the_socket() {
    let mut world = World::live();
    world.connect().syn().dropped(
        Direction::Request,
        ISN,
        0,
        Packet::SYN,
        "BPF_CGROUP_EGRESS",
        "__ip_finish_output",
    );
    world.at(1000).socket(SocketState::Closed, 0).wait(1200);
    assert_eq!(
        world.failure().dropped.as_ref().map(ToString::to_string).as_deref(),
        Some("BPF_CGROUP_EGRESS@__ip_finish_output")
    );
}

#[test]
fn connect_without_any_other_hook_reports_nothing_by_silence() {
    let mut world = World::live();
    world.connect().returned(errno::EINPROGRESS).wait(200_000).end();
    assert!(world.facts.is_empty());
}

#[test]
fn attempts_in_a_capture() {
    let mut world = World::capture();
    world.syn().at(1000).syn().wait(9000);
    let failure = world.failure();
    assert_eq!(
        (failure.outcome, failure.syns, failure.elapsed_ns),
        (ConnectOutcome::Timeout, 2, 1000 * MS)
    );

    let mut world = World::capture();
    world.syn().at(1).server(ACK | Packet::RST, 0, 0, "").wait(500).end();
    assert_eq!(world.failure().outcome, ConnectOutcome::Refused);

    let mut world = World::capture();
    let mut quote = world.syn().raw(Direction::Request, Packet::SYN, ISN, 0, b"");
    quote.direction = Direction::Response;
    quote.icmp = Some(IcmpError {
        v6: false,
        kind: 3,
        code: 1,
    });
    world.send(&Event::Packet(quote)).wait(500);
    let failure = world.failure();
    assert_eq!(
        (failure.outcome, failure.icmp.map(|icmp| icmp.to_string()).as_deref()),
        (ConnectOutcome::HostUnreachable, Some("3/1"))
    );
}

#[test]
fn housekeeping_is_no_drop() {
    let mut world = World::live();
    world.handshake();
    for (reason, location) in [
        ("QUEUE_PURGE", "sk_stream_kill_queues"),
        ("NOT_SPECIFIED", "sk_stream_kill_queues+0x5"),
        ("TCP_OLD_DATA", "tcp_data_queue"),
    ] {
        world.dropped(Direction::Request, ISN, 5, Packet::FIN, reason, location);
    }
    world.dropped(Direction::Request, ISN, 0, ACK, "NETFILTER_DROP", "nft_do_chain");
    assert!(world.facts.is_empty());
}

/// A head without end and an answer that waits, on a connection that falls silent: time must pass all the same.
#[test]
fn half_a_request_behind_a_whole_one() {
    let mut world = World::live();
    world
        .handshake()
        .at(1)
        .client(ACK, 0, 0, PUT)
        .at(19_990)
        .client(ACK, len(PUT), 0, "GET /latest/");
    world.at(20_500).arrives(ACK, 0, len(PUT), OK, 1).wait(60_000);
    let outcomes: Vec<_> = world.exchanges().iter().map(|exchange| exchange.outcome).collect();
    assert!(outcomes.len() <= 2 && !outcomes.is_empty(), "{:#?}", world.facts);
}

#[test]
fn bounded_tables() {
    let limits = Limits {
        flows: 8,
        ..Limits::default()
    };
    let mut world = World::live();
    world.table = FlowTable::new(limits, Hasher::with_salt(1, 2));
    for cookie in 0..100 {
        world.flow = FlowId::Cookie(cookie);
        world.handshake().client(ACK, 0, 0, PUT);
    }
    assert_eq!(world.table.len(), 8);
    assert_eq!(world.table.loss().evicted, 92);
}

// Properties.

fn conversation(vantage: Vantage, requests: &[String], bodies: &[usize]) -> (World, Vec<Packet>) {
    let world = if vantage == Vantage::Capture {
        World::capture()
    } else {
        World::live()
    };
    let (mut sent, mut got) = (0, 0);
    let mut packets = Vec::new();
    for (request, body) in requests.iter().zip(bodies) {
        let request_seq = ISN.wrapping_add(1).wrapping_add(sent);
        let response_seq = SERVER_ISN.wrapping_add(1).wrapping_add(got);
        packets.push(world.raw(Direction::Request, ACK, request_seq, response_seq, request.as_bytes()));
        sent += len(request);
        let head = format!("HTTP/1.1 200 OK\r\nServer: EC2ws\r\nContent-Length: {body}\r\n\r\n");
        let data = if vantage == Vantage::Capture {
            head.as_str()
        } else {
            &head[..16]
        };
        let ack = ISN.wrapping_add(1).wrapping_add(sent);
        let mut response = world.raw(Direction::Response, ACK, response_seq, ack, data.as_bytes());
        response.payload_len = len(&head) + *body as u32;
        got += response.payload_len;
        packets.push(response);
        let end = SERVER_ISN.wrapping_add(1).wrapping_add(got);
        packets.push(world.raw(Direction::Request, ACK, ack, end, b""));
    }
    (world, packets)
}

/// Cuts a packet at `cuts`; of what has no data only the length is cut.
fn split(packet: &Packet, cuts: &[usize]) -> Vec<Packet> {
    let total = packet.payload_len as usize;
    let mut ends: Vec<usize> = cuts
        .iter()
        .map(|cut| cut % total.max(1))
        .filter(|&cut| cut > 0)
        .collect();
    ends.push(total);
    ends.sort_unstable();
    ends.dedup();
    let mut from = 0;
    ends.into_iter()
        .map(|to| {
            let mut part = packet.clone();
            let held = packet.data.len();
            part.data = packet.data.slice(from.min(held)..to.min(held));
            part.seq = packet.seq.wrapping_add(from as u32);
            part.payload_len = (to - from) as u32;
            from = to;
            part
        })
        .collect()
}

type Seen = (u32, Option<String>, Option<String>, ExchangeOutcome, Option<u16>);

fn summary(world: &World) -> Vec<Seen> {
    world
        .exchanges()
        .iter()
        .map(|exchange| {
            (
                exchange.connection.exchange,
                exchange.request.path.clone(),
                exchange.request.token.clone(),
                exchange.outcome,
                exchange.response.as_ref().and_then(|response| response.status),
            )
        })
        .collect()
}

/// Clients in an arbitrary history of hooks and NAT. Clients 0 and 1 have sockets of this host, client 2 is a virtual machine.
#[derive(Clone, Debug)]
struct History {
    /// Whose next segments come, and what is seen of them.
    turns: Vec<Turn>,
    /// The hook at the sockets is attached from this turn on.
    socket_from: usize,
    /// The virtual machine comes last and gets the wire's port of client 0.
    port_again: bool,
}

#[derive(Clone, Debug)]
struct Turn {
    client: usize,
    /// The uplink that this goes through is observed.
    wire: bool,
    /// The kernel knows whose the packet at the uplink is.
    joined: bool,
    /// The event of the uplink comes before that of the socket.
    wire_first: bool,
    /// NAT has given the connection another port.
    remapped: bool,
    after_ms: u64,
}

fn histories() -> impl Strategy<Value = History> {
    let turn = (
        0..3_usize,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        0..8_u8,
        1..400_u64,
    )
        .prop_map(|(client, wire, joined, wire_first, remapped, after_ms)| Turn {
            client,
            wire,
            joined,
            wire_first,
            remapped: remapped == 0,
            after_ms,
        });
    (proptest::collection::vec(turn, 1..40), 0..12_usize, any::<bool>()).prop_map(|(turns, socket_from, port_again)| {
        History {
            turns,
            socket_from,
            port_again,
        }
    })
}

/// Plays it; gives the facts, and each request with its client and whether its socket's hook saw it.
fn play(history: &History) -> (Vec<Fact>, Vec<(String, usize, bool)>) {
    let mut world = World::live();
    let mut turns = history.turns.clone();
    if history.port_again {
        turns.sort_by_key(|turn| turn.client == 2);
    }
    let last_of_first = turns.iter().rposition(|turn| turn.client == 0);
    let (mut steps, mut maps) = ([0_u32; 3], [0_u16; 3]);
    let (mut sent, mut got) = ([0_u32; 3], [0_u32; 3]);
    let mut requests = Vec::new();
    for (at, turn) in turns.iter().enumerate() {
        let client = turn.client;
        world.ms += turn.after_ms;
        maps[client] += u16::from(turn.remapped);
        let port = match client {
            2 if history.port_again => 5000,
            _ => 5000 + 100 * client as u16,
        } + maps[client];
        let (isn, server_isn) = (
            ISN.wrapping_add(client as u32 * 1_000_000),
            SERVER_ISN.wrapping_add(client as u32 * 5_000_000),
        );
        let at_socket = client != 2 && at >= history.socket_from;
        let show = |world: &mut World, direction, flags, seq, ack, data: &str| {
            let mut own = world.raw(direction, flags, seq, ack, data.as_bytes());
            own.vantage = Vantage::Socket;
            own.flow = FlowId::Cookie(client as u64 + 1);
            own.local = address(&format!("10.88.0.{}:40000", client + 2));
            own.sender = (direction == Direction::Request).then(|| sender_of(client));
            let local = address(&format!("192.168.0.10:{port}"));
            let joined = turn.joined && at_socket;
            let wire = Packet {
                vantage: Vantage::Uplink,
                flow: if joined {
                    own.flow
                } else {
                    FlowId::Addresses {
                        local,
                        remote: own.remote,
                    }
                },
                local,
                sender: None,
                data: if joined && direction == Direction::Request {
                    Bytes::new()
                } else {
                    own.data.clone()
                },
                ..own.clone()
            };
            let mut sightings = Vec::new();
            if at_socket {
                sightings.push(own);
            }
            if turn.wire {
                sightings.push(wire);
            }
            if turn.wire_first {
                sightings.reverse();
            }
            for (place, mut packet) in sightings.into_iter().enumerate() {
                packet.time = packet.time.plus_ns(place as u64 * MS);
                world.send(&Event::Packet(packet));
            }
        };
        let (next, first) = (isn.wrapping_add(1), server_isn.wrapping_add(1));
        if steps[client] == 0 {
            show(&mut world, Direction::Request, Packet::SYN, isn, 0, "");
            world.ms += 2;
            show(&mut world, Direction::Response, Packet::SYN | ACK, server_isn, next, "");
        } else {
            let path = format!("/c{client}/r{}", steps[client]);
            let head = get(&path);
            show(
                &mut world,
                Direction::Request,
                ACK,
                next.wrapping_add(sent[client]),
                first.wrapping_add(got[client]),
                &head,
            );
            sent[client] += len(&head);
            world.ms += 20;
            show(
                &mut world,
                Direction::Response,
                ACK,
                first.wrapping_add(got[client]),
                next.wrapping_add(sent[client]),
                OK,
            );
            got[client] += 100;
            requests.push((path, client, at_socket));
        }
        steps[client] += 1;
        if history.port_again && Some(at) == last_of_first && at_socket {
            world.ms += 1;
            world.flow = FlowId::Cookie(1);
            world.socket(SocketState::Closed, 0);
        }
    }
    world.end();
    (world.facts, requests)
}

fn sender_of(client: usize) -> Sender {
    let mut sender = World::sender();
    sender.key.tgid = 100 + client as u32;
    sender
}

proptest! {
    /// Whatever is attached when, in whichever order the hooks report, and whatever NAT does.
    #[test]
    fn each_request_is_one_and_has_its_own_sender(history in histories()) {
        let (facts, requests) = play(&history);
        let exchanges = exchanges(&facts);
        for (path, client, at_socket) in &requests {
            let seen: Vec<_> = exchanges.iter().filter(|exchange| exchange.request.path.as_deref() == Some(path)).collect();
            prop_assert!(seen.len() <= 1, "{} is recorded {} times", path, seen.len());
            for exchange in &seen {
                let right = exchange.sender.is_none_or(|sender| *client != 2 && sender == sender_of(*client));
                prop_assert!(right, "{} of client {} has {:?}", path, client, exchange.sender);
            }
            if *at_socket {
                prop_assert_eq!(seen.len(), 1, "{} is missing", path);
                prop_assert_eq!(seen[0].sender, Some(sender_of(*client)));
            }
        }
        let known = |exchange: &&Fact<&Exchange>| requests.iter().any(|(path, ..)| exchange.request.path.as_ref() == Some(path));
        let ghosts: Vec<_> = exchanges.iter().filter(|exchange| !known(exchange)).collect();
        prop_assert!(ghosts.is_empty(), "{:?}", ghosts);
    }

    #[test]
    fn any_segmentation_duplication_and_reordering_gives_the_same_exchanges(
        paths in proptest::collection::vec("[a-z]{1,12}", 1..5),
        bodies in proptest::collection::vec(0..3000_usize, 5),
        cuts in proptest::collection::vec(proptest::collection::vec(0..4000_usize, 0..12), 16),
        keys in proptest::collection::vec(0..6_usize, 256),
        copies in proptest::collection::vec(any::<bool>(), 256),
        single: bool,
    ) {
        let requests: Vec<_> = paths.iter().map(|path| get(&format!("/latest/meta-data/{path}"))).collect();
        let (mut plain, packets) = conversation(Vantage::Capture, &requests, &bodies);
        plain.handshake();
        for packet in &packets {
            plain.send(&Event::Packet(packet.clone()));
        }
        plain.end();
        prop_assert_eq!(plain.exchanges().len(), paths.len());

        let (mut mixed, _) = conversation(Vantage::Capture, &requests, &bodies);
        mixed.handshake();
        // Packets that are in flight at the same time are reordered. A packet stays behind the one that causes it.
        let mut at = 0;
        for (packet, cuts) in packets.iter().zip(&cuts) {
            let all: Vec<usize> = (0..packet.data.len()).collect();
            let mut parts = split(packet, if single { &all } else { cuts });
            let repeated: Vec<_> = parts.iter().zip(copies.iter().cycle().skip(at)).filter(|(_, copy)| **copy).map(|(part, _)| part.clone()).collect();
            parts.extend(repeated);
            let mut keyed: Vec<_> = parts.into_iter().enumerate().map(|(place, part)| (place + keys[(at + place) % keys.len()], part)).collect();
            keyed.sort_by_key(|(key, _)| *key);
            at += keyed.len();
            for (_, part) in keyed {
                mixed.send(&Event::Packet(part));
            }
        }
        mixed.end();
        prop_assert_eq!(summary(&mixed), summary(&plain));
    }

    #[test]
    fn live_requests_in_any_segmentation(
        paths in proptest::collection::vec("[a-z]{1,12}", 1..5),
        bodies in proptest::collection::vec(0..3000_usize, 5),
        cuts in proptest::collection::vec(proptest::collection::vec(0..4000_usize, 0..12), 16),
    ) {
        let requests: Vec<_> = paths.iter().map(|path| get(&format!("/latest/meta-data/{path}"))).collect();
        let (mut plain, packets) = conversation(Vantage::Socket, &requests, &bodies);
        let (mut mixed, _) = conversation(Vantage::Socket, &requests, &bodies);
        plain.handshake();
        mixed.handshake();
        for (packet, cuts) in packets.iter().zip(&cuts) {
            plain.send(&Event::Packet(packet.clone()));
            let parts = if packet.direction == Direction::Request { split(packet, cuts) } else { vec![packet.clone()] };
            for part in parts {
                mixed.send(&Event::Packet(part));
            }
        }
        plain.wait(1000);
        mixed.wait(1000);
        prop_assert_eq!(plain.exchanges().len(), paths.len());
        prop_assert_eq!(summary(&mixed), summary(&plain));
    }

    #[test]
    fn any_events_in_any_order(bytes in proptest::collection::vec(any::<u8>(), 0..4000)) {
        fuzz_flow_table(&bytes);
    }

    #[test]
    fn any_head(bytes in proptest::collection::vec(any::<u8>(), 0..600), request in "(GET|PUT) /[ -~\r\n]{0,200}") {
        crate::imds::fuzz_heads(&bytes);
        crate::imds::fuzz_heads(request.as_bytes());
    }

    #[test]
    fn no_token_in_any_fact(token in "[A-Za-z0-9+/]{16,56}", spelling in 0..8_usize, cuts in proptest::collection::vec(0..400_usize, 0..8), lose in 0..12_usize) {
        let name = "X-aws-ec2-metadata-token";
        let head = match spelling {
            0 => format!("GET /latest/ HTTP/1.1\r\n{name} : {token}\r\n\r\n"),
            1 => format!("GET /latest/ HTTP/1.1\r\n{name}:{token}\r\n{name}: {token}\r\n\r\n"),
            2 => format!("GET /latest/ HTTP/1.1\r\n{name}:\r\n {token}\r\n\r\n"),
            3 => format!("GET /latest/ HTTP/1.1\r\nUser-Agent: x\r\n {name}: {token}\r\n\r\n"),
            4 => format!("GET /latest/?{name}={token} HTTP/1.1\r\n\r\n"),
            5 => format!("GET /latest/ HTTP/1.1\n{name}: {token}\n\n"),
            6 => format!("{name}: {token}\r\n\r\n"),
            _ => format!("GET /latest/ HTTP/1.1\r\nX: {}\r\n{name}: {token}\r\n\r\n", "x".repeat(3000)),
        };
        let mut world = World::live();
        world.handshake();
        let packet = world.raw(Direction::Request, ACK, ISN.wrapping_add(1), SERVER_ISN.wrapping_add(1), head.as_bytes());
        for (at, part) in split(&packet, &cuts).into_iter().enumerate() {
            if at + 1 != lose {
                world.send(&Event::Packet(part));
            }
        }
        world.at(100).server(ACK, 0, len(&head), OK).client(ACK, len(&head), 200, PUT).end();
        for fact in &world.facts {
            let Body::Exchange(exchange) = &fact.body else { continue };
            let shown = format!("{exchange:?} {}", serde_json::to_string(&(&exchange.request, &exchange.response)).unwrap());
            prop_assert!(!shown.contains(&token[..12]), "{shown}");
        }
    }
}

#[test]
fn within_a_cgroup_the_hooks_of_the_whole_host_start_no_connection() {
    let dropped = |world: &World, flow| {
        Event::Drop(PacketDrop {
            time: world.time(),
            flow,
            local: world.local,
            remote: world.remote,
            direction: Direction::Request,
            sender: None,
            seq: 7,
            payload_len: 0,
            tcp_flags: Packet::SYN,
            ttl: 64,
            reason: Some("NETFILTER_DROP".into()),
            location: None,
            netns: 1,
        })
    };
    let scope = Scope::Cgroup { uplinks: false };
    let mut world = World::live();
    world.table = FlowTable::new(Limits::default(), Hasher::with_salt(1, 2)).within(scope);
    let unmatched = FlowId::Addresses {
        local: world.local,
        remote: world.remote,
    };
    for flow in [unmatched, FlowId::Cookie(0x99)] {
        let event = dropped(&world, flow);
        world.send(&event);
        let event = Event::Socket(SocketChange {
            time: world.time(),
            flow,
            state: SocketState::Closed,
            received: None,
            error: 111,
            unconnected: true,
            local: world.local,
            remote: world.remote,
        });
        world.send(&event);
        let mut wire = world.raw(Direction::Request, Packet::SYN, 7, 0, b"");
        (wire.flow, wire.vantage) = (flow, Vantage::Uplink);
        world.send(&Event::Packet(wire));
    }
    assert!(world.table.is_empty() && world.facts.is_empty(), "{:?}", world.facts);
    // Its own connection has them all.
    let event = Event::Connect(ConnectAttempt {
        time: world.time(),
        flow: world.flow,
        remote: world.remote,
        sender: World::sender(),
    });
    world.send(&event);
    let event = dropped(&world, world.flow);
    world.send(&event);
    assert!(
        matches!(
            world.facts[..],
            [Fact {
                body: Body::Drop(_),
                ..
            }]
        ),
        "{:?}",
        world.facts
    );
}

/// Packets of a connection of a client in this cgroup.
fn of_client(cookie: u64, cgroup_id: u64, ms: u64) -> World {
    let mut world = World::new(FlowId::Cookie(cookie), Vantage::Socket);
    world.local = SocketAddr::new([10, 0, 1, 5].into(), (cookie % 60_000) as u16 + 1024);
    world.ms = ms;
    world.sender_cgroup = cgroup_id;
    world
}

#[test]
fn a_client_that_fills_the_budget_loses_its_own_connections_and_nobody_elses() {
    let limits = Limits {
        budget_bytes: 4 << 20,
        ..Limits::default()
    };
    let mut table = FlowTable::new(limits, Hasher::with_salt(1, 2));
    let mut facts = Vec::new();
    let mut largest = 0;
    let mut answered = 0;
    let long = get(&format!("/{}", "x".repeat(480)));
    for round in 0..400_u64 {
        // 64 unanswered requests, on one connection more.
        let mut hostile = of_client(round, 7, round * 10);
        std::mem::swap(&mut hostile.table, &mut table);
        hostile.handshake();
        for request in 0..64 {
            hostile.client(ACK, request * long.len() as u32, 0, &long);
        }
        std::mem::swap(&mut hostile.table, &mut table);
        facts.append(&mut hostile.facts);
        largest = largest.max(table.held_bytes());
        // Another client asks, and is answered while the flood goes on.
        if round > 0 {
            let mut victim = of_client(1_000_000 + round - 1, 8, round * 10);
            std::mem::swap(&mut victim.table, &mut table);
            victim.server(ACK, 0, get("/a").len() as u32, OK);
            victim.at(round * 10 + 3000);
            std::mem::swap(&mut victim.table, &mut table);
            facts.append(&mut victim.facts);
        }
        let mut victim = of_client(1_000_000 + round, 8, round * 10 + 1);
        std::mem::swap(&mut victim.table, &mut table);
        victim.handshake().client(ACK, 0, 0, &get("/a"));
        std::mem::swap(&mut victim.table, &mut table);
        facts.append(&mut victim.facts);
    }
    table.finish(Time(T0 + 10_000 * MS), &mut facts);
    for exchange in exchanges(&facts) {
        if exchange.sender.is_some_and(|sender| sender.cgroup_id == 8) {
            answered += usize::from(exchange.outcome == ExchangeOutcome::Answered);
        }
    }
    assert_eq!(answered, 399, "each of the victim's but the last, which has no answer");
    assert!(largest <= (4 << 20) + (128 << 10), "{largest} bytes");
    let lost = table.loss().evicted;
    assert!(lost > 300, "evicted requests are counted: {lost}");
}

#[test]
fn what_times_out_at_once_comes_piece_by_piece() {
    let mut table = FlowTable::new(Limits::default(), Hasher::with_salt(1, 2));
    let mut facts = Vec::new();
    for cookie in 0..100 {
        let mut world = of_client(cookie, 7, 0);
        std::mem::swap(&mut world.table, &mut table);
        world.handshake();
        let request = get("/a");
        for number in 0..64 {
            world.client(ACK, number * request.len() as u32, 0, &request);
        }
        std::mem::swap(&mut world.table, &mut table);
    }
    let (mut calls, mut all) = (0, 0);
    let mut more = true;
    while more {
        more = table.advance(Time(T0 + 4000 * SECOND), &mut facts);
        assert!(facts.len() <= 1024 + 64, "{}", facts.len());
        all += facts.len();
        facts.clear();
        calls += 1;
    }
    assert_eq!(all, 6400);
    assert!(calls >= 6, "{calls} calls");
    assert_eq!(table.held_bytes(), 0, "nothing is charged for what is gone");
}

#[test]
fn hops_are_the_difference_of_two_sightings() {
    let mut world = World::live();
    world
        .handshake()
        .client(ACK, 0, 0, PUT)
        .server(ACK, 0, PUT.len() as u32, OK)
        .at(5000);
    let now = world.time();
    world.table.finish(now, &mut world.facts);
    let hops = world.exchanges().first().map(|exchange| exchange.request.hops);
    assert_eq!(hops, Some(Some(1)));
}

/// As `client`, with a TTL of the sender's choice: at the socket, and at the uplink behind one hop.
fn with_ttl(world: &mut World, at: u32, data: &str, ttl: u8, flags: u8) {
    let seq = ISN.wrapping_add(1).wrapping_add(at);
    let mut packet = world.raw(
        Direction::Request,
        flags,
        seq,
        SERVER_ISN.wrapping_add(1),
        data.as_bytes(),
    );
    packet.ttl = ttl;
    world.both(packet);
}

#[test]
fn a_ttl_that_changes_on_a_connection_hides_no_hop() {
    // The request with one TTL, what follows on the socket with one less: only the socket's end shows that.
    let mut world = World::live();
    world.handshake().client(ACK, 0, 0, PUT);
    let fin = world.raw(
        Direction::Request,
        Packet::FIN | ACK,
        ISN.wrapping_add(1).wrapping_add(len(PUT)),
        SERVER_ISN.wrapping_add(1),
        b"",
    );
    world.send(&Event::Packet(Packet { ttl: 63, ..fin }));
    world.server(ACK, 0, len(PUT), OK).at(5000).end();
    assert_eq!(world.only().request.hops, Some(1), "FIN");

    // A segment that is lost before the uplink, and sent again with another TTL.
    let mut world = World::live();
    world.connect();
    let lost = world.raw(
        Direction::Request,
        ACK,
        ISN.wrapping_add(1),
        SERVER_ISN.wrapping_add(1),
        PUT.as_bytes(),
    );
    world.send(&Event::Packet(Packet {
        ttl: 64,
        ..lost.clone()
    }));
    let again = Packet {
        ttl: 65,
        retransmit: true,
        ..lost
    };
    world.both(again);
    world.server(ACK, 0, len(PUT), OK).at(5000).end();
    assert_ne!(world.only().request.hops, Some(0), "retransmitted");
}

#[test]
fn a_ttl_that_changes_with_each_request_gives_the_same_hops() {
    let mut world = World::live();
    world.handshake();
    let mut at = 0;
    for (number, ttl) in [65, 64, 66, 1, 255].into_iter().enumerate() {
        with_ttl(&mut world, at, PUT, ttl, ACK);
        at += len(PUT);
        world.server(ACK, number as u32 * len(OK), at, OK);
    }
    world.at(5000).end();
    let hops: Vec<_> = world.exchanges().iter().map(|exchange| exchange.request.hops).collect();
    assert_eq!(hops, [Some(1); 5]);
}
