//! Hosts that differ from the lab's: cgroups with long names, in v1 hierarchies, moved, or named by a user; clients that close connections
//! in unusual ways; policies that run after our programs; interfaces that are renamed; and dozens of pods that are added and removed.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use imds_observer::record::Time;
use imds_observer_lab::faults::{Fault, Hook, Victim};
use imds_observer_lab::server::Behaviour;
use imds_observer_lab::topology::{Lab, LabOptions, Place};
use serde_json::Value;

use crate::support::{Observer, in_netns, lab, patience, program, run, slowness};

const ID: &str = "3f8a1c5d9b3e7a2f4c6d8e0b1a3c5e7f9d2b4a6c8e0f1a3b5c7d9e1f3a5b7c9d";
const OTHER: &str = "7b2d9e4f1a6c3b8d5e0f2a7c9b4d1e6f3a8c5b0d7e2f9a4c1b6d3e8f5a0c7b2d";
const UID: &str = "6e1c5a52-3f0b-4a7e-9d0c-2b8f4a1e7c33";

/// Prelude of all scripts: one request on a socket, and ways to open one.
const PRELUDE: &str = r#"
import json, os, socket, struct, sys, threading, time
def connected():
    return socket.create_connection(("169.254.169.254", 80), 30)
def request(name, more=""):
    return f"GET /latest/meta-data/instance-id?{name} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode()
def answered(s):
    got = b""
    while b"\r\n\r\n" not in got:
        more = s.recv(4096)
        assert more, got
        got += more
    head, _, body = got.partition(b"\r\n\r\n")
    length = next(int(l.split(b":")[1]) for l in head.split(b"\r\n") if l.lower().startswith(b"content-length:"))
    while len(body) < length:
        body += s.recv(4096)
def ask(name):
    s = connected()
    s.sendall(request(name, "Connection: close\r\n"))
    answered(s)
def enter(directory):
    with open(directory + "/cgroup.procs", "w") as procs:
        procs.write(str(os.getpid()))
"#;

fn python(place: &Place, code: &str) -> String {
    let output = run(place, "/usr/bin/python3", &["-c", &format!("{PRELUDE}{code}")]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn asks(record: &Value, name: &str) -> bool {
    let path = record["request"]["path"].as_str().unwrap_or_default();
    record["record"] == "exchange" && path.ends_with(&format!("?{name}"))
}

/// A matching record, which may already have been written.
fn seen(observer: &mut Observer, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut known = observer.output.iter().map(|line| serde_json::from_str(line).unwrap());
    match known.find(&wanted) {
        Some(record) => record,
        None => observer.wait_for(wanted),
    }
}

fn exchange(observer: &mut Observer, name: &str) -> Value {
    seen(observer, |record| asks(record, name))
}

/// Directories that are removed on drop, the deepest first.
struct Cgroups(Vec<PathBuf>);

impl Cgroups {
    fn below(top: &Path, paths: &[&str]) -> Self {
        let mut made = Vec::new();
        for path in paths {
            let mut directory = top.to_owned();
            for component in path.split('/') {
                directory.push(component);
                if !directory.exists() {
                    fs::create_dir(&directory).unwrap_or_else(|error| panic!("make {}: {error}", directory.display()));
                    made.push(directory.clone());
                }
            }
        }
        Self(made)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let deadline = Instant::now() + patience();
        for directory in self.0.iter().rev() {
            // A process that has ended leaves its cgroup a moment later.
            while let Err(error) = fs::remove_dir(directory) {
                if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() > deadline {
                    break;
                }
                std::thread::yield_now();
            }
        }
    }
}

fn container(record: &Value) -> (Option<&str>, Option<&str>) {
    let container = &record["container"];
    (container["id"].as_str(), container["pod"]["uid"].as_str())
}

#[test]
#[ignore = "live"]
fn containers_in_long_moved_and_forged_cgroups() {
    let lab = lab(LabOptions::default());
    lab.server().set(Behaviour {
        keep_alive: true,
        ..Behaviour::default()
    });
    let node = lab.node().cgroup().directory().to_owned();
    // containerd's form if its cgroup driver differs from kubelet's. The kernel allows names of up to 255 bytes.
    let long = format!(
        "containerd.service/kubepods-burstable-pod{}.slice:cri-containerd:{ID}",
        UID.replace('-', "_")
    );
    let third = "0a".repeat(32);
    let longest = format!("{}:cri-containerd:{third}", "x".repeat(255 - 80));
    let (first, second) = (format!("docker/{ID}"), format!("docker/{OTHER}"));
    let session = "user-1000.slice/user@1000.service";
    let forged = format!("{session}/kubepods/burstable/pod{UID}/{ID}");
    // A container's own cgroup, created by a runtime, and a cgroup that the container creates in it.
    let own = format!("kubepods/pod{UID}/{OTHER}");
    let inner = format!("{own}/docker/{ID}");
    let _cgroups = Cgroups::below(&node, &[&long, &longest, &first, &second, &forged, &inner]);
    chown(node.join(session), Some(1000), Some(1000)).unwrap();
    chown(node.join(&own), Some(100_000), Some(100_000)).unwrap();
    let mut observer = Observer::stream(&lab, &[]);
    let at = |path: &str| node.join(path).to_str().unwrap().to_owned();
    for (name, path) in [
        ("long", &long),
        ("longest", &longest),
        ("forged", &forged),
        ("own", &own),
        ("inner", &inner),
    ] {
        python(lab.node(), &format!("enter('{}')\nask('{name}')", at(path)));
    }
    python(
        lab.node(),
        &format!(
            "enter('{}')\ns = connected()\ns.sendall(request('before'))\nanswered(s)\nenter('{}')\n\
             s.sendall(request('after'))\nanswered(s)\nask('again')",
            at(&first),
            at(&second)
        ),
    );
    let mut of = |name: &str| exchange(&mut observer, name);
    let record = of("long");
    assert_eq!(container(&record), (Some(ID), Some(UID)), "{record}");
    assert!(
        record["process"]["cgroup"].as_str().unwrap().ends_with(&long),
        "{record}"
    );
    let record = of("longest");
    assert_eq!(container(&record), (Some(third.as_str()), None), "{record}");
    let record = of("forged");
    assert_eq!(container(&record), (None, None), "{record}");
    assert!(
        record["process"]["cgroup"].as_str().unwrap().ends_with(&forged),
        "{record}"
    );
    let record = of("own");
    assert_eq!(container(&record), (Some(OTHER), Some(UID)), "{record}");
    let record = of("inner");
    assert_eq!(container(&record), (Some(OTHER), Some(UID)), "{record}");
    let record = of("before");
    assert_eq!(container(&record).0, Some(ID), "{record}");
    let record = of("after");
    assert_eq!(container(&record).0, Some(OTHER), "{record}");
    let record = of("again");
    assert_eq!(container(&record).0, Some(OTHER), "{record}");
    observer.finish();
}

/// Mount points of v1 hierarchies, from `mountinfo`. `cpuset` is excluded, because it accepts no process before it is configured.
fn v1_hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let point = |line: &str| {
        let (before, after) = line.split_once(" - cgroup ")?;
        (!after.contains("cpuset")).then(|| PathBuf::from(before.split(' ').nth(4).unwrap()))
    };
    mounts.lines().filter_map(point).collect()
}

#[test]
#[ignore = "live"]
fn a_container_that_only_v1_hierarchies_show() {
    let hierarchies = v1_hierarchies();
    if hierarchies.is_empty() {
        eprintln!("left out: this host has no cgroup v1 hierarchy");
        return;
    }
    let lab = lab(LabOptions::default());
    let service = "containerd.service";
    let _v2 = Cgroups::below(lab.node().cgroup().directory(), &[service]);
    let path = format!("imdslab-{}/kubepods/burstable/pod{UID}/{ID}", lab.id());
    let v1: Vec<_> = hierarchies.iter().map(|top| Cgroups::below(top, &[&path])).collect();
    let mut observer = Observer::stream(&lab, &[]);
    let mut enter = format!("enter('{}')\n", lab.node().cgroup().directory().join(service).display());
    for top in &hierarchies {
        enter.push_str(&format!("enter('{}')\n", top.join(&path).display()));
    }
    python(lab.node(), &format!("{enter}ask('hybrid')"));
    let record = exchange(&mut observer, "hybrid");
    assert_eq!(container(&record), (Some(ID), Some(UID)), "{record}");
    observer.finish();
    drop(v1);
}

#[test]
#[ignore = "live"]
fn the_end_of_a_socket_decides() {
    let lab = lab(LabOptions::default());
    lab.server().set(Behaviour {
        delay_ms: 1_500,
        ..Behaviour::default()
    });
    let mut observer = Observer::stream(&lab, &[]);
    let addresses = python(
        lab.node(),
        r#"
addresses = {}
def run(name, act):
    s = connected()
    addresses[name] = "%s:%d" % s.getsockname()
    s.sendall(request(name))
    act(s)
    s.close()
def half(s):
    s.shutdown(socket.SHUT_WR)
    answered(s)
def aborts(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
def half_and_away(s):
    s.shutdown(socket.SHUT_WR)
run("half", half)
run("aborted", aborts)
run("plain", lambda s: None)
run("half-and-away", half_and_away)
run("whole", answered)
print(json.dumps(addresses))
"#,
    );
    let addresses: Value = serde_json::from_str(&addresses).unwrap();
    for (name, outcome) in [
        ("half", "answered"),
        ("aborted", "closed"),
        ("plain", "closed"),
        ("half-and-away", "closed"),
        ("whole", "answered"),
    ] {
        let record = exchange(&mut observer, name);
        assert_eq!(record["outcome"], outcome, "{record}");
        assert_eq!(record["connection"]["local"], addresses[name], "{record}");
        assert_eq!(record["connection"]["remote"], "169.254.169.254:80", "{record}");
        let delivered = (outcome == "answered").then_some(true);
        assert_eq!(record["response"]["delivered"].as_bool(), delivered, "{record}");
    }
    observer.finish();
}

#[test]
#[ignore = "live"]
fn a_policy_that_refuses_the_syn_ack() {
    let lab = lab(LabOptions::default());
    let mut observer = Observer::stream(&lab, &[]);
    let fault = Fault::Policy {
        hook: Hook::CgroupIngress,
        victim: Victim::Node,
    };
    let guard = lab.inject(&fault).unwrap();
    python(
        lab.node(),
        r#"
s = socket.socket()
s.settimeout(1.5)
try:
    s.connect(("169.254.169.254", 80))
    sys.exit("connected")
except TimeoutError:
    s.close()
"#,
    );
    let record = seen(&mut observer, |record| record["record"] == "connect");
    assert_eq!(record["outcome"], "timeout", "{record}");
    assert!(record["syn_acks"].as_u64() > Some(0), "{record}");
    // The policy drops a response.
    let finding = seen(&mut observer, |record| {
        record["record"] == "finding" && record["state"] == "open"
    });
    assert_eq!(finding["code"], "response-dropped", "{finding}");
    drop(guard);
    observer.finish();
}

/// `stream` that finds its uplinks by itself.
fn following(lab: &Lab) -> Observer {
    let cgroup = lab.cgroup_directory().to_str().unwrap();
    let mut observer =
        Observer::start(in_netns(lab.node(), program()).args(["stream", "--cgroup", cgroup, "--interval", "1s"]));
    observer.wait_for(|record| record["record"] == "start");
    observer
}

fn shell(place: &Place, script: &str) -> String {
    let output = in_netns(place, "sh").args(["-euc", script]).output().unwrap();
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Sends requests until a summary counts packets at this interface.
fn counted_at(lab: &Lab, observer: &mut Observer, interface: &str) {
    let deadline = Instant::now() + patience();
    loop {
        python(lab.node(), "ask('counted')");
        let summary = observer.wait_for(|record| record["record"] == "summary");
        let interfaces = summary["interfaces"].as_array().unwrap();
        let found = interfaces.iter().find(|found| found["name"] == interface);
        if found.is_some_and(|found| found["egress_packets"].as_u64() > Some(0)) {
            return;
        }
        assert!(Instant::now() < deadline, "no packets at {interface}: {summary}");
    }
}

#[test]
#[ignore = "live"]
fn interfaces_are_renamed_and_replaced() {
    let lab = lab(LabOptions::default());
    let address_of = |place: &Place, device: &str| {
        let shown = shell(place, &format!("ip -o -4 addr show dev {device}"));
        shown.split_whitespace().nth(3).unwrap().to_owned()
    };
    let address = address_of(lab.node(), "eth0");
    let gateway = address_of(lab.imds(), "up0");
    let hop = gateway.split('/').next().unwrap();
    let mut observer = following(&lab);
    counted_at(&lab, &mut observer, "eth0");
    let route = |name: &str| format!("ip route replace 169.254.169.254/32 via {hop} dev {name}");
    shell(
        lab.node(),
        &format!(
            "ip link set eth0 down; ip link set eth0 name ens5; ip link set ens5 up; {}",
            route("ens5")
        ),
    );
    counted_at(&lab, &mut observer, "ens5");
    let shown = shell(lab.node(), "ip -o link show dev ens5");
    let (index, _) = shown.split_once(':').unwrap();
    // In one call, so that both changes are between two checks of the observer.
    shell(
        lab.node(),
        &format!(
            "ip link del ens5; ip link add ens5 index {index} type veth peer name up0 netns {}; \
             ip addr add {address} dev ens5; ip link set ens5 up",
            lab.imds().netns().name()
        ),
    );
    shell(
        lab.imds(),
        &format!("ip addr add {gateway} dev up0; ip link set up0 up"),
    );
    shell(lab.node(), &route("ens5"));
    counted_at(&lab, &mut observer, "ens5");
    observer.finish();
}

/// Limit on the time for which kernel events wait for the reader while interfaces are added and removed. The kernel holds its RTNL lock for
/// most of that time.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

#[test]
#[ignore = "live"]
fn pods_that_come_and_go_hold_nothing_up() {
    let lab = lab(LabOptions::default());
    let mut observer = following(&lab);
    let mut churn = in_netns(lab.node(), "sh")
        .args([
            "-euc",
            "for round in 1 2 3 4 5 6 7 8; do
               for n in 1 2 3 4 5 6 7 8 9 10 11 12; do ip link add c$n type veth peer name d$n; ip link set c$n up; done
               for n in 1 2 3 4 5 6 7 8 9 10 11 12; do ip link del c$n; done
             done",
        ])
        .spawn()
        .unwrap();
    let mut client = lab
        .node()
        .command("/usr/bin/python3")
        .unwrap()
        .args([
            "-c",
            &format!("{PRELUDE}end = time.monotonic() + {}\nwhile time.monotonic() < end:\n    ask('churn')\n    time.sleep({})", 120 * slowness(), 0.005 * f64::from(slowness())),
        ])
        .spawn()
        .unwrap();
    let mut waits = Vec::new();
    while churn.try_wait().unwrap().is_none() {
        let record = observer.wait_for(|record| asks(record, "churn"));
        let read = Time::now();
        let time: Time = serde_json::from_value(record["time"].clone()).unwrap();
        let answered = time.plus_ns(record["latency_ns"].as_u64().unwrap_or(0));
        waits.push(Duration::from_nanos(read.since(answered)));
    }
    client.kill().unwrap();
    client.wait().unwrap();
    assert!(churn.wait().unwrap().success());
    waits.sort_unstable();
    let at = |share: usize| waits[(waits.len() - 1) * share / 100];
    eprintln!(
        "{} exchanges while 96 interfaces came and went: from answer to record p50 {:?}, p99 {:?}, max {:?}",
        waits.len(),
        at(50),
        at(99),
        at(100)
    );
    assert!(waits.len() >= 100, "{}", waits.len());
    assert!(at(100) <= LONGEST_WAIT * slowness(), "{:?}", at(100));
    let finished = observer.finish();
    assert_eq!(finished.kind("loss").last().unwrap()["ring_buffer"], 0);
}
