//! Scenarios of clients and faults, each with the codes that it must cause, and no others.

use imds_observer::detectors::DetectorConfig;
use imds_observer::record::{ConnectOutcome, FindingState, ImdsVersion, PacketDirection};
use rstest::rstest;

use crate::scenario::*;

const LIFECYCLE: &str = "/latest/meta-data/autoscaling/target-lifecycle-state";
const BOTOCORE: &str = "Boto3/1.34.0 Botocore/1.34.0 Python/3.11";

fn none() -> Vec<String> {
    Vec::new()
}

#[test]
fn s01_botocore_healthy() {
    let mut trace = Trace::default();
    let app = Actor::host(4242, "/usr/bin/python3.11").agent(BOTOCORE);
    trace.add(app.put(0.0));
    trace.add(app.get(0.001, CREDENTIALS));
    trace.add(app.get(0.002, ROLE));
    assert_eq!(trace.verdicts(), none());
}

fn botocore_in_a_pod() -> Trace {
    let mut trace = Trace::default();
    let app = Actor::pod(4242, "/usr/bin/python3.11", "payments", "api-7c9d8b6f5d-x2x4z").agent(BOTOCORE);
    trace.add(app.lost_put(0.0, 1.0));
    for seconds in [0.001, 0.2, 0.64] {
        let mut drop = app.ttl_drop(seconds);
        drop.connection.id = app.lost_put(0.0, 1.0).body.connection.id;
        trace.add(drop);
    }
    trace.add(app.v1(1.001, CREDENTIALS));
    trace.add(app.v1(1.002, ROLE));
    trace
}

#[test]
fn s02_botocore_in_a_pod_with_hop_limit_1() {
    let findings = botocore_in_a_pod().findings();
    assert_eq!(verdicts(&findings), ["imdsv1-request info", "token-response-lost high"]);
    let lost = findings
        .iter()
        .rfind(|finding| finding.code.as_str() == "token-response-lost")
        .unwrap();
    assert_eq!(lost.subject.name, "pod payments/api-7c9d8b6f5d-x2x4z");
    assert_eq!(lost.subject.workload.as_deref(), Some("payments/api"));
    assert_eq!(lost.evidence["times_lost"], 1);
    assert_eq!(lost.evidence["seconds_lost"], 1.0);
    assert_eq!(lost.evidence["request_ttl"], 63);
    assert_eq!(lost.evidence["response_ttl"], 1);
    assert_eq!(lost.evidence["drop"], "IP_INHDR@ip_forward");
    assert_eq!(lost.evidence["v1_fallback"], true);
    assert_eq!(lost.evidence["smallest_sufficient_hop_limit"], 2);
    assert_eq!(
        lost.remedy.commands[1],
        format!("aws ec2 modify-instance-metadata-options --instance-id {INSTANCE_ID} --http-put-response-hop-limit 2")
    );
    let v1 = findings
        .iter()
        .find(|finding| finding.code.as_str() == "imdsv1-request")
        .unwrap();
    assert_eq!(v1.evidence["cause"], "token-response-lost");
}

#[test]
fn s03_two_token_requests_before_the_fallback() {
    let mut trace = Trace::default();
    let app = Actor::pod(4242, "/app", "payments", "api-7c9d8b6f5d-x2x4z");
    trace.add(app.lost_put(0.0, 1.0));
    trace.add(app.lost_put(1.0, 1.0));
    trace.add(app.v1(2.0, CREDENTIALS));
    trace.add(app.v1(2.001, ROLE));
    let findings = trace.findings();
    assert_eq!(verdicts(&findings), ["imdsv1-request info", "token-response-lost high"]);
    let last = findings
        .iter()
        .rfind(|finding| finding.code.as_str() == "token-response-lost")
        .unwrap();
    assert_eq!((last.count, &last.evidence["seconds_lost"]), (2, &2.0.into()));
}

#[test]
fn s03b_the_fallback_is_reported_before_the_lost_token_request_ends() {
    let mut trace = Trace::default();
    let app = Actor::pod(4242, "/app", "payments", "api-7c9d8b6f5d-x2x4z");
    trace.add(app.lost_put(0.0, 2.5));
    trace.add(app.v1(1.0, CREDENTIALS));
    assert_eq!(trace.verdicts(), ["imdsv1-request info", "token-response-lost high"]);
}

#[test]
fn s04_rust_never_falls_back() {
    let mut trace = Trace::default();
    let app = Actor::pod(4242, "/app", "payments", "api-0").agent("aws-sdk-rust/1.2.0 api/imds/1.2.0 os/linux");
    trace.add(app.lost_put(0.0, 1.0));
    let findings = trace.findings();
    assert_eq!(verdicts(&findings), ["token-response-lost high"]);
    assert_eq!(findings[0].evidence["v1_fallback"], false);
}

#[test]
fn s05_javascript_stays_without_a_token_after_403() {
    let mut trace = Trace::default();
    let app = Actor::host(4242, "/usr/bin/node");
    trace.add(app.put(0.0).but(status(403)));
    for load in 0..5 {
        trace.add(app.v1(0.01 + f64::from(load) * 900.0, CREDENTIALS));
        trace.add(app.v1(0.02 + f64::from(load) * 900.0, ROLE));
    }
    assert_eq!(trace.verdicts(), ["access-forbidden warning", "imdsv1-request info"]);
}

#[test]
fn s06_a_proxy_like_kiam() {
    let mut trace = Trace::default();
    let app = Actor::pod(4242, "/usr/bin/python3.11", "payments", "api-0").agent(BOTOCORE);
    for load in 0..3 {
        let t = f64::from(load) * 60.0;
        trace.add(app.put(t).but(status(403)));
        trace.add(app.v1(t + 0.01, CREDENTIALS));
        trace.add(app.v1(t + 0.02, ROLE));
    }
    let findings = trace.findings();
    assert_eq!(verdicts(&findings), ["access-forbidden warning", "imdsv1-request info"]);
    assert_eq!(
        findings
            .iter()
            .find(|f| f.code.as_str() == "access-forbidden")
            .unwrap()
            .evidence["cause"],
        "proxy"
    );
}

/// Three monitors every 2 s, which keep a token for an hour.
fn node_termination_handler(trace: &mut Trace, from: f64, to: f64, lifecycle: u16) {
    let handler = Actor::pod(
        900,
        "/node-termination-handler",
        "kube-system",
        "aws-node-termination-handler-4jk2b",
    );
    let mut t = from;
    let mut token_until = from;
    while t < to {
        if t >= token_until {
            trace.add(handler.put(t).but(|put| put.request.token_ttl_s = Some(3600)));
            token_until = t + 3600.0;
        }
        trace.add(
            handler
                .get(t + 0.001, "/latest/meta-data/spot/instance-action")
                .but(status(404)),
        );
        trace.add(handler.get(t + 0.002, LIFECYCLE).but(status(lifecycle)));
        trace.add(handler.get(t + 0.003, "/latest/meta-data/events/maintenance/scheduled"));
        t += 2.0;
    }
}

#[test]
fn s07_node_termination_handler() {
    let mut trace = Trace::default();
    node_termination_handler(&mut trace, 0.0, 1800.0, 200);
    assert_eq!(trace.verdicts(), none());
}

#[test]
fn s08_live_migration() {
    let mut trace = Trace::default();
    node_termination_handler(&mut trace, 0.0, 600.0, 200);
    node_termination_handler(&mut trace, 600.0, 3600.0, 404);
    let findings = trace.findings();
    assert_eq!(verdicts(&findings), ["path-disappeared warning"]);
    assert_eq!(findings[0].evidence["likely_cause"], "live-migration");
    assert!(findings.len() < 20, "updated rarely, not {} times", findings.len());
}

#[test]
fn s09_dotnet() {
    let mut trace = Trace::default();
    let app = Actor::service(4242, "/usr/bin/dotnet", "shop.service").agent("aws-sdk-dotnet-coreclr/3.7");
    for round in 0..60 {
        let t = f64::from(round) * 120.0;
        trace.add(app.put(t));
        trace.add(app.get(t + 0.01, CREDENTIALS));
        trace.add(app.put(t + 0.02));
        trace.add(app.get(t + 0.03, ROLE));
    }
    assert_eq!(trace.verdicts(), none());
}

#[test]
fn s10_an_expired_token_is_renewed() {
    let mut trace = Trace::default();
    let app = Actor::host(4242, "/app");
    trace.add(app.get(0.0, ROLE).but(status(401)));
    trace.add(app.put(0.01));
    trace.add(app.get(0.02, ROLE));
    assert_eq!(trace.verdicts(), none());
}

#[test]
fn s10b_an_expired_token_is_kept() {
    let mut trace = Trace::default();
    let app = Actor::host(4242, "/app");
    for t in [0.0, 20.0, 40.0] {
        trace.add(app.get(t, ROLE).but(status(401)));
    }
    let findings = trace.findings();
    assert_eq!(verdicts(&findings), ["token-rejected warning"]);
    assert_eq!(findings[0].evidence["cause"], "same-token");
}

#[test]
fn s11_flood() {
    let mut trace = Trace::default();
    let app = Actor::host(4242, "/usr/bin/python3.11").agent(BOTOCORE);
    for n in 0..200 * 20 {
        let t = f64::from(n) / 200.0;
        let answer = if n % 100 == 50 { 503 } else { 200 };
        trace.add(app.put(t));
        trace.add(app.get(t + 0.002, CREDENTIALS).but(status(answer)));
    }
    trace.add(quota(10.0, 1024, 3000));
    trace.add(quota(20.0, 1024, 2000));
    let findings = trace.findings();
    assert_eq!(
        verdicts(&findings),
        [
            "packet-quota critical",
            "server-errors high",
            "tight-polling high",
            "token-not-reused warning"
        ]
    );
    let quota = findings
        .iter()
        .find(|finding| finding.code.as_str() == "packet-quota")
        .unwrap();
    assert_eq!(quota.subject.name, "interface ens5");
    assert_eq!(quota.evidence["clients"][0]["share"], 1.0);
    assert!(findings.len() < 80, "{} lines for one flood", findings.len());
}

#[test]
fn s12_fluent_bits_probe() {
    let mut trace = Trace::default();
    let app = Actor::service(4242, "/fluent-bit", "fluent-bit.service");
    trace.add(app.get(0.0, "/").but(status(401)));
    trace.add(app.put(0.01));
    for (n, path) in ["instance-id", "placement/availability-zone", "instance-type"]
        .iter()
        .enumerate()
    {
        trace.add(app.get(0.02 + n as f64 / 100.0, &format!("/latest/meta-data/{path}")));
    }
    assert_eq!(trace.verdicts(), none());
}

#[test]
fn s13_cloud_init_at_boot() {
    let mut trace = Trace::default();
    let crawler = Actor::service(700, "/usr/bin/python3.11", "cloud-init-local.service")
        .agent("Cloud-Init/22.4")
        .with(|process| {
            process.comm = "cloud-init".to_owned();
            process.cmdline = Some(vec![
                "/usr/bin/python3".into(),
                "/usr/bin/cloud-init".into(),
                "init".into(),
            ]);
            process.start_time = Some(START);
        });
    trace.add(crawler.put(0.5));
    trace.add(crawler.clone().v6().put(0.5).but(unanswered(2.0)));
    trace.add(
        crawler
            .clone()
            .v6()
            .connect(0.51, ConnectOutcome::Timeout, 0, 2.0, [2, 2]),
    );
    for n in 0..100_u32 {
        let path = format!("/2021-03-23/meta-data/block/{n}");
        let answer = if n % 10 == 0 { 404 } else { 200 };
        trace.add(crawler.get(1.0 + f64::from(n) / 100.0, &path).but(status(answer)));
    }
    trace.add(quota(2.0, 560, 0));
    assert_eq!(trace.verdicts(), none());
}

#[test]
fn s14_imds_off_is_one_finding_for_the_host() {
    let mut trace = Trace::default();
    let clients = [
        Actor::host(1, "/usr/bin/python3.11").agent(BOTOCORE),
        Actor::service(2, "/usr/bin/amazon-ssm-agent", "amazon-ssm-agent.service"),
        Actor::pod(3, "/app", "payments", "api-0"),
    ];
    for round in 0..10 {
        for (n, client) in clients.iter().enumerate() {
            let t = f64::from(round) * 30.0 + n as f64;
            trace.add(client.put(t).but(status(403)));
            trace.add(client.v1(t + 0.01, CREDENTIALS).but(status(403)));
        }
    }
    let findings = trace.findings();
    assert_eq!(verdicts(&findings), ["access-forbidden high"]);
    assert_eq!(findings[0].subject.key, "host");
    assert!(findings[0].remedy.commands[1].ends_with("--http-endpoint enabled"));
}

#[test]
fn s14b_imds_turned_off_while_clients_work() {
    let mut trace = Trace::default();
    let clients = [
        Actor::host(1, "/usr/bin/python3.11"),
        Actor::pod(3, "/app", "payments", "api-0"),
    ];
    for round in 0..20 {
        for (n, client) in clients.iter().enumerate() {
            let t = f64::from(round) * 20.0 + n as f64 * 7.0;
            let answer = if round < 10 { 200 } else { 403 };
            trace.add(client.get(t, "/latest/meta-data/instance-id").but(status(answer)));
        }
    }
    assert_eq!(trace.verdicts(), ["access-forbidden high"]);
}

#[test]
fn s15_tokens_required_and_a_client_without() {
    let mut trace = Trace::default();
    let app = Actor::host(4242, "/usr/bin/node").agent("aws-sdk-nodejs/2.560.0");
    for n in 0..6 {
        trace.add(app.v1(f64::from(n) * 10.0, CREDENTIALS).but(status(401)));
    }
    let findings = trace.findings();
    assert_eq!(verdicts(&findings), ["token-rejected warning"]);
    assert_eq!(findings[0].evidence["cause"], "no-token");
}

/// Faults of the network, with the measured symptoms that the kernel shows of each, on the host and in a pod.
#[rstest]
#[case::output_reject("blocked-by-firewall", "OUTPUT", Some(("NETFILTER_DROP", "nft_do_chain")), (ConnectOutcome::Refused, 111, 1.06, [0, 0]), false)]
#[case::output_reject_without_drops("blocked-by-firewall", "OUTPUT", None, (ConnectOutcome::Refused, 111, 0.002, [0, 0]), false)]
#[case::output_drop("blocked-by-firewall", "OUTPUT", Some(("NETFILTER_DROP", "nf_hook_slow")), (ConnectOutcome::Timeout, 0, 3.0, [0, 0]), false)]
#[case::output_drop_before_5_17("blocked-by-firewall", "OUTPUT", Some(("NOT_SPECIFIED", "nf_hook_slow")), (ConnectOutcome::Timeout, 0, 3.0, [0, 0]), false)]
#[case::forward_drop("blocked-by-firewall", "FORWARD", Some(("NETFILTER_DROP", "nft_do_chain")), (ConnectOutcome::Timeout, 0, 3.0, [2, 0]), true)]
#[case::no_route("no-route", "missing", None, (ConnectOutcome::NoRoute, 101, 0.0, [0, 0]), false)]
#[case::unreachable("no-route", "unreachable", None, (ConnectOutcome::HostUnreachable, 113, 0.0, [0, 0]), false)]
#[case::prohibit("no-route", "prohibit", None, (ConnectOutcome::Denied, 13, 0.0, [0, 0]), false)]
#[case::blackhole("no-route", "blackhole", None, (ConnectOutcome::Error, 22, 0.0, [0, 0]), false)]
#[case::no_route_for_a_pod("no-route", "missing", Some(("IP_INNOROUTES", "ip_error")), (ConnectOutcome::NoRoute, 101, 0.0, [1, 0]), true)]
#[case::no_arp("neighbor-unresolved", "", Some(("NEIGH_FAILED", "neigh_invalidate")), (ConnectOutcome::HostUnreachable, 113, 3.05, [1, 0]), false)]
#[case::no_arp_without_drops("neighbor-unresolved", "", None, (ConnectOutcome::HostUnreachable, 113, 3.05, [1, 0]), false)]
#[case::server_down("connection-refused", "", None, (ConnectOutcome::Refused, 111, 0.0, [1, 1]), false)]
#[case::tc_egress("denied-by-policy", "traffic control egress", Some(("TC_EGRESS", "sch_handle_egress")), (ConnectOutcome::Timeout, 0, 3.0, [2, 2]), false)]
#[case::tc_ingress("denied-by-policy", "traffic control ingress", Some(("TC_INGRESS", "sch_handle_ingress")), (ConnectOutcome::Timeout, 0, 3.0, [2, 0]), true)]
#[case::connect_hook("denied-by-policy", "cgroup connect program", None, (ConnectOutcome::Denied, 1, 0.0, [0, 0]), false)]
#[case::cgroup_skb("denied-by-policy", "cgroup_skb egress program", Some(("BPF_CGROUP_EGRESS", "ip_finish_output")), (ConnectOutcome::Timeout, 0, 3.0, [2, 0]), false)]
#[case::silence("no-answer", "", None, (ConnectOutcome::Timeout, 0, 3.0, [2, 2]), false)]
fn s16_network_faults(
    #[case] code: &str,
    #[case] place: &str,
    #[case] drop: Option<(&str, &str)>,
    #[case] (outcome, errno, elapsed, syns): (ConnectOutcome, i32, f64, [u32; 2]),
    #[case] pod: bool,
) {
    let app = if pod {
        Actor::pod(4242, "/usr/bin/curl", "payments", "api-0")
    } else {
        Actor::host(4242, "/usr/bin/curl")
    };
    let mut trace = Trace::default();
    for n in 0..3 {
        let begin = f64::from(n) * 10.0;
        let mut connect = app.connect(begin, outcome, errno, elapsed, syns);
        if let Some((reason, location)) = drop {
            for (seconds, _) in [(0.0, 0), (1.0, 1)] {
                if seconds <= elapsed {
                    let mut drop = app.drop(begin + seconds, reason, location);
                    drop.connection.id.clone_from(&connect.connection.id);
                    trace.add(drop);
                }
            }
            connect.dropped = Some(format!("{reason}@{location}").parse().unwrap());
        }
        trace.add(connect);
    }
    let findings = trace.findings();
    assert_eq!(verdicts(&findings), [format!("{code} high")]);
    let last = findings.last().unwrap();
    assert_eq!(last.evidence["at"].as_str().unwrap_or_default(), place);
    assert_eq!(last.evidence["attempts"], 3);
    assert_eq!(last.count, 3);
    let subject = if pod { "pod payments/api-0" } else { "host" };
    assert_eq!(last.subject.name, subject);
    assert_eq!(last.subject.process.as_ref().unwrap().pid, 4242);
}

#[test]
fn s16b_response_dropped_in_forward() {
    let app = Actor::pod(4242, "/app", "payments", "api-0");
    let mut trace = Trace::default();
    let connect = app.connect(0.0, ConnectOutcome::Timeout, 0, 3.0, [2, 2]);
    trace.add(app.drop(0.001, "NETFILTER_DROP", "nft_do_chain").but(|drop| {
        drop.direction = PacketDirection::Response;
        drop.ttl = Some(254);
        drop.connection.id.clone_from(&connect.connection.id);
    }));
    trace.add(connect);
    assert_eq!(trace.verdicts(), ["response-dropped high"]);
}

/// A drop without reason and function: the position that its packet had reached, and the other symptoms of the attempt.
#[rstest]
#[case::output(0.0, None, 64, [0, 0], None, false, Some(("blocked-by-firewall", "OUTPUT")))]
#[case::output_of_ipv6(0.0, Some(4_026_531_840), 64, [0, 0], None, false, Some(("blocked-by-firewall", "OUTPUT")))]
#[case::cgroup_skb(0.0, Some(4_026_531_840), 64, [2, 0], None, false, Some(("denied-by-policy", "cgroup_skb egress program")))]
#[case::tc_egress(0.0, Some(4_026_531_840), 64, [2, 2], None, false, Some(("denied-by-policy", "traffic control egress")))]
#[case::no_neighbor(3.05, Some(4_026_531_840), 64, [1, 0], None, false, Some(("neighbor-unresolved", "")))]
#[case::forward(0.0, Some(4_026_531_840), 63, [2, 0], None, true, Some(("blocked-by-firewall", "FORWARD")))]
#[case::forward_reject(0.0, Some(4_026_531_840), 63, [1, 0], Some("3/13"), true, Some(("blocked-by-firewall", "FORWARD")))]
#[case::forwarded_prohibit(0.0, Some(4_026_531_840), 64, [1, 0], Some("3/13"), true, Some(("no-route", "prohibit")))]
#[case::before_routing(0.0, Some(4_026_531_840), 64, [2, 0], None, true, None)]
#[case::elsewhere(0.0, Some(4_026_539_999), 64, [2, 2], None, false, Some(("no-answer", "")))]
fn s16d_drops_that_report_nothing(
    #[case] dropped_at: f64,
    #[case] netns: Option<u32>,
    #[case] ttl: u8,
    #[case] syns: [u32; 2],
    #[case] icmp: Option<&str>,
    #[case] pod: bool,
    #[case] reported: Option<(&str, &str)>,
) {
    let app = if pod {
        Actor::pod(4242, "/usr/bin/curl", "payments", "api-0")
    } else {
        Actor::host(4242, "/usr/bin/curl")
    };
    for reason in [None, Some("NOT_SPECIFIED")] {
        let mut trace = Trace::default();
        for n in 0..3 {
            let begin = f64::from(n) * 10.0;
            // The record of an attempt is written when no further packet can follow.
            let connect = app
                .connect(begin, ConnectOutcome::Timeout, 0, dropped_at + 2.0, syns)
                .but(|connect| {
                    connect.dropped = Some("unknown@unknown".parse().unwrap());
                    connect.icmp = icmp.map(|icmp| icmp.parse().unwrap());
                });
            trace.add(app.drop(begin + dropped_at, "", "").but(|drop| {
                drop.connection.id.clone_from(&connect.connection.id);
                drop.reason = reason.map(str::to_owned);
                drop.location = None;
                drop.netns = netns;
                drop.ttl = Some(ttl);
            }));
            trace.add(connect);
        }
        let findings = trace.findings();
        let codes: Vec<String> = reported.iter().map(|(code, _)| format!("{code} high")).collect();
        assert_eq!(verdicts(&findings), codes, "{reason:?}");
        if let (Some((_, at)), Some(last)) = (reported, findings.last()) {
            assert_eq!(last.evidence["at"].as_str().unwrap_or_default(), at);
        }
    }
}

#[test]
fn s16c_only_ipv6_fails() {
    let mut trace = Trace::default();
    let app = Actor::host(1, "/usr/bin/python3.11");
    let modern = Actor::host(2, "/modern").v6();
    trace.add(app.get(0.0, "/latest/meta-data/instance-id"));
    trace.add(modern.connect(1.0, ConnectOutcome::Timeout, 0, 1.0, [1, 1]));
    assert_eq!(trace.verdicts(), ["ipv6-endpoint-silent info"]);

    let mut trace = Trace::default();
    trace.add(modern.connect(1.0, ConnectOutcome::Timeout, 0, 1.0, [1, 1]));
    assert_eq!(trace.verdicts(), ["ipv6-endpoint-silent warning"]);

    // The host has no IPv6 at all. A client that tries IPv6 first and falls back immediately loses nothing.
    let mut trace = Trace::default();
    let both = Actor::host(2, "/modern");
    trace.add(
        both.clone()
            .v6()
            .connect(1.0, ConnectOutcome::NoRoute, 101, 0.0, [0, 0]),
    );
    trace.add(both.get(1.01, "/latest/meta-data/instance-id"));
    assert_eq!(trace.verdicts(), none());
}

/// A shell loop has a new process for each request, but is one subject, named with the parent.
#[test]
fn s17_curl_in_a_shell_loop() {
    let mut trace = Trace::default();
    let curl = Actor::host(5000, "/usr/bin/curl").agent("curl/7.88.1");
    for n in 0..300_u32 {
        let t = f64::from(n) * 0.02;
        trace.add(curl.pid(5000 + n, t).v1(t, "/latest/meta-data/instance-id"));
    }
    let findings = trace.findings();
    assert_eq!(verdicts(&findings), ["imdsv1-request warning", "tight-polling high"]);
    let polling = findings
        .iter()
        .find(|finding| finding.code.as_str() == "tight-polling")
        .unwrap();
    assert_eq!(polling.subject.name, "curl (parent bash 4100)");
    assert_eq!(polling.evidence["parent"]["pid"], 4100);
}

#[test]
fn s18_slow_polling_at_two_a_second_is_a_warning_after_a_minute() {
    let mut trace = Trace::default();
    let app = Actor::host(4242, "/app");
    for n in 0..130 {
        trace.add(app.get(f64::from(n) * 0.5, "/latest/meta-data/instance-id"));
    }
    assert_eq!(trace.verdicts(), ["tight-polling warning"]);

    let mut trace = Trace::default();
    for n in 0..600 {
        trace.add(app.get(f64::from(n), "/latest/meta-data/instance-id"));
    }
    assert_eq!(trace.verdicts(), none(), "once a second is allowed");
}

#[test]
fn s19_findings_resolve_when_the_evidence_stops() {
    let mut trace = Trace::default();
    let app = Actor::host(4242, "/app");
    for n in 0..200 {
        trace.add(app.get(f64::from(n) * 0.02, "/latest/meta-data/instance-id"));
    }
    let findings = trace.run(&DetectorConfig::default(), &facts(), 400);
    let states: Vec<_> = findings.iter().map(|finding| finding.state).collect();
    assert_eq!(states.first(), Some(&FindingState::Open));
    assert_eq!(states.last(), Some(&FindingState::Resolved));
    assert_eq!(
        states.iter().filter(|state| **state == FindingState::Resolved).count(),
        1
    );

    // Counter-evidence resolves a finding sooner: here, the route is back.
    let mut trace = Trace::default();
    trace.add(app.connect(0.0, ConnectOutcome::NoRoute, 101, 0.0, [0, 0]));
    trace.add(app.get(5.0, "/latest/meta-data/instance-id"));
    let findings = trace.run(&DetectorConfig::default(), &facts(), 40);
    assert_eq!(findings.last().unwrap().state, FindingState::Resolved);
}

#[test]
fn s20_another_clouds_dialect_is_no_imdsv1() {
    let mut trace = Trace::default();
    let app = Actor::host(4242, "/app");
    trace.add(app.v1(0.0, "/computeMetadata/v1/").but(|exchange| {
        exchange.request.imds_version = Some(ImdsVersion::Other);
    }));
    assert_eq!(trace.verdicts(), none());
}

#[test]
fn s21_without_process_the_address_is_the_client() {
    let mut trace = Trace::default();
    let mut vm = Actor::host(1, "/x");
    vm.process = None;
    for n in 0..3 {
        trace.add(vm.v1(f64::from(n), CREDENTIALS));
    }
    let findings = trace.findings();
    assert_eq!(verdicts(&findings), ["imdsv1-request warning"]);
    assert_eq!(findings[0].subject.name, "client 10.0.1.5");
}
