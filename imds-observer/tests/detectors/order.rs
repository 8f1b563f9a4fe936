//! With any records in any order, nothing may panic, and every finding must open before it changes and resolves.

use std::collections::BTreeMap;

use imds_observer::detectors::{DetectorConfig, Detectors};
use imds_observer::record::{
    ConnectOutcome, ExchangeOutcome, FindingState, IcmpCode, ImdsVersion, PacketDirection, Record,
};
use proptest::prelude::*;

use crate::scenario::*;

fn any_record() -> impl Strategy<Value = Record> {
    let actor = (0_u32..6, any::<bool>(), any::<bool>()).prop_map(|(pid, pod, v6)| {
        let actor = if pod {
            Actor::pod(pid + 1, "/usr/bin/python3.11", "payments", "api-0")
        } else {
            Actor::host(pid + 1, "/usr/bin/curl")
        };
        if v6 { actor.v6() } else { actor }
    });
    let status = prop::sample::select(vec![0_u16, 200, 200, 200, 400, 401, 403, 404, 429, 503]);
    (actor, 0_u32..40_000, 0_u8..4, status, any::<u64>(), any::<[u8; 4]>()).prop_map(
        |(actor, centiseconds, kind, answer, number, bytes)| {
            let t = f64::from(centiseconds) / 100.0;
            let reasons = [
                "NETFILTER_DROP",
                "IP_INHDR",
                "TC_INGRESS",
                "NOT_SPECIFIED",
                "NEIGH_FAILED",
                "",
            ];
            let places = ["ip_forward", "nft_do_chain", "neigh_invalidate", "?"];
            match kind {
                0 => {
                    let (outcome, errno) = [
                        (ConnectOutcome::Refused, 111),
                        (ConnectOutcome::NoRoute, 101),
                        (ConnectOutcome::HostUnreachable, 113),
                        (ConnectOutcome::Denied, 1),
                        (ConnectOutcome::Timeout, 0),
                        (ConnectOutcome::Error, i32::MIN),
                    ][usize::from(bytes[0] % 6)];
                    let mut connect = actor.connect(t, outcome, errno, 0.5, [u32::from(bytes[1] % 2), 0]);
                    connect.elapsed_ns = number % 5_000_000_000;
                    connect.icmp = (bytes[2] < 100).then(|| IcmpCode {
                        kind: bytes[2] % 5,
                        code: bytes[3] % 14,
                    });
                    connect.dropped = (bytes[3] < 60).then(|| "NETFILTER_DROP".parse().unwrap());
                    connect.into()
                }
                1 => {
                    let mut drop = actor.drop(
                        t,
                        reasons[usize::from(bytes[0]) % reasons.len()],
                        places[usize::from(bytes[1]) % places.len()],
                    );
                    drop.ttl = Some(bytes[2]);
                    if bytes[3] < 128 {
                        drop.direction = PacketDirection::Response;
                    }
                    drop.into()
                }
                _ => {
                    let paths = [
                        TOKEN,
                        CREDENTIALS,
                        ROLE,
                        "//latest/",
                        "",
                        "/?a#b",
                        "/2021-03-23/meta-data/mac/",
                    ];
                    let path = paths[usize::from(bytes[0]) % paths.len()];
                    let mut exchange = actor.request(t, "GET", path);
                    exchange.request.imds_version = [
                        None,
                        Some(ImdsVersion::Token),
                        Some(ImdsVersion::V1),
                        Some(ImdsVersion::V2),
                        Some(ImdsVersion::Other),
                    ][usize::from(bytes[1] % 5)];
                    exchange.request.ttl = Some(bytes[2]);
                    exchange.request.token_ttl_s = Some(number as u32);
                    exchange.request.forwarded = bytes[3] < 20;
                    exchange.outcome = [
                        ExchangeOutcome::Answered,
                        ExchangeOutcome::Lost,
                        ExchangeOutcome::Unanswered,
                        ExchangeOutcome::Closed,
                        ExchangeOutcome::Open,
                        ExchangeOutcome::Reset,
                    ][usize::from(bytes[3] % 6)];
                    exchange.waited_ns = Some(if bytes[2] == 7 {
                        u64::MAX
                    } else {
                        number % 3_000_000_000
                    });
                    exchange.latency_ns = Some(number);
                    match (&mut exchange.response, answer) {
                        (response, 0) => *response = None,
                        (Some(response), answer) => {
                            response.status = (answer != 400).then_some(answer);
                            response.ttl = Some(bytes[3]);
                            response.delivered = [None, Some(true), Some(false)][usize::from(bytes[2] % 3)];
                        }
                        _ => {}
                    }
                    exchange.into()
                }
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn findings_live_in_order(records in prop::collection::vec(any_record(), 0..400)) {
        let mut detectors = Detectors::new(&DetectorConfig::default(), facts());
        let mut findings = Vec::new();
        for record in &records {
            observe(&mut detectors, record, &mut findings);
        }
        detectors.advance(at(1000.0), &mut findings);
        detectors.finish(at(100_000.0), &mut findings);
        let mut open = BTreeMap::new();
        for finding in &findings {
            let subject = (finding.code, finding.subject.key.clone());
            prop_assert!(finding.first_seen <= finding.last_seen);
            prop_assert!(finding.count > 0);
            prop_assert!(!finding.summary.is_empty() && !finding.remedy.text.is_empty(), "{}", finding.code);
            match finding.state {
                FindingState::Open => {
                    prop_assert_eq!(open.insert(subject, (finding.count, finding.severity)), None);
                }
                state => {
                    let before = open.get_mut(&subject).expect("open first");
                    prop_assert!(finding.count >= before.0 && finding.severity >= before.1);
                    *before = (finding.count, finding.severity);
                    if state == FindingState::Resolved {
                        open.remove(&subject);
                    }
                }
            }
        }
        prop_assert!(open.is_empty(), "a day later nothing is open: {:?}", open);
    }
}
