//! Every fault on the path to IMDS must be reported by its cause, once, and for the right process. Its healthy counterpart must not be
//! reported.
//!
//! This test prints the table of docs/faults.md. `cargo xtask docs --faults` regenerates the table from a run.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use imds_observer::record::Time;
use imds_observer_lab::client::{self, Script};
use imds_observer_lab::faults::{
    Chain, Entry, Family, Fault, Firewall, Hook, RouteFault, RuleAction, Scope, Tool, Victim, registry,
};
use imds_observer_lab::privileges::Privileges;
use imds_observer_lab::topology::{IMDS_V4, Lab, LabOptions, Place, PodCgroup, PodOptions, RouteStyle};
use serde_json::Value;

use crate::support::{Observer, UPLINK, cgroup_of, in_netns, kernel, lab, run, run_script, slowness};

fn name_of(family: Family) -> &'static str {
    if family == Family::V6 { "IPv6" } else { "IPv4" }
}

/// Result of one fault.
struct Row {
    name: &'static str,
    family: &'static str,
    expected: Option<&'static str>,
    /// Codes of all findings that were opened, in order.
    found: Vec<String>,
    severity: String,
    evidence: Value,
    after: Duration,
    wrong: Vec<String>,
}

/// Sends as many requests of the victim as the pattern needs.
fn suffer(entry: &Entry, place: &Place, family: Family) {
    let host = if family == Family::V6 {
        "[fd00:ec2::254]"
    } else {
        "169.254.169.254"
    };
    let script = |script: Script| {
        let target = format!("{host}:80").parse().unwrap();
        run_script(place, &Script { target, ..script });
    };
    match (entry.name, entry.code) {
        (_, Some("token-rejected")) => script(client::stale_token(4)),
        (_, Some("slow-responses")) => script(Script {
            rounds: 4,
            ..client::botocore()
        }),
        // This client never falls back to IMDSv1.
        (_, Some("server-errors")) => script(Script {
            rounds: 12,
            ..client::rust_sdk()
        }),
        (_, Some("no-answer" | "ipv6-endpoint-silent")) => {
            for _ in 0..3 {
                token(place, host, "1");
            }
        }
        (_, Some("access-forbidden")) => {
            for _ in 0..4 {
                token(place, host, "2");
            }
        }
        (_, Some("neighbor-unresolved")) => token(place, host, "2"),
        // The requests must succeed, however slow the machine is.
        (_, None) => {
            token(place, host, "10");
            token(place, host, "10");
        }
        _ => {
            token(place, host, "1");
            token(place, host, "1");
        }
    }
}

fn token(place: &Place, host: &str, patience: &str) {
    let url = format!("http://{host}/latest/api/token");
    run(
        place,
        "curl",
        &[
            "-s",
            "-o",
            "/dev/null",
            "-m",
            patience,
            "-X",
            "PUT",
            "-H",
            "X-aws-ec2-metadata-token-ttl-seconds: 60",
            &url,
        ],
    );
}

/// Faults that can't be distinguished without drop reasons (before 5.17) and without permission to read the kernel's addresses: the packet
/// is dropped before its route lookup, or after the uplink's hook.
const UNREPORTED: &[&str] = &[
    "policy-tc-ingress-pod",
    "policy-tc-egress-pod",
    "no-route-forwarded",
    "route-prohibit-forwarded",
    "route-blackhole-forwarded",
];

/// The code that can be expected on this kernel with these privileges.
fn expected(entry: &Entry) -> Option<&'static str> {
    let blind = kernel() < (5, 17) && Privileges::from_env().unwrap() == Privileges::DaemonSet;
    entry.code.filter(|_| !(blind && UNREPORTED.contains(&entry.name)))
}

/// Enables one fault while an observer runs, sends the victim's requests, and disables the fault.
fn try_fault(lab: &Lab, entry: &Entry, family: Family, observer: &mut Observer) -> Row {
    let code = expected(entry);
    let place = match entry.victim {
        Victim::Node | Victim::Forwarded => lab.node(),
        Victim::Pod(number) => lab.pod(number),
    };
    // The lab's own hop limit is 1. It is raised unless the fault is about it, so that lost token responses don't add findings.
    let calm = lab
        .inject(&Fault::Behaviour(serde_json::json!({"hop_limit": 2})))
        .unwrap();
    let guard = lab.inject(&entry.fault).unwrap();
    let begin = Time::now();
    suffer(entry, place, family);
    let mut after = Duration::ZERO;
    if let Some(code) = code {
        let finding = observer.try_wait_for(Duration::from_secs(12) * slowness(), |record| {
            record["record"] == "finding" && record["code"] == code && record["state"] == "open"
        });
        if let Some(finding) = finding {
            // The time at which the record was written, not the time at which this test read it.
            let reported: Time = serde_json::from_value(finding["time"].clone()).unwrap();
            after = Duration::from_nanos(reported.since(begin));
        }
    } else {
        observer.wait_for(|record| record["record"] == "exchange" || record["record"] == "connect");
    }
    guard.undo().unwrap();
    calm.undo().unwrap();
    Row {
        name: entry.name,
        family: name_of(family),
        expected: code,
        found: Vec::new(),
        severity: String::new(),
        evidence: Value::Null,
        after,
        wrong: Vec::new(),
    }
}

/// Checks the findings between two lines of the observer's output, which belong to this row.
fn judge(lab: &Lab, entry: &Entry, row: &mut Row, lines: &[String]) {
    let records: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let opened: Vec<&Value> = records
        .iter()
        .filter(|record| record["record"] == "finding" && record["state"] == "open")
        .collect();
    row.found = opened
        .iter()
        .map(|record| record["code"].as_str().unwrap().to_owned())
        .collect();
    let expected: Vec<&str> = row.expected.into_iter().collect();
    if row.found != expected {
        row.wrong.push(format!("found {:?}", row.found));
        row.wrong.push(
            lines
                .iter()
                .filter(|line| !line.contains("\"summary\""))
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join("\n  "),
        );
    }
    let place = match entry.victim {
        Victim::Node | Victim::Forwarded => lab.node(),
        Victim::Pod(number) => lab.pod(number),
    };
    if let Some(finding) = opened.first() {
        finding["severity"]
            .as_str()
            .unwrap_or_default()
            .clone_into(&mut row.severity);
        row.evidence = finding["evidence"].clone();
        let process = &finding["subject"]["process"];
        let whole_host = matches!(entry.code, Some("packet-quota" | "access-forbidden"));
        if !whole_host && process["cgroup"] != cgroup_of(place) {
            row.wrong
                .push(format!("subject {} is not in {}", finding["subject"], cgroup_of(place)));
        }
        if entry.code == Some("blocked-by-firewall") {
            let chain = if entry.name.starts_with("forward") {
                "FORWARD"
            } else {
                "OUTPUT"
            };
            let evidence = &finding["evidence"];
            for (key, wanted) in [
                ("at", Value::from(chain)),
                ("uids", Value::from(vec![0])),
                ("cgroups", Value::from(vec![cgroup_of(place)])),
            ] {
                if evidence[key] != wanted {
                    row.wrong.push(format!("{key} is {}, not {wanted}", evidence[key]));
                }
            }
        }
        let hook = match &entry.fault {
            Fault::Policy {
                hook: Hook::Connect4 | Hook::Connect6,
                ..
            } => Some("cgroup connect program"),
            Fault::Policy {
                hook: Hook::CgroupEgress,
                ..
            } => Some("cgroup_skb egress program"),
            Fault::Policy {
                hook: Hook::TcEgress, ..
            } => Some("traffic control egress"),
            Fault::Policy {
                hook: Hook::TcIngress, ..
            } => Some("traffic control ingress"),
            _ => None,
        };
        if let Some(hook) = hook.filter(|hook| finding["evidence"]["at"] != *hook) {
            row.wrong.push(format!("at {}, not {hook}", finding["evidence"]["at"]));
        }
        if finding["remedy"]["text"].as_str().is_none_or(str::is_empty) {
            row.wrong.push("no remedy".to_owned());
        }
    }
}

/// Groups faults that can share one observer: no two faults of a group open the same finding.
fn sessions(entries: Vec<Entry>) -> Vec<Vec<Entry>> {
    let mut sessions: Vec<Vec<Entry>> = Vec::new();
    for entry in entries {
        let same = |other: &Entry| {
            let place = |victim| matches!(victim, Victim::Pod(_));
            (other.code, place(other.victim)) == (entry.code, place(entry.victim))
        };
        // On an emulated processor, starting an observer takes longer than everything else.
        let shared = slowness() > 1;
        match sessions.iter_mut().find(|session| shared && !session.iter().any(same)) {
            Some(session) => session.push(entry),
            None => sessions.push(vec![entry]),
        }
    }
    sessions
}

fn try_session(lab: &Lab, entries: &[Entry], family: Family) -> Vec<Row> {
    let mut observer = Observer::stream(lab, &[]);
    let mut rows = Vec::new();
    let mut ends = Vec::new();
    for entry in entries {
        rows.push(try_fault(lab, entry, family, &mut observer));
        ends.push(observer.output.len());
    }
    let finished = observer.finish();
    let lines: Vec<String> = finished.stdout.lines().map(str::to_owned).collect();
    // Findings at the very end belong to the last row.
    if let Some(last) = ends.last_mut() {
        *last = lines.len();
    }
    let mut begin = 0;
    for ((entry, row), end) in entries.iter().zip(&mut rows).zip(ends) {
        judge(lab, entry, row, &lines[begin..end]);
        begin = end;
    }
    rows
}

impl Row {
    fn reported(&self) -> String {
        if self.found.is_empty() {
            "none".to_owned()
        } else {
            self.found.join(", ")
        }
    }
}

/// Evidence that differs between runs, or that other fields of the finding contain.
const LEFT_OUT: [&str; 7] = [
    "attempts",
    "clients",
    "endpoint",
    "programs",
    "cgroups",
    "seconds_lost",
    "token",
];

/// Formats evidence for one cell.
fn cell(evidence: &Value) -> String {
    let Some(evidence) = evidence.as_object() else {
        return String::new();
    };
    evidence
        .iter()
        .filter(|(key, value)| !LEFT_OUT.contains(&key.as_str()) && !value.is_null())
        .map(|(key, value)| match value.as_str() {
            Some(text) => format!("{key} {text}"),
            None => format!("{key} {value}"),
        })
        .collect::<Vec<_>>()
        .join(", ")
        .replace('|', "\\|")
}

fn line(row: &Row) -> String {
    let found = if row.found.is_empty() {
        "none".to_owned()
    } else {
        row.found
            .iter()
            .map(|code| format!("`{code}`"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let after = if row.expected.is_some() {
        format!("{:.1} s", row.after.as_secs_f64())
    } else {
        String::new()
    };
    let Row {
        name,
        family,
        severity,
        evidence,
        ..
    } = row;
    format!(
        "| {name} | {family} | {found} | {severity} | {after} | {} |",
        cell(evidence)
    )
}

const BEGIN: &str = "<!-- table: cargo xtask docs --faults -->\n";
const END: &str = "<!-- end of table -->\n";
const HEAD: &str = "| fault | family | finding | severity | after | evidence |\n|---|---|---|---|---|---|\n";

/// Writes this run's rows into the page. Rows of the other address family stay unchanged.
fn write_docs(rows: &[Row]) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/faults.md");
    let text = fs::read_to_string(&page).expect("read docs/faults.md");
    let (before, rest) = text
        .split_once(BEGIN)
        .expect("docs/faults.md has the begin of its table");
    let (old, after) = rest.split_once(END).expect("docs/faults.md has the end of its table");
    let key = |line: &str| {
        let mut cells = line.split('|').map(str::trim).skip(1);
        Some((cells.next()?.to_owned(), cells.next()?.to_owned()))
    };
    let mut lines: HashMap<_, String> = old
        .lines()
        .skip(2)
        .filter_map(|line| Some((key(line)?, line.to_owned())))
        .collect();
    lines.extend(rows.iter().filter_map(|row| Some((key(&line(row))?, line(row)))));
    let mut table = HEAD.to_owned();
    let names = registry(Family::V4)
        .into_iter()
        .chain(registry(Family::V6))
        .map(|entry| entry.name);
    for name in names {
        for family in ["IPv4", "IPv6"] {
            if let Some(line) = lines.remove(&(name.to_owned(), family.to_owned())) {
                table.push_str(&line);
                table.push('\n');
            }
        }
    }
    let kernel = nix::sys::utsname::uname().expect("read the kernel's release");
    let run = format!("\nWritten by a run on kernel {}.\n", kernel.release().display());
    fs::write(&page, format!("{before}{BEGIN}{table}{run}{END}{after}")).expect("write docs/faults.md");
}

fn try_all(family: Family) {
    let lab = lab(LabOptions::default());
    let wanted = std::env::var("IMDS_OBSERVER_FAULTS").ok();
    let entries: Vec<Entry> = registry(family)
        .into_iter()
        // `live-migration` takes 30 s and is among the scenarios. The drops of `quota` are reported as drops of this kernel, because the
        // service's end of the link is on this kernel too; `a_flood_is_reported_by_its_packets` covers it.
        .filter(|entry| !matches!(entry.name, "live-migration" | "quota"))
        // The format is `NAME`, or `NAME:IPv4` for one address family only.
        .filter(|entry| {
            let within = format!("{}:{}", entry.name, name_of(family));
            wanted
                .as_deref()
                .is_none_or(|wanted| wanted.split(',').any(|wanted| wanted == entry.name || wanted == within))
        })
        .collect();
    let rows: Vec<Row> = sessions(entries)
        .iter()
        .flat_map(|session| try_session(&lab, session, family))
        .collect();
    println!("{HEAD}{}", rows.iter().map(line).collect::<Vec<_>>().join("\n"));
    for row in &rows {
        // The table of kernels uses this line.
        println!("fact: fault {} over {} = {}", row.name, row.family, row.reported());
    }
    let wrong: Vec<String> = rows
        .iter()
        .filter(|row| !row.wrong.is_empty())
        .map(|row| {
            format!(
                "{} ({}), expected {:?}: {}",
                row.name,
                row.family,
                row.expected,
                row.wrong.join("\n  ")
            )
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {} faults are not reported right:\n{}",
        wrong.len(),
        rows.len(),
        wrong.join("\n")
    );
    if std::env::var_os("UPDATE_DOCS").is_some() && wanted.is_none() {
        write_docs(&rows);
    }
}

#[test]
#[ignore = "live"]
fn a_flood_is_reported_by_its_packets() {
    let lab = lab(LabOptions::default());
    let mut observer = Observer::stream(&lab, &[]);
    run_script(lab.node(), &client::flood(400));
    let finding = observer.wait_for(|record| record["record"] == "finding" && record["code"] == "packet-quota");
    assert!(
        finding["subject"]["name"].as_str().unwrap().contains("eth0"),
        "{finding}"
    );
    let finished = observer.finish();
    let total = finished
        .kind("summary")
        .into_iter()
        .rfind(|record| record["total"] == true)
        .unwrap();
    let interface = &total["interfaces"][0];
    assert_eq!(interface["name"], "eth0");
    assert!(interface["peak_packets_per_s"].as_u64().unwrap() > 512, "{interface}");
    assert!(interface["quota_share"].as_f64().unwrap() > 0.5);
    assert_eq!(interface["allowance_exceeded"], Value::Null, "veth has no such counter");
    assert_eq!(finished.opened("packet-quota").len(), 1);
    assert_eq!(finished.kind("exchange").len(), 800, "nothing of the flood is lost");
}

/// DNS and NTP traffic to link-local addresses shares the quota. It must be counted separately from IMDS, and the IMDS clients must be
/// named with their share.
#[test]
#[ignore = "live"]
fn dns_and_ntp_count_for_the_quota_too() {
    const DNS: &str = "169.254.169.253:53";
    const NTP: &str = "169.254.169.123:123";
    let lab = lab(LabOptions::default());
    let node = lab.node();
    for (service, _) in [DNS, NTP].iter().filter_map(|service| service.split_once(':')) {
        let route = ["route", "add", service, "via", "10.77.0.1", "dev", UPLINK];
        assert!(in_netns(node, "ip").args(route).status().unwrap().success());
    }
    // The pod's responses must arrive; otherwise the pod would wait for them.
    let calm = lab
        .inject(&Fault::Behaviour(serde_json::json!({"hop_limit": 2})))
        .unwrap();
    let mut observer = Observer::stream(&lab, &[]);
    let asking = |place: &Place, rate| run_script(place, &client::flood(rate));
    std::thread::scope(|scope| {
        // Most packets within one second: a burst to each service, with IMDS requests at the same time.
        scope.spawn(|| node.run_in_thread(|| send(&[(DNS, 500), (NTP, 300)])).unwrap());
        scope.spawn(|| asking(node, 100));
        asking(lab.pod(0), 50);
    });
    let finding = observer.wait_for(|record| {
        record["record"] == "finding"
            && record["code"] == "packet-quota"
            && record["evidence"]["egress_per_s"]["dns"].as_u64() > Some(0)
    });
    let egress = &finding["evidence"]["egress_per_s"];
    println!("{}", finding["evidence"]);
    assert!(
        egress["ntp"].as_u64() > Some(0) && egress["imds"].as_u64() > Some(0),
        "{egress}"
    );
    let finished = observer.finish();
    calm.undo().unwrap();
    let last = finished.last_word("packet-quota").unwrap();
    let clients = last["evidence"]["clients"].as_array().unwrap();
    assert_eq!(clients.len(), 2, "{last}");
    let shares: Vec<f64> = clients.iter().filter_map(|client| client["share"].as_f64()).collect();
    assert!((shares.iter().sum::<f64>() - 1.0).abs() < 0.01, "{clients:?}");
    let total = finished
        .kind("summary")
        .into_iter()
        .rfind(|record| record["total"] == true)
        .unwrap();
    let interface = &total["interfaces"][0];
    for class in ["imds", "dns", "ntp"] {
        assert!(
            interface["peak_by_class"][class].as_u64() > Some(0),
            "{class}: {interface}"
        );
    }
    assert_eq!(interface["allowance_exceeded"], Value::Null, "veth has no such counter");
    // 800 datagrams, and at least five packets for each of 300 requests.
    assert!(
        interface["egress_packets"].as_u64() >= Some(800 + 300 * 5),
        "{interface}"
    );
    assert_eq!(
        finished.opened("packet-quota").len(),
        1,
        "one finding for the interface"
    );
}

/// Sends meaningless datagrams, a given number to each address.
fn send(counts: &[(&str, usize)]) {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    for (address, count) in counts {
        for _ in 0..*count {
            socket.send_to(b"?", address).unwrap();
        }
    }
}

/// The remedy can be pasted: it contains the host's own gateway and interface. The client times out after 2 s, one second before the kernel
/// detects the missing response, and must still be named.
#[test]
#[ignore = "live"]
fn an_on_link_route_is_remedied_with_the_host_s_own_gateway() {
    let options = LabOptions {
        route: RouteStyle::Default,
        ..LabOptions::default()
    };
    let lab = lab(options);
    let fault = Fault::Route {
        kind: RouteFault::OnLinkSilent,
        victim: Victim::Node,
        family: Family::V4,
    };
    let guard = lab.inject(&fault).unwrap();
    let mut observer = Observer::stream(&lab, &[]);
    let begin = Instant::now();
    token(lab.node(), &IMDS_V4.to_string(), "2");
    let (gave_up, gone) = (begin.elapsed(), Time::now());
    assert!(gave_up < Duration::from_millis(2_800), "the client stayed {gave_up:?}");
    let finding = observer.wait_for(|record| record["record"] == "finding" && record["code"] == "neighbor-unresolved");
    let reported: Time = serde_json::from_value(finding["time"].clone()).unwrap();
    assert!(
        reported > gone,
        "reported at {reported:?}, before the client had gone at {gone:?}"
    );
    assert_eq!(finding["subject"]["process"]["comm"], "curl", "{finding}");
    assert_eq!(finding["subject"]["process"]["cgroup"], cgroup_of(lab.node()));
    let commands = finding["remedy"]["commands"].as_array().unwrap();
    let wanted = "ip route add 169.254.169.254/32 via 10.77.0.1 dev eth0";
    assert!(commands.iter().any(|command| command == wanted), "{commands:?}");
    assert_eq!(observer.finish().opened("neighbor-unresolved").len(), 1);
    guard.undo().unwrap();
}

/// A fault in a pod must be attributed to the pod, down to the PID, while the host is healthy, and vice versa.
#[test]
#[ignore = "live"]
fn a_fault_belongs_to_the_pod_or_to_the_host_that_has_it() {
    let container = "ab".repeat(32);
    let pod = PodOptions {
        cgroup: PodCgroup::Kubepods {
            qos: "besteffort".into(),
            uid: "00000000-0000-4000-8000-000000000001".into(),
            container_id: container.clone(),
        },
        nested: false,
    };
    let lab = lab(LabOptions {
        pods: vec![pod],
        ..LabOptions::default()
    });
    let calm = lab
        .inject(&Fault::Behaviour(serde_json::json!({"hop_limit": 2})))
        .unwrap();
    for (victim, healthy, of_pod) in [(lab.pod(0), lab.node(), true), (lab.node(), lab.pod(0), false)] {
        let fault = Fault::Firewall(Firewall {
            tool: Tool::Nft,
            chain: Chain::Output,
            verdict: RuleAction::Drop,
            victim: if of_pod { Victim::Pod(0) } else { Victim::Node },
            scope: Scope::All,
            family: Family::V4,
        });
        let guard = lab.inject(&fault).unwrap();
        let mut observer = Observer::stream(&lab, &[]);
        let url = format!("http://{IMDS_V4}/latest/meta-data/");
        let mut child = victim.command("curl").unwrap();
        let mut child = child.args(["-s", "-m", "1", &url]).spawn().unwrap();
        let pid = child.id();
        assert!(
            run(healthy, "curl", &["-s", "-m", "5", "-o", "/dev/null", &url])
                .status
                .success()
        );
        let finding = observer.wait_for(|record| record["record"] == "finding" && record["state"] == "open");
        child.wait().unwrap();
        assert_eq!(finding["code"], "blocked-by-firewall");
        let subject = &finding["subject"];
        assert_eq!(subject["process"]["pid"], pid, "{finding}");
        assert_eq!(subject["process"]["cgroup"], cgroup_of(victim));
        if of_pod {
            assert_eq!(subject["container"]["id"], container.as_str(), "{finding}");
        } else {
            assert_eq!(subject["container"], Value::Null, "{finding}");
        }
        let finished = observer.finish();
        let opened: Vec<_> = finished
            .kind("finding")
            .into_iter()
            .filter(|record| record["state"] == "open" && record["code"] != "imdsv1-request")
            .collect();
        assert_eq!(opened.len(), 1, "{opened:?}");
        guard.undo().unwrap();
    }
    calm.undo().unwrap();
}

/// Packets that the kernel frees in normal operation are not losses: packets of connections that are reset, closed with unread data, or
/// left open.
#[test]
#[ignore = "live"]
fn what_the_kernel_frees_in_passing_is_no_drop() {
    let lab = lab(LabOptions::default());
    let calm = lab
        .inject(&Fault::Behaviour(serde_json::json!({"hop_limit": 2})))
        .unwrap();
    let mut observer = Observer::stream(&lab, &[]);
    for place in [lab.node(), lab.pod(0)] {
        for host in ["169.254.169.254", "[fd00:ec2::254]"] {
            // A response that is read completely, one that is closed after the head (the rest is freed unread), and repeated requests.
            let url = format!("http://{host}/latest/meta-data/");
            run(place, "curl", &["-s", "-o", "/dev/null", &url, &url, &url]);
            run(place, "curl", &["-s", "--max-filesize", "1", "-o", "/dev/null", &url]);
            let target = format!("{host}:80").parse().unwrap();
            run_script(
                place,
                &Script {
                    target,
                    ..client::botocore()
                },
            );
            run_script(
                place,
                &Script {
                    target,
                    ..client::rust_sdk()
                },
            );
        }
    }
    observer.wait_for(|record| record["record"] == "summary");
    let finished = observer.finish();
    calm.undo().unwrap();
    assert!(
        finished.kind("exchange").len() > 30,
        "{}",
        finished.kind("exchange").len()
    );
    assert_eq!(finished.kind("drop"), [&Value::Null; 0]);
    assert_eq!(finished.kind("connect"), [&Value::Null; 0]);
}

#[test]
#[ignore = "live"]
fn every_fault_is_named_by_its_cause_over_ipv4() {
    try_all(Family::V4);
}

#[test]
#[ignore = "live"]
fn every_fault_is_named_by_its_cause_over_ipv6() {
    try_all(Family::V6);
}
