//! Checks that the interfaces towards the metadata service are found and followed. Needs root; everything happens in the lab's namespaces.

#![cfg(live)]

use std::io::{BufRead as _, BufReader, Read};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use imds_observer::bpf::DEFAULT_ENDPOINTS;
use imds_observer::host::{UplinkChange, UplinkMonitor, Uplinks};
use imds_observer_lab::can_run_live;
use imds_observer_lab::privileges::Privileges;
use imds_observer_lab::topology::{Lab, LabOptions, Place, PodOptions, RouteStyle};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

fn lab(route: RouteStyle) -> Option<Lab> {
    let options = LabOptions {
        route,
        ..LabOptions::default()
    };
    can_run_live().then(|| Lab::new(options).unwrap())
}

fn ip(place: &Place, arguments: &str) {
    let mut command = place.command("ip").unwrap();
    let status = command.args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn uplinks(place: &Place) -> Vec<String> {
    let found = place.run_in_thread(|| Uplinks::discover(&DEFAULT_ENDPOINTS));
    found.unwrap().unwrap().into_iter().map(|uplink| uplink.name).collect()
}

#[test]
fn the_route_to_the_endpoints_names_the_uplink() {
    for style in [RouteStyle::Endpoints, RouteStyle::Default] {
        let Some(mut lab) = lab(style) else { return };
        assert_eq!(uplinks(lab.node()), ["eth0"], "{style:?}");
        assert_eq!(uplinks(lab.pod(0)), ["eth0"], "a pod's own");
        let second = lab.add_uplink().unwrap();
        assert_eq!(uplinks(lab.node()), ["eth0"], "nothing is routed through the second");
        lab.route_through(&second).unwrap();
        assert_eq!(uplinks(lab.node()), ["eth1"]);
    }
}

#[test]
fn no_way_out_is_a_finding_and_no_error() {
    let Some(lab) = lab(RouteStyle::Endpoints) else { return };
    let node = lab.node();
    assert_eq!(
        uplinks(lab.imds()),
        [""; 0],
        "the service's own addresses are on loopback"
    );
    ip(node, "route del 169.254.169.254");
    assert_eq!(uplinks(node), ["eth0"], "IPv6 still leads out");
    ip(node, "-6 route del fd00:ec2::254");
    assert_eq!(uplinks(node), [""; 0]);
    for kind in ["unreachable", "prohibit", "blackhole"] {
        ip(node, &format!("route add {kind} 169.254.169.254"));
        ip(node, &format!("-6 route add {kind} fd00:ec2::254"));
        assert_eq!(uplinks(node), [""; 0], "{kind}");
        ip(node, "route del 169.254.169.254");
        ip(node, "-6 route del fd00:ec2::254");
    }
}

#[test]
fn pods_routed_by_source_or_interface_and_multipath_are_found() {
    let Some(mut lab) = lab(RouteStyle::Endpoints) else {
        return;
    };
    lab.add_uplink().unwrap();
    let node = lab.node();
    ip(node, "route add default via 10.77.1.1 dev eth1 table 2");
    assert_eq!(uplinks(node), ["eth0"], "no rule leads to the table");
    ip(node, "rule add from 10.88.0.2 lookup 2");
    assert_eq!(uplinks(node), ["eth0", "eth1"]);
    ip(node, "rule del from 10.88.0.2 lookup 2");
    ip(node, "rule add iif cni0 lookup 2");
    assert_eq!(uplinks(node), ["eth0", "eth1"]);
    ip(node, "rule del iif cni0 lookup 2");
    for rule in [
        "fwmark 0x7",
        "oif eth1",
        "uidrange 65533-65533",
        "ipproto 6 dport 80",
        "not fwmark 0x7",
    ] {
        ip(node, &format!("rule add {rule} lookup 2"));
        assert_eq!(uplinks(node), ["eth0", "eth1"], "{rule}");
        ip(node, &format!("rule del {rule} lookup 2"));
    }
    ip(node, "route add default via 10.77.1.1 dev eth1 metric 4000");
    assert_eq!(
        uplinks(node),
        ["eth0", "eth1"],
        "for sockets that are bound to the device"
    );
    ip(node, "route del default via 10.77.1.1 dev eth1 metric 4000");
    ip(node, "rule add from 10.88.0.2 to 10.0.0.0/8 lookup 2");
    assert_eq!(uplinks(node), ["eth0"], "that rule is for other destinations");
    ip(
        node,
        "route replace 169.254.169.254 nexthop via 10.77.0.1 dev eth0 nexthop via 10.77.1.1 dev eth1",
    );
    assert_eq!(uplinks(node), ["eth0", "eth1"], "multipath");
}

#[test]
fn the_monitor_reports_what_comes_and_goes() {
    let Some(mut lab) = lab(RouteStyle::Endpoints) else {
        return;
    };
    let monitor = lab.node().run_in_thread(|| UplinkMonitor::open(&DEFAULT_ENDPOINTS));
    let mut monitor = monitor.unwrap().unwrap();
    // The sockets stay in the node's namespace, regardless of the calling thread.
    assert_eq!(names(&monitor.changes().unwrap()), ["+eth0"]);
    assert_eq!(monitor.changes().unwrap(), []);

    let second = lab.add_uplink().unwrap();
    lab.route_through(&second).unwrap();
    assert_eq!(until_changed(&mut monitor), ["+eth1"]);
    lab.remove_uplink("eth0").unwrap();
    assert_eq!(until_changed(&mut monitor), ["-eth0"]);

    // More changes than the socket's buffer holds.
    let mut flood = String::new();
    for number in 0..4000 {
        use std::fmt::Write as _;
        let _ = writeln!(
            flood,
            "route add 10.200.{}.{}/32 dev eth1",
            number / 250,
            number % 250 + 1
        );
    }
    let mut batch = lab.node().command("ip").unwrap();
    batch.args(["-batch", "-"]).stdin(Stdio::piped());
    let mut child = batch.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), flood.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    lab.remove_uplink("eth1").unwrap();
    assert_eq!(until_changed(&mut monitor), ["-eth1"]);
    assert_eq!(monitor.uplinks(), []);
}

/// udev renames interfaces at boot.
#[test]
fn the_monitor_sees_names_move() {
    let Some(lab) = lab(RouteStyle::Endpoints) else {
        return;
    };
    let monitor = lab.node().run_in_thread(|| UplinkMonitor::open(&DEFAULT_ENDPOINTS));
    let mut monitor = monitor.unwrap().unwrap();
    assert_eq!(names(&monitor.changes().unwrap()), ["+eth0"]);
    let ip = |line: &str| {
        let status = lab
            .node()
            .command("ip")
            .unwrap()
            .args(line.split(' '))
            .status()
            .unwrap();
        assert!(status.success(), "ip {line}");
    };
    ip("link set eth0 down");
    ip("link set eth0 name ens5");
    assert_eq!(until_changed(&mut monitor), ["~ens5"]);
    ip("link del ens5");
    assert_eq!(until_changed(&mut monitor), ["-ens5"]);
}

fn names(changes: &[UplinkChange]) -> Vec<String> {
    let name = |change: &UplinkChange| match change {
        UplinkChange::Appeared(uplink) => format!("+{}", uplink.name),
        UplinkChange::Renamed(uplink) => format!("~{}", uplink.name),
        UplinkChange::Gone(uplink) => format!("-{}", uplink.name),
    };
    changes.iter().map(name).collect()
}

fn until_changed(monitor: &mut UplinkMonitor) -> Vec<String> {
    let end = Instant::now() + Duration::from_secs(5) * slowness();
    while Instant::now() < end {
        let mut fds = [PollFd::new(monitor.fd(), PollFlags::POLLIN)];
        poll(&mut fds, 1_000_u16).unwrap();
        let changes = monitor.changes().unwrap();
        if !changes.is_empty() {
            return names(&changes);
        }
    }
    panic!("no change was reported");
}

/// A response with a TTL in its record has passed one of our programs at an uplink.
#[test]
fn stream_follows_the_uplinks_when_none_is_named() {
    let Some(mut lab) = lab(RouteStyle::Endpoints) else {
        return;
    };
    let mut command = lab.node().command_beside(env!("CARGO_BIN_EXE_imds-observer")).unwrap();
    Privileges::from_env().unwrap().reduce(&mut command);
    let mut child = command
        .args(["stream", "--cgroup", lab.cgroup_directory().to_str().unwrap()])
        .env("IMDS_OBSERVER_LOG", "info")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = lines(child.stderr.take().unwrap());
    let mut records = lines(child.stdout.take().unwrap());
    let start = until(&mut records, |_| true).expect("a first record");
    let start: Value = serde_json::from_str(&start).unwrap();
    assert_eq!(start["interfaces"], json!(["eth0"]), "{start}");

    let answered = |records: &mut Receiver<String>| {
        let answer = until(records, |line| line.contains(r#""record":"exchange""#)).expect("an exchange");
        serde_json::from_str::<Value>(&answer).unwrap()["response"]["ttl"].clone()
    };
    curl(lab.node());
    assert_eq!(answered(&mut records), 255, "through the first uplink");
    let late = lab.add_pod(&PodOptions::default()).unwrap();
    curl(lab.pod(late));
    assert_eq!(
        answered(&mut records),
        255,
        "from a namespace that the observer is older than"
    );
    let second = lab.add_uplink().unwrap();
    lab.route_through(&second).unwrap();
    until(&mut log, |line| line.contains("attached to uplink eth1")).expect("the second uplink is found");
    curl(lab.node());
    assert_eq!(answered(&mut records), 255, "through the second uplink");
    lab.remove_uplink("eth0").unwrap();
    until(&mut log, |line| line.contains("detached from uplink eth0")).expect("the first uplink's end is seen");
    curl(lab.node());
    assert_eq!(answered(&mut records), 255, "after the first is gone");

    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    assert!(child.wait().unwrap().success());
    let rest: Vec<_> = records.iter().collect();
    let summary = rest
        .iter()
        .rev()
        .find(|line| line.contains(r#""record":"summary""#))
        .unwrap();
    let summary: Value = serde_json::from_str(summary).unwrap();
    let interfaces = summary["interfaces"].as_array().unwrap();
    for name in ["eth0", "eth1"] {
        let interface = interfaces.iter().find(|interface| interface["name"] == name).unwrap();
        assert!(interface["egress_packets"].as_u64().unwrap() > 0, "{interface}");
        assert!(
            interface["allowance_exceeded"].is_null(),
            "veth counts no allowance: {interface}"
        );
    }
}

fn curl(place: &Place) {
    let mut command = place.command("curl").unwrap();
    let url = "http://169.254.169.254/latest/meta-data/instance-id";
    let output = command.args(["-sS", "--max-time", "5", url]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        BufReader::new(stream)
            .lines()
            .map_while(Result::ok)
            .all(|line| sender.send(line).is_ok())
    });
    receiver
}

/// Factor by which a guest is slower than this machine.
fn slowness() -> u32 {
    std::env::var("IMDS_OBSERVER_TEST_PATIENCE").map_or(1, |factor| factor.parse().expect("a whole number"))
}

fn until(lines: &mut Receiver<String>, wanted: impl Fn(&str) -> bool) -> Option<String> {
    let end = Instant::now() + Duration::from_secs(20) * slowness();
    loop {
        let line = lines.recv_timeout(end.saturating_duration_since(Instant::now())).ok()?;
        if wanted(&line) {
            return Some(line);
        }
    }
}
