//! Are the interfaces towards the metadata service found, and followed? Needs root; everything happens in the lab's namespaces.

use std::time::{Duration, Instant};

use imds_observer::bpf::DEFAULT_ENDPOINTS;
use imds_observer::host::{UplinkChange, UplinkMonitor, Uplinks};
use imds_observer_lab::can_run_live;
use imds_observer_lab::topology::{Lab, LabOptions, Place, RouteStyle};
use nix::poll::{PollFd, PollFlags, poll};

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
    ip(node, "rule add from 10.88.0.2 to 10.0.0.0/8 lookup 2");
    assert_eq!(uplinks(node), ["eth0"], "that rule is for other destinations");
    ip(
        node,
        "route replace 169.254.169.254 nexthop via 10.77.0.1 dev eth0 nexthop via 10.77.1.1 dev eth1",
    );
    assert_eq!(uplinks(node), ["eth0", "eth1"], "multipath");
}

#[test]
fn the_monitor_tells_what_comes_and_goes() {
    let Some(mut lab) = lab(RouteStyle::Endpoints) else {
        return;
    };
    let monitor = lab.node().run_in_thread(|| UplinkMonitor::open(&DEFAULT_ENDPOINTS));
    let mut monitor = monitor.unwrap().unwrap();
    // The sockets stay in the node's namespace, whichever thread asks.
    assert_eq!(told(&monitor.changes().unwrap()), ["+eth0"]);
    assert_eq!(monitor.changes().unwrap(), []);

    let second = lab.add_uplink().unwrap();
    lab.route_through(&second).unwrap();
    assert_eq!(until_told(&mut monitor), ["+eth1"]);
    lab.remove_uplink("eth0").unwrap();
    assert_eq!(until_told(&mut monitor), ["-eth0"]);

    // More changes than the socket holds.
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
    batch.args(["-batch", "-"]).stdin(std::process::Stdio::piped());
    let mut child = batch.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), flood.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    lab.remove_uplink("eth1").unwrap();
    assert_eq!(until_told(&mut monitor), ["-eth1"]);
    assert_eq!(monitor.uplinks(), []);
}

fn told(changes: &[UplinkChange]) -> Vec<String> {
    let name = |change: &UplinkChange| match change {
        UplinkChange::Appeared(uplink) => format!("+{}", uplink.name),
        UplinkChange::Gone(uplink) => format!("-{}", uplink.name),
    };
    changes.iter().map(name).collect()
}

fn until_told(monitor: &mut UplinkMonitor) -> Vec<String> {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        let mut fds = [PollFd::new(monitor.fd(), PollFlags::POLLIN)];
        poll(&mut fds, 1_000_u16).unwrap();
        let changes = monitor.changes().unwrap();
        if !changes.is_empty() {
            return told(&changes);
        }
    }
    panic!("no change was told");
}
