//! Kinds of interfaces between the node, its pods and the service. For each kind, the observer must report the TTLs on the wire, the
//! delivery, and the client.
//!
//! All kinds share one lab and one observer: each uplink is added after the observer's start, and removed again.

use std::time::Instant;

use imds_observer_lab::topology::{Lab, LabOptions, Place};
use serde_json::Value;

use crate::support::{Observer, cgroup_of, in_netns, kernel, lab, patience, run, slowness};

/// Kinds that this kernel must support, separated by commas. Otherwise the test would silently skip a kind whose module is missing.
const EXPECTED: &str = "IMDS_OBSERVER_TEST_DEVICES";

/// A device through which the node reaches the service.
struct Uplink {
    kind: &'static str,
    /// The device, with address 10.78.0.5. The device on the service's side is `peer0`, with address 10.78.0.1.
    device: &'static str,
    /// Commands that create it. `eth1` and `up1` are the ends of a veth pair; `$IMDS` names the service's network namespace.
    node: &'static str,
    imds: &'static str,
    undo: &'static str,
    /// The interface that shows its packets unchanged: a lower interface, or else the device itself.
    observed: &'static str,
}

const BRIDGE_AS_PEER: &str = "ip link add peer0 type bridge; ip link set up1 master peer0";

const UPLINKS: &[Uplink] = &[
    Uplink {
        kind: "vlan",
        device: "eth1.100",
        node: "ip link add link eth1 name eth1.100 type vlan id 100",
        imds: "ip link add link up1 name peer0 type vlan id 100",
        undo: "ip link del eth1.100",
        observed: "eth1",
    },
    Uplink {
        kind: "macvlan",
        device: "mv0",
        node: "ip link add link eth1 name mv0 type macvlan mode bridge",
        imds: "ip link add link up1 name peer0 type macvlan mode bridge",
        undo: "ip link del mv0",
        observed: "eth1",
    },
    Uplink {
        kind: "ipvlan",
        device: "iv0",
        node: "ip link add link eth1 name iv0 type ipvlan mode l2",
        imds: "ip link add link up1 name peer0 type ipvlan mode l2",
        undo: "ip link del iv0",
        observed: "eth1",
    },
    // On the lower device, the packets are encapsulated.
    Uplink {
        kind: "vxlan",
        device: "vx0",
        node: "ip link add vx0 type vxlan id 7 local 10.77.1.5 remote 10.77.1.1 dstport 4789 dev eth1",
        imds: "ip link add peer0 type vxlan id 7 local 10.77.1.1 remote 10.77.1.5 dstport 4789 dev up1",
        undo: "ip link del vx0",
        observed: "vx0",
    },
    Uplink {
        kind: "gre",
        device: "tun9",
        node: "ip link add tun9 type gre local 10.77.1.5 remote 10.77.1.1 dev eth1",
        imds: "ip link add peer0 type gre local 10.77.1.1 remote 10.77.1.5 dev up1",
        undo: "ip link del tun9",
        observed: "tun9",
    },
    Uplink {
        kind: "ipip",
        device: "tun8",
        node: "ip link add tun8 type ipip local 10.77.1.5 remote 10.77.1.1 dev eth1",
        imds: "ip link add peer0 type ipip local 10.77.1.1 remote 10.77.1.5 dev up1",
        undo: "ip link del tun8",
        observed: "tun8",
    },
    Uplink {
        kind: "wireguard",
        device: "wg0",
        node: "ip link add wg0 type wireguard; umask 077; cd /tmp; wg genkey >imdslab-wg0; wg genkey >imdslab-wg1; \
               wg set wg0 listen-port 51820 private-key imdslab-wg0 \
               peer $(wg pubkey <imdslab-wg1) allowed-ips 0.0.0.0/0 endpoint 10.77.1.1:51821",
        imds: "ip link add peer0 type wireguard; cd /tmp; wg set peer0 listen-port 51821 private-key imdslab-wg1 \
               peer $(wg pubkey <imdslab-wg0) allowed-ips 0.0.0.0/0 endpoint 10.77.1.5:51820; rm imdslab-wg0 imdslab-wg1",
        undo: "ip link del wg0",
        observed: "wg0",
    },
    Uplink {
        kind: "netkit",
        device: "primary0",
        node: "ip link add primary0 type netkit; ip link set nk0 netns $IMDS",
        imds: "ip link set nk0 name peer0",
        undo: "ip link del primary0",
        observed: "primary0",
    },
    Uplink {
        kind: "bond",
        device: "bond0",
        node: "ip link add bond0 type bond mode active-backup miimon 100; ip link set eth1 down; ip link set eth1 master bond0",
        imds: BRIDGE_AS_PEER,
        undo: "ip link del bond0; ip link set eth1 up",
        observed: "bond0",
    },
    // The pods' bridge is in the same VRF, as on hosts that separate tenants.
    Uplink {
        kind: "vrf",
        device: "eth1",
        node: "ip link add blue type vrf table 77; ip link set blue up; ip link set eth1 master blue; ip link set cni0 master blue",
        imds: BRIDGE_AS_PEER,
        undo: "ip link del blue; ip addr del 10.78.0.5/24 dev eth1",
        observed: "eth1",
    },
];

fn shell(place: &Place, script: &str, imds: &str) -> Result<(), String> {
    let output = in_netns(place, "sh")
        .args(["-euc", script])
        .env("IMDS", imds)
        .output()
        .unwrap();
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// Creates the devices. Returns `false` if this kernel doesn't have them.
fn make(lab: &Lab, uplink: &Uplink) -> bool {
    let imds = lab.imds().netns().name();
    let expected = std::env::var(EXPECTED).unwrap_or_default();
    // netkit exists since 6.7.
    let must = expected.split(',').any(|kind| kind == uplink.kind) && (uplink.kind != "netkit" || kernel() >= (6, 7));
    let made = shell(lab.node(), uplink.node, imds).and_then(|()| shell(lab.imds(), uplink.imds, imds));
    if let Err(error) = made {
        assert!(!must, "{}: {error}", uplink.kind);
        eprintln!("left out: {}: {error}", uplink.kind);
        let _ = shell(lab.node(), uplink.undo, imds);
        let _ = shell(lab.imds(), "ip link del peer0", imds);
        return false;
    }
    let device = uplink.device;
    let table = if uplink.kind == "vrf" { "vrf blue" } else { "" };
    let addresses =
        |device: &str, address: &str| format!("ip addr add {address}/24 dev {device}; ip link set {device} up");
    let whole = shell(lab.imds(), &addresses("peer0", "10.78.0.1"), imds)
        .and_then(|()| shell(lab.node(), &addresses(device, "10.78.0.5"), imds))
        .and_then(|()| {
            let route = format!("ip route replace 169.254.169.254/32 via 10.78.0.1 dev {device} {table}");
            shell(lab.node(), &route, imds)
        });
    assert_eq!(whole, Ok(()), "{}", uplink.kind);
    true
}

fn unmake(lab: &Lab, uplink: &Uplink) {
    let imds = lab.imds().netns().name();
    let undo = format!(
        "ip route replace 169.254.169.254/32 via 10.77.0.1 dev eth0; {}",
        uplink.undo
    );
    assert_eq!(shell(lab.node(), &undo, imds), Ok(()), "{}", uplink.kind);
    // The kernel may already have removed this end with the other end of its pair.
    let _ = shell(lab.imds(), "ip link del peer0", imds);
}

fn curl(place: &Place, name: &str, more: &[&str]) {
    let url = format!("http://169.254.169.254/latest/{name}");
    let longest = (2 * slowness()).to_string();
    let mut arguments = vec!["-s", "-m", &longest, "-o", "/dev/null"];
    arguments.extend(more);
    arguments.push(&url);
    run(place, "curl", &arguments);
}

/// The exchange of this path, which may already have been recorded.
fn exchange(observer: &mut Observer, path: &str) -> Value {
    let wanted = |record: &Value| {
        record["record"] == "exchange" && record["request"]["path"].as_str() == Some(&format!("/latest/{path}"))
    };
    let known = observer
        .output
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .find(&wanted);
    known.unwrap_or_else(|| observer.wait_for(wanted))
}

#[test]
#[ignore = "live"]
fn each_kind_of_uplink_shows_the_wire_and_the_caller() {
    let mut lab = lab(LabOptions::default());
    assert_eq!(lab.add_uplink().unwrap(), "eth1");
    // A route for link-local addresses as on real hosts, which makes the veth interface an uplink too.
    let zeroconf = "ip route add 169.254.0.0/16 dev eth1 metric 9000";
    assert_eq!(shell(lab.node(), zeroconf, ""), Ok(()));
    let mut observer = Observer::follow(&lab, &["--interval", "1s"]);
    let mut seen = Vec::new();
    for uplink in UPLINKS {
        if !make(&lab, uplink) {
            continue;
        }
        let kind = uplink.kind;
        let begin = Instant::now();
        while {
            let summary = observer.wait_for(|record| record["record"] == "summary");
            let interfaces = summary["interfaces"].as_array().unwrap();
            !interfaces.iter().any(|found| found["name"] == uplink.observed)
        } {
            assert!(
                begin.elapsed() < patience(),
                "{kind}: {} is not observed",
                uplink.observed
            );
        }
        // docs/limitations.md: on these kernels, packets that an IPIP device receives begin with the outer headers.
        let sees_wire = kind != "ipip" || kernel() >= (5, 15);
        let bound: &[&str] = if kind == "vrf" { &["--interface", "blue"] } else { &[] };
        curl(lab.node(), &format!("meta-data/?{kind}-host"), bound);
        curl(lab.pod(0), &format!("meta-data/?{kind}-pod"), &[]);
        // The hop limit of 1 is too small for a pod.
        let put = ["-X", "PUT", "-H", "X-aws-ec2-metadata-token-ttl-seconds: 60"];
        curl(lab.pod(0), &format!("api/token?{kind}"), &put);
        for (path, place, ttl) in [("host", lab.node(), 64), ("pod", lab.pod(0), 63)] {
            let record = exchange(&mut observer, &format!("meta-data/?{kind}-{path}"));
            assert_eq!(record["outcome"], "answered", "{kind}: {record}");
            assert_eq!(record["request"]["ttl"], ttl, "{kind}: {record}");
            assert_eq!(record["request"]["ttl_on_wire"], true, "{kind}: {record}");
            if sees_wire {
                assert_eq!(record["response"]["ttl"], 255, "{kind}: {record}");
            }
            assert_eq!(record["response"]["delivered"], true, "{kind}: {record}");
            assert_eq!(record["process"]["comm"], "curl", "{kind}: {record}");
            assert_eq!(record["process"]["cgroup"], cgroup_of(place), "{kind}: {record}");
        }
        let record = exchange(&mut observer, &format!("api/token?{kind}"));
        if sees_wire {
            assert_eq!(record["outcome"], "lost", "{kind}: {record}");
            assert_eq!(record["response"]["ttl"], 1, "{kind}: {record}");
            assert_eq!(record["response"]["delivered"], false, "{kind}: {record}");
        } else {
            assert_eq!(record["response"]["ttl"], Value::Null, "{kind}: {record}");
        }
        assert_eq!(record["process"]["comm"], "curl", "{kind}: {record}");
        unmake(&lab, uplink);
        seen.push(kind);
    }
    let finished = observer.finish();
    assert_eq!(
        finished.kind("exchange").len(),
        3 * seen.len(),
        "each once: {}",
        finished.stdout
    );
    eprintln!("seen: {}", seen.join(", "));
    assert!(
        seen.contains(&"vxlan") || seen.contains(&"macvlan"),
        "this kernel has none of these kinds"
    );
}
