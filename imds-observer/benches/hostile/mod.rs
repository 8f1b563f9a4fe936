//! Records of a local process that does its worst: every name as long as the kernel side lets it be, and another one each time.

#![allow(dead_code, reason = "benches and tests that include this file use a part of it")]

use std::sync::Arc;

use imds_observer::record::{
    Ancestor, Connect, ConnectOutcome, Connection, Dialect, Exchange, ExchangeOutcome, Host, ImdsVersion,
    PacketDirection, PacketDrop, Process, Record, Request, Response, SECOND, Time,
};

/// Fills names up to the length that the kernel side allows.
pub(crate) fn long(n: u64) -> String {
    let mut name = "x".repeat(480);
    name.push_str(&n.to_string());
    name
}

/// Names as long as the kernel side lets them be.
pub(crate) fn hostile(n: u64) -> Arc<Process> {
    Arc::new(Process {
        pid: n as u32 + 2,
        tid: None,
        namespace_pid: None,
        comm: format!("p{n}"),
        exe: Some(long(n)),
        cmdline: Some(vec![long(n)]),
        uid: Some(1000),
        start_time: Some(Time(1_600_000_000 * SECOND + n)),
        ancestors: vec![Ancestor {
            pid: 1,
            comm: "evil".to_owned(),
        }],
        cgroup: Some(long(n)),
        netns: Some(n as u32),
    })
}

pub(crate) fn exchange(n: u64, process: &Arc<Process>, host: &Host) -> Record<Exchange> {
    let token = n.is_multiple_of(5);
    let status = [200, 404, 401, 403, 400, 503, 200, 200][(n / 3 % 8) as usize];
    let body = Exchange {
        process: Some(process.clone()),
        container: None,
        connection: Connection {
            id: format!("connection-{n}-{n}-{n}-{n}-{n}-{n}"),
            local: Some("10.0.0.1:1".to_owned()),
            remote: if n.is_multiple_of(7) {
                "[fd00:ec2::254]:80"
            } else {
                "169.254.169.254:80"
            }
            .to_owned(),
            exchange: 1,
            interface: None,
            cgroup: None,
            netns: None,
            redirected_to: None,
        },
        request: Request {
            method: Some("GET".to_owned()),
            path: Some(if token {
                "/latest/api/token".to_owned()
            } else {
                format!("/latest/meta-data/iam/security-credentials/{}", long(n))
            }),
            dialect: Dialect::Aws,
            imds_version: Some(match n % 5 {
                0 => ImdsVersion::Token,
                1 | 2 => ImdsVersion::V1,
                _ => ImdsVersion::V2,
            }),
            token: Some(format!("{n:016x}")),
            token_ttl_s: None,
            user_agent: Some(long(n)),
            ttl: Some(63),
            forwarded: n.is_multiple_of(11),
            retransmits: 0,
            ttl_on_wire: Some(true),
            hops: None,
            endpoint: None,
            trace_id: None,
        },
        response: (!n.is_multiple_of(13)).then(|| Response {
            status: Some(status),
            ttl: Some(if n.is_multiple_of(3) { 1 } else { 255 }),
            delivered: Some(!n.is_multiple_of(3)),
            server: Some(long(n)),
            retransmits: 0,
            icmp: None,
            via_proxy: None,
            length: None,
        }),
        outcome: match n % 13 {
            0 => ExchangeOutcome::Unanswered,
            _ if n.is_multiple_of(3) => ExchangeOutcome::Lost,
            _ => ExchangeOutcome::Answered,
        },
        latency_ns: Some(n % 600 * 1_000_000),
        waited_ns: Some(n % 600 * 1_000_000),
        connect_ns: None,
        closed_by: None,
    };
    Record {
        time: Time(1_700_000_000 * SECOND + n * 100_000),
        host: host.clone(),
        body,
    }
}

fn beside<B>(of: &Record<Exchange>, body: B) -> Record<B> {
    Record {
        time: of.time,
        host: of.host.clone(),
        body,
    }
}

pub(crate) fn connect(n: u64, of: &Record<Exchange>) -> Record<Connect> {
    const OUTCOMES: [(ConnectOutcome, i32); 5] = [
        (ConnectOutcome::Refused, 111),
        (ConnectOutcome::NoRoute, 101),
        (ConnectOutcome::HostUnreachable, 113),
        (ConnectOutcome::Denied, 1),
        (ConnectOutcome::Timeout, 110),
    ];
    let (outcome, errno) = OUTCOMES[(n / 10 % 5) as usize];
    let body = Connect {
        process: of.process.clone(),
        container: None,
        connection: Connection {
            id: format!("attempt-{n}-{n}-{n}-{n}-{n}-{n}"),
            ..of.connection.clone()
        },
        outcome,
        errno: Some(errno),
        elapsed_ns: n % 4 * SECOND,
        syns: (n % 2) as u32,
        wire_syns: (n % 2) as u32,
        syn_acks: 0,
        dropped: None,
        icmp: None,
        nat_rule: None,
    };
    beside(of, body)
}

pub(crate) fn drop_of(n: u64, of: &Record<Exchange>) -> Record<PacketDrop> {
    let body = PacketDrop {
        process: of.process.clone(),
        container: None,
        connection: of.connection.clone(),
        direction: if n.is_multiple_of(2) {
            PacketDirection::Request
        } else {
            PacketDirection::Response
        },
        reason: Some(["NETFILTER_DROP", "IP_INHDR", "TC_EGRESS", "NEIGH_FAILED"][(n / 20 % 4) as usize].to_owned()),
        location: Some("ip_forward".to_owned()),
        ttl: Some(1),
        netns: Some(1),
    };
    beside(of, body)
}
