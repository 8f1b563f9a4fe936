//! `doctor` must report every fault that blocks IMDS, and nothing on a healthy host. It must neither send packets nor change anything.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::{Child, Stdio};

use imds_observer_lab::faults::{Entry, Family, Fault, Hook, RouteFault, Victim, occupy, registry};
use imds_observer_lab::privileges::{Privileges, withhold};
use imds_observer_lab::topology::{IMDS_V4, IMDS_V6, Lab, LabOptions, Place};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use serde_json::Value;

use crate::support::{UPLINK, cgroup_of, in_netns, lab, output, run};

/// Output of `doctor` in a namespace of the lab.
fn doctor(lab: &Lab, place: &Place, arguments: &[&str]) -> String {
    let mut command = in_netns(place, env!("CARGO_BIN_EXE_imds-observer"));
    Privileges::from_env()
        .expect("read the privileges")
        .reduce(&mut command);
    let output = command
        .args(["doctor", "--cgroup", lab.cgroup_directory().to_str().unwrap()])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("run doctor");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

/// The checks, without those about processes that are unrelated to the lab.
fn checks(lab: &Lab, place: &Place) -> Vec<Value> {
    let report: Value = serde_json::from_str(&doctor(lab, place, &["-o", "json"])).unwrap();
    let checks = report["checks"].as_array().unwrap();
    checks
        .iter()
        .filter(|check| check["name"] != "proxy")
        .cloned()
        .collect()
}

fn of_state<'a>(checks: &'a [Value], state: &str) -> Vec<&'a Value> {
    checks.iter().filter(|check| check["state"] == state).collect()
}

/// Checks that a host has neither a fault nor a program of another tool.
fn assert_healthy(lab: &Lab, place: &Place, when: &str) {
    let checks = checks(lab, place);
    assert_eq!(of_state(&checks, "fault"), [&Value::Null; 0], "{when}");
    let foreign = checks
        .iter()
        .filter(|check| check["name"].as_str().unwrap().ends_with("-program") && check["state"] != "ok");
    assert_eq!(foreign.collect::<Vec<_>>(), [&Value::Null; 0], "{when}");
}

#[test]
#[ignore = "live"]
fn a_healthy_host_has_no_fault() {
    let lab = lab(LabOptions::default());
    assert_healthy(&lab, lab.node(), "the node");
    assert_healthy(&lab, lab.pod(0), "a pod");
    let checks = checks(&lab, lab.node());
    for (name, subject, found) in [
        ("route", "169.254.169.254", "via 10.77.0.1 through eth0 from 10.77.0.5"),
        ("route", "fd00:ec2::254", "through eth0"),
        ("neighbour", "169.254.169.254", "10.77.0.1 on eth0: "),
        ("firewall", "169.254.169.254", "no rule blocks requests or responses"),
        ("firewall", "fd00:ec2::254", "no rule blocks requests or responses"),
        (
            "link-local-allowance",
            "eth0",
            "driver veth doesn't count packets dropped over the quota",
        ),
    ] {
        assert!(
            checks.iter().any(|check| check["name"] == name
                && check["subject"] == subject
                && check["found"].as_str().unwrap().contains(found)),
            "{name} {subject}: {found} not in {checks:#?}"
        );
    }
    // The lab masquerades in nftables, so its chain must have been read.
    let firewall = checks.iter().find(|check| check["name"] == "firewall").unwrap();
    assert!(!firewall["found"].as_str().unwrap().contains("(0 chains"), "{firewall}");
    // Every check has all keys.
    for check in &checks {
        let keys: BTreeSet<&str> = check.as_object().unwrap().keys().map(String::as_str).collect();
        let all = ["name", "subject", "state", "found", "means", "blinds", "remedy", "code"];
        assert_eq!(keys, BTreeSet::from(all));
    }
    let text = doctor(&lab, lab.node(), &[]);
    assert!(
        text.contains("between this host and IMDS") && !text.contains('\x1b'),
        "{text}"
    );
}

/// Name of the lab's policy program in the output. Reading it requires CAP_SYS_ADMIN; without it, `doctor` shows the ID.
fn known_name() -> &'static str {
    match Privileges::from_env().unwrap() {
        Privileges::Full => "imdslab_policy",
        Privileges::DaemonSet => "id ",
    }
}

/// The expected result of `doctor` for a fault before any request.
struct Wanted {
    place: Victim,
    name: &'static str,
    state: &'static str,
    found: Vec<String>,
}

fn wanted(lab: &Lab, entry: &Entry) -> Option<Wanted> {
    let text = |parts: &[&str]| parts.iter().map(|&part| part.to_owned()).collect();
    let legacy = entry.name.ends_with("-legacy");
    let wanted = |place, name, state, found| {
        Some(Wanted {
            place,
            name,
            state,
            found,
        })
    };
    match &entry.fault {
        Fault::Firewall(rule) => {
            let forward = entry.name.starts_with("forward");
            let mut found: Vec<String> = text(&[
                if legacy {
                    "tables-legacy table filter"
                } else {
                    "nft table inet"
                },
                if forward { "at FORWARD" } else { "at OUTPUT" },
                if entry.name.contains("reject") {
                    "rejects"
                } else {
                    "drops"
                },
            ]);
            if entry.name.contains("-uid") {
                found.push("for uid 0".to_owned());
            }
            if entry.name.contains("-cgroup") {
                found.push(format!("for cgroup {}", cgroup_of(lab.node())));
            }
            let place = if forward { Victim::Node } else { rule.victim };
            wanted(place, "firewall", "fault", found)
        }
        Fault::Route { kind, victim, family } => {
            let (name, state, found) = match (kind, victim) {
                (RouteFault::OnLink, _) => return None,
                (RouteFault::OnLinkSilent, _) => ("neighbour", "fault", text(&["doesn't answer"])),
                (RouteFault::None, Victim::Forwarded) => (
                    "routing-rule",
                    "fault",
                    text(&["rule 100 for packets received on cni0", "unreachable"]),
                ),
                (RouteFault::Prohibit, Victim::Forwarded) => ("routing-rule", "fault", text(&["cni0: prohibit"])),
                (RouteFault::Blackhole, Victim::Forwarded) => ("routing-rule", "fault", text(&["cni0: blackhole"])),
                (RouteFault::None, _) if *family == Family::V6 => ("route", "note", text(&["unreachable"])),
                (RouteFault::None, _) => ("route", "fault", text(&["no route to the endpoint"])),
                (RouteFault::Unreachable, _) => ("route", "fault", text(&["`unreachable` route"])),
                (RouteFault::Prohibit, _) => ("route", "fault", text(&["`prohibit` route"])),
                (RouteFault::Blackhole, _) => ("route", "fault", text(&["`blackhole` route"])),
            };
            let place = if *victim == Victim::Forwarded {
                Victim::Node
            } else {
                *victim
            };
            wanted(place, name, state, found)
        }
        Fault::Policy { hook, victim } => {
            let (name, hook) = match hook {
                Hook::Connect4 => ("cgroup-program", "connect4"),
                Hook::Connect6 => ("cgroup-program", "connect6"),
                Hook::CgroupEgress => ("cgroup-program", "cgroup_skb egress"),
                Hook::CgroupIngress => ("cgroup-program", "cgroup_skb ingress"),
                Hook::TcEgress => ("interface-program", "tcx egress"),
                // It is on the pod's veth interface, which is no uplink.
                Hook::TcIngress => return None,
            };
            let mut found = vec![match Privileges::from_env().unwrap() {
                Privileges::Full => format!("program imdslab_policy at {hook}"),
                Privileges::DaemonSet => format!("at {hook}"),
            }];
            if name == "cgroup-program" {
                found.push(cgroup_of(match victim {
                    Victim::Pod(number) => lab.pod(*number),
                    _ => lab.node(),
                }));
            }
            wanted(Victim::Node, name, "note", found)
        }
        _ => None,
    }
}

fn reports_all(family: Family) {
    let lab = lab(LabOptions::default());
    let endpoint: IpAddr = if family == Family::V6 {
        IMDS_V6.into()
    } else {
        IMDS_V4.into()
    };
    let mut reported = 0;
    for entry in registry(family) {
        let Some(wanted) = wanted(&lab, &entry) else { continue };
        let guard = lab.inject(&entry.fault).unwrap();
        if wanted.name == "neighbour" {
            // The neighbor is unknown before the first request.
            let url = format!(
                "http://{}/",
                if endpoint.is_ipv6() {
                    format!("[{endpoint}]")
                } else {
                    endpoint.to_string()
                }
            );
            run(lab.node(), "curl", &["-s", "-m", "4", &url]);
        }
        let place = match wanted.place {
            Victim::Pod(number) => lab.pod(number),
            _ => lab.node(),
        };
        let checks = checks(&lab, place);
        guard.undo().unwrap();
        let found = checks.iter().find(|check| {
            let text = check["found"].as_str().unwrap();
            let subject =
                check["name"].as_str().unwrap().ends_with("-program") || check["subject"] == endpoint.to_string();
            check["name"] == wanted.name
                && check["state"] == wanted.state
                && subject
                && wanted.found.iter().all(|part| text.contains(part))
        });
        let Some(found) = found else {
            panic!(
                "{} ({family:?}): no {} {} with {:?} among {:#?}",
                entry.name,
                wanted.name,
                wanted.state,
                wanted.found,
                checks.iter().filter(|check| check["state"] != "ok").collect::<Vec<_>>()
            );
        };
        assert_eq!(found["code"].as_str(), entry.code, "{}: {found}", entry.name);
        assert!(
            found["means"].is_string() && !found["remedy"]["text"].is_null() || found["state"] == "note",
            "{found}"
        );
        // One cause leads to one fault; the other checks must not report it.
        let faults = of_state(&checks, "fault");
        assert_eq!(
            faults.len(),
            usize::from(wanted.state == "fault"),
            "{}: {faults:#?}",
            entry.name
        );
        println!("{} ({family:?}): {}: {}", entry.name, found["state"], found["found"]);
        reported += 1;
    }
    assert!(reported >= 20, "only {reported} faults were tried");
    assert_healthy(&lab, lab.node(), "after all faults");
}

#[test]
#[ignore = "live"]
fn every_standing_fault_is_reported_over_ipv4() {
    reports_all(Family::V4);
}

#[test]
#[ignore = "live"]
fn every_standing_fault_is_reported_over_ipv6() {
    reports_all(Family::V6);
}

#[test]
#[ignore = "live"]
fn an_exclusive_program_of_another_tool_is_named() {
    let lab = lab(LabOptions::default());
    for (hook, blinds) in [
        (Hook::CgroupEgress, "everything"),
        (Hook::Connect4, "connection attempts that fail"),
    ] {
        let guard = occupy(&lab, hook).unwrap();
        let checks = checks(&lab, lab.node());
        let reported = checks
            .iter()
            .find(|check| check["name"] == "exclusive-program")
            .unwrap();
        assert_eq!(reported["state"], "missing");
        assert!(reported["blinds"].as_str().unwrap().starts_with(blinds), "{reported}");
        assert!(reported["found"].as_str().unwrap().contains(known_name()), "{reported}");
        guard.undo().unwrap();
    }
    assert_healthy(&lab, lab.node(), "after it has let go");
}

#[test]
#[ignore = "live"]
fn what_cannot_be_looked_at_leaves_the_rest_alone() {
    let lab = lab(LabOptions::default());
    let lacking = [
        "CAP_NET_ADMIN",
        "CAP_SYS_PTRACE",
        "CAP_BPF",
        "CAP_PERFMON",
        "CAP_SYS_ADMIN",
    ];
    let mut command = in_netns(lab.node(), env!("CARGO_BIN_EXE_imds-observer"));
    command.args([
        "doctor",
        "-o",
        "json",
        "--cgroup",
        lab.cgroup_directory().to_str().unwrap(),
    ]);
    let output = withhold(&mut command, &lacking).unwrap().output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let states = |name: &str, subject: Value| -> Vec<&Value> {
        let of = |check: &&Value| check["name"] == name && check["subject"] == subject;
        checks.iter().filter(of).map(|check| &check["state"]).collect()
    };
    assert_eq!(states("firewall", "nftables".into()), ["unknown"], "{checks:#?}");
    assert_eq!(states("interface-program", UPLINK.into()), ["unknown"]);
    assert_eq!(states("cgroup-program", Value::Null), ["unknown"]);
    for endpoint in ["169.254.169.254", "fd00:ec2::254"] {
        assert_eq!(states("route", endpoint.into()), ["ok"]);
        assert_eq!(states("neighbour", endpoint.into()), ["ok"]);
    }
    for name in ["CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_BPF", "CAP_PERFMON"] {
        assert_eq!(states("capability", name.into()), ["missing"]);
    }
    for check in checks.iter().filter(|check| check["state"] == "missing") {
        assert!(
            check["blinds"].is_string() && check["remedy"]["text"].is_string(),
            "{check}"
        );
    }
}

/// A process that is ended on drop.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sleeper(place: &Place, environment: &[(&str, &str)]) -> Sleeper {
    let mut command = place.command("sleep").unwrap();
    command.arg("300").env_clear().envs(environment.iter().copied());
    Sleeper(command.stdin(Stdio::null()).spawn().unwrap())
}

#[test]
#[ignore = "live"]
fn a_proxy_without_exceptions_is_reported_and_its_password_is_not() {
    let lab = lab(LabOptions::default());
    let proxy = ("http_proxy", "http://user:hunter2@proxy.internal:3128/");
    let bad = sleeper(lab.pod(0), &[proxy, ("no_proxy", "localhost,10.0.0.0/8")]);
    let only_v4 = sleeper(lab.node(), &[proxy, ("NO_PROXY", "169.254.169.254")]);
    let good = sleeper(lab.node(), &[proxy, ("no_proxy", "169.254.169.254,[fd00:ec2::254]")]);
    let json = doctor(&lab, lab.node(), &["-o", "json"]);
    let report: Value = serde_json::from_str(&json).unwrap();
    let of = |pid: u32| {
        report["checks"].as_array().unwrap().iter().find(|check| {
            let found = check["found"].as_str().unwrap();
            check["name"] == "proxy"
                && found
                    .split(|character: char| !character.is_ascii_digit())
                    .any(|number| number == pid.to_string())
        })
    };
    let reported = of(bad.0.id()).expect("the process without exceptions is reported");
    assert_eq!(
        (&reported["state"], &reported["code"]),
        (&"fault".into(), &"proxied-request".into())
    );
    let found = reported["found"].as_str().unwrap();
    assert!(
        found
            .starts_with("http_proxy=http://proxy.internal:3128 without 169.254.169.254 and fd00:ec2::254 in no_proxy"),
        "{found}"
    );
    let reported = of(only_v4.0.id()).expect("the process without an exception for IPv6 is reported");
    assert_eq!(reported["state"], "note");
    assert!(of(good.0.id()).is_none(), "the process with exceptions is left alone");
    let text = doctor(&lab, lab.node(), &[]);
    for written in [&json, &text] {
        assert!(
            !written.contains("hunter2") && !written.contains("user:"),
            "a password is shown"
        );
    }
}

/// A socket that receives every packet in the service's namespace.
struct Capture(OwnedFd);

impl Capture {
    fn begin(lab: &Lab) -> Self {
        let open = || {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap()
        };
        Self(lab.imds().run_in_thread(open).unwrap())
    }

    /// Packets to an endpoint since the last call.
    fn packets(&self) -> usize {
        let mut buffer = [0; 2048];
        let mut count = 0;
        while let Ok(length) = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            let packet = &buffer[..length];
            let v4 = packet.get(30..34) == Some(&IMDS_V4.octets()[..]) && packet[12..14] == [0x08, 0x00];
            let v6 = packet.get(38..54) == Some(&IMDS_V6.octets()[..]) && packet[12..14] == [0x86, 0xdd];
            count += usize::from(v4 || v6);
        }
        count
    }
}

/// Everything that `doctor` could have changed.
fn state(lab: &Lab) -> Vec<(String, String)> {
    let node = lab.node();
    let cgroup = lab.cgroup_directory().to_str().unwrap();
    let commands: &[&[&str]] = &[
        &["nft", "list", "ruleset"],
        &["cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"],
        &["ip", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "rule"],
        &["ip", "-6", "rule"],
        &["ip", "address"],
        &["tc", "qdisc", "show"],
        &["tc", "filter", "show", "dev", "eth0", "ingress"],
        &["bpftool", "net", "show"],
    ];
    let mut state: Vec<_> = commands
        .iter()
        .map(|command| {
            let output = in_netns(node, command[0]).args(&command[1..]).output().unwrap();
            (command.join(" "), String::from_utf8_lossy(&output.stdout).into_owned())
        })
        .collect();
    state.push((
        "bpftool cgroup tree".into(),
        output("bpftool", &["cgroup", "tree", cgroup]),
    ));
    state.push((
        "modules".into(),
        std::fs::read_to_string("/proc/modules").unwrap_or_default(),
    ));
    state
}

/// Removes usage counters, which change by themselves.
fn settled(state: Vec<(String, String)>) -> Vec<(String, String)> {
    let modules = |text: &str| {
        text.lines()
            .filter_map(|line| line.split(' ').next())
            .collect::<Vec<_>>()
            .join("\n")
    };
    let lifetimes = |text: &str| {
        text.lines()
            .map(|line| line.split(" expires ").next().unwrap())
            .collect::<Vec<_>>()
            .join("\n")
    };
    state
        .into_iter()
        .map(|(name, text)| {
            let text = if name == "modules" {
                modules(&text)
            } else {
                lifetimes(&text)
            };
            (name, text)
        })
        .collect()
}

#[test]
#[ignore = "live"]
fn it_sends_nothing_and_changes_nothing() {
    let lab = lab(LabOptions::default());
    let capture = Capture::begin(&lab);
    let before = settled(state(&lab));
    capture.packets();
    let asked = lab.server().log().total;
    for place in [lab.node(), lab.pod(0)] {
        doctor(&lab, place, &["-o", "json"]);
        doctor(&lab, place, &[]);
    }
    assert_eq!(capture.packets(), 0, "packets to the endpoints");
    assert_eq!(lab.server().log().total, asked, "requests");
    for (before, after) in before.iter().zip(&settled(state(&lab))) {
        assert_eq!(before, after);
    }
    // Checks that the capture receives packets that are sent.
    run(
        lab.node(),
        "curl",
        &["-s", "-m", "2", "http://169.254.169.254/latest/meta-data/"],
    );
    run(
        lab.pod(0),
        "curl",
        &["-s", "-m", "2", "http://[fd00:ec2::254]/latest/meta-data/"],
    );
    assert!(capture.packets() > 8);
}

/// A VPN's exit node as a fault: a separate routing table, with a rule that precedes the main table.
#[test]
#[ignore = "live"]
fn a_tunnel_that_takes_the_endpoint_is_a_fault_and_the_remedy_leads_out_of_it() {
    let lab = lab(LabOptions::default());
    let node = lab.node();
    let ip = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let output = run(node, "ip", &arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    ip("tuntap add dev tun9 mode tun");
    ip("addr add 10.99.0.2 peer 10.99.0.1 dev tun9");
    ip("link set tun9 up");
    ip("route add default dev tun9 table 52");
    ip("rule add lookup 52 priority 5270");
    let checks = checks(&lab, node);
    let of = |name: &str| {
        checks
            .iter()
            .find(|check| check["name"] == name && check["subject"] == IMDS_V4.to_string())
            .unwrap_or_else(|| panic!("no {name} among {checks:#?}"))
    };
    let route = of("route");
    assert_eq!(
        (&route["state"], &route["code"]),
        (&"fault".into(), &"no-answer".into()),
        "{route}"
    );
    let found = route["found"].as_str().unwrap();
    assert!(found.contains("tun9") && found.contains("tunnel"), "{found}");
    let commands = route["remedy"]["commands"].to_string();
    assert!(
        commands.contains("rule add to 169.254.169.254 lookup main priority 5269"),
        "{commands}"
    );
    assert!(!commands.contains("dev tun9"), "{commands}");
    assert_ne!(of("routing-rule")["state"], "ok");

    // The remedy, exactly as printed.
    ip("rule add to 169.254.169.254 lookup main priority 5269");
    let healed = self::checks(&lab, node);
    let route = healed
        .iter()
        .find(|check| check["name"] == "route" && check["subject"] == IMDS_V4.to_string());
    assert_eq!(route.unwrap()["state"], "ok", "{healed:#?}");
}
