//! Tests which features this kernel offers to the observer with the privileges of this run.
//!
//! Runs on this machine and, through `cargo xtask test --kernel VERSION`, on the kernels that EC2 hosts run. Lines that begin with `fact:`
//! become the table in `docs/kernel-support.md`.

#![cfg(live)]

mod observer;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};

use imds_observer::event::{Direction, Event, FlowId, Packet, PacketDrop, SocketState, Vantage};
use imds_observer::record::{LossCounts, Process};
use imds_observer::source::Source as _;
use imds_observer_lab::can_run_live;
use imds_observer_lab::privileges::Privileges;
use imds_observer_lab::server::Behaviour;
use imds_observer_lab::topology::{Lab, LabOptions, Place};

use observer::{Observer, open_here, options};

const TOKEN_HEADER: &str = "X-aws-ec2-metadata-token-ttl-seconds: 60";
/// Environment variable that makes `child_that_observes` run: the directory of the cgroup to observe.
const CHILD: &str = "IMDS_OBSERVER_TEST_CHILD";
/// Default limit on locked memory in kernels before 5.16, in bytes.
const LITTLE_LOCKED_MEMORY: u64 = 64 << 10;

fn fact(name: &str, value: &str) {
    println!("fact: {name} = {value}");
}

/// Major and minor number of the running kernel.
fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|number| number.trim().parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Whether the kernel refuses tracepoints to the observer of this run.
fn tracepoints_are_refused() -> bool {
    let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap();
    Privileges::from_env().unwrap() == Privileges::DaemonSet && paranoid.trim().parse::<i32>().unwrap() >= 3
}

fn lab(hop_limit: u8) -> Lab {
    Lab::new(LabOptions {
        behaviour: Behaviour {
            hop_limit,
            ..Behaviour::default()
        },
        ..LabOptions::default()
    })
    .unwrap()
}

fn host(endpoint: &SocketAddr) -> String {
    match endpoint {
        SocketAddr::V4(address) => address.ip().to_string(),
        SocketAddr::V6(address) => format!("[{}]", address.ip()),
    }
}

fn curl(place: &Place, arguments: &[&str]) -> Command {
    let mut command = place.command("curl").unwrap();
    command.args(["-sS", "-g", "-o", "/dev/null"]).args(arguments);
    command
}

fn token_request(place: &Place, endpoint: &SocketAddr, marker: &str) -> Command {
    let url = format!("http://{}/latest/api/token", host(endpoint));
    curl(
        place,
        &["--max-time", "2", "-A", marker, "-X", "PUT", "-H", TOKEN_HEADER, &url],
    )
}

/// The packet at the socket with the beginning of a request that has this user agent.
fn request(observer: &mut Observer, marker: &str) -> Packet {
    observer.wait("request at the socket", |event| match event {
        Event::Packet(packet)
            if packet.vantage == Vantage::Socket
                && packet.direction == Direction::Request
                && String::from_utf8_lossy(&packet.data).contains(marker) =>
        {
            Some(packet.clone())
        }
        _ => None,
    })
}

fn uplink(observer: &mut Observer, direction: Direction, flow: FlowId, icmp: bool) -> Packet {
    observer.wait("packet at the uplink", |event| match event {
        Event::Packet(packet)
            if packet.vantage == Vantage::Uplink
                && packet.direction == direction
                && packet.flow == flow
                && packet.icmp.is_some() == icmp
                && (icmp || packet.payload_len > 0) =>
        {
            Some(packet.clone())
        }
        _ => None,
    })
}

fn process_of(observer: &Observer, packet: &Packet) -> Process {
    let key = packet.sender.expect("a request has a sender").key;
    observer
        .events
        .iter()
        .find_map(|event| match event {
            Event::Process {
                key: known, process, ..
            } if *known == key => Some((**process).clone()),
            _ => None,
        })
        .unwrap_or_else(|| panic!("no process event for {key:?}"))
}

fn nothing_lost(observer: Observer) {
    assert_eq!(observer.close(), LossCounts::default(), "something was lost");
}

#[test]
fn every_hook_is_attached_or_named_as_missing() {
    if !can_run_live() {
        return;
    }
    let lab = lab(2);
    let observer = Observer::open(&lab, options(&lab)).unwrap();
    let method = |hook: &str| {
        observer
            .attached
            .iter()
            .find(|attached| attached.hook == hook)
            .map(|attached| attached.method.as_str())
    };
    let missing = |capability: &str| observer.missing.iter().any(|missing| missing.capability == capability);
    for attached in &observer.attached {
        fact(&attached.hook, &attached.method);
    }
    for missing in &observer.missing {
        fact(&missing.capability, &format!("missing ({})", missing.why));
        assert!(!missing.why.is_empty() && !missing.blinds.is_empty(), "{missing:?}");
    }
    for hook in [
        "segment-ingress",
        "segment-egress",
        "connect4",
        "connect6",
        "connect-tuple",
    ] {
        assert_eq!(method(hook), Some("cgroup"), "{hook}");
    }
    let wire = if kernel() >= (6, 6) { "tcx" } else { "clsact" };
    for hook in ["wire-ingress", "wire-egress"] {
        assert_eq!(method(hook), Some(wire), "{hook}");
    }
    assert!(method("drop-btf").or(method("drop-raw")).is_some(), "kfree_skb");
    assert_eq!(missing("drop-reasons"), kernel() < (5, 17));
    assert!([Some("tp_btf"), Some("raw_tp")].contains(&method("socket-state")));
    assert_eq!(method("socket-error").is_some(), kernel() >= (5, 14));
    assert_eq!(missing("socket-error"), kernel() < (5, 14));
    // Some kernels don't support function tracing.
    let next_best = if tracepoints_are_refused() {
        "raw_tp"
    } else {
        "tracepoint"
    };
    let returned = method("connect-returned");
    assert!([Some("fexit"), Some(next_best)].contains(&returned), "{returned:?}");
}

#[test]
fn an_exchange_is_seen_whole_and_its_process_named() {
    if !can_run_live() {
        return;
    }
    let lab = lab(2);
    let mut observer = Observer::open(&lab, options(&lab)).unwrap();
    for (index, endpoint) in lab.endpoints().iter().enumerate() {
        for (place, name) in [(lab.node(), "node"), (lab.pod(0), "pod")] {
            let marker = format!("whole-{name}-{index}");
            let mut command = token_request(place, endpoint, &marker);
            let child = command.spawn().unwrap();
            let pid = child.id();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{marker}: {output:?}");

            let sent = request(&mut observer, &marker);
            assert!(sent.data.starts_with(b"PUT /latest/api/token"), "{marker}");
            assert!(matches!(sent.flow, FlowId::Cookie(cookie) if cookie != 0));
            let sender = sent.sender.unwrap();
            assert_eq!(sender.netns, place.netns().inode() as u32, "{marker}");
            assert_eq!(sender.cgroup_id, place.cgroup().id(), "{marker}");

            let process = process_of(&observer, &sent);
            assert_eq!(process.pid, pid, "{marker}");
            assert_eq!(process.comm, "curl", "{marker}");
            assert_eq!(process.uid, Some(0), "{marker}");
            let exe = process.exe.as_deref().unwrap_or_default();
            assert!(exe.starts_with('/') && exe.ends_with("/bin/curl"), "{marker}: {exe}");
            let cmdline = process.cmdline.as_deref().unwrap_or_default();
            assert_eq!(cmdline.first().map(String::as_str), Some("curl"), "{marker}");
            let url = format!("http://{}/latest/api/token", host(endpoint));
            assert!(cmdline.contains(&url), "{marker}: {cmdline:?}");
            assert!(!cmdline.contains(&marker), "not a known value: {cmdline:?}");
            assert_eq!(
                process.ancestors.first().map(|parent| parent.pid),
                Some(std::process::id()),
                "{marker}"
            );
            assert_eq!(process.cgroup.as_deref(), Some(place.cgroup().path()), "{marker}");
            assert_eq!(process.netns, Some(place.netns().inode() as u32), "{marker}");

            let wire = uplink(&mut observer, Direction::Request, sent.flow, false);
            assert_eq!(wire.seq, sent.seq, "NAT leaves sequence numbers alone");
            let forwarded = name == "pod";
            assert_eq!(wire.ttl, if forwarded { 63 } else { 64 }, "{marker}");
            assert_eq!(wire.local == sent.local, !forwarded, "{marker}: masquerading");
            let answer = uplink(&mut observer, Direction::Response, sent.flow, false);
            assert_eq!(answer.ttl, 2, "{marker}");
            assert!(answer.data.starts_with(b"HTTP/1.1 200"), "{marker}");
            observer.wait("answer at the socket", |event| match event {
                Event::Packet(packet)
                    if packet.vantage == Vantage::Socket
                        && packet.direction == Direction::Response
                        && packet.flow == sent.flow
                        && packet.data.starts_with(b"HTTP/1.1 200") =>
                {
                    Some(())
                }
                _ => None,
            });
            for state in [SocketState::SynSent, SocketState::Closed] {
                observer.wait("socket state", |event| match event {
                    Event::Socket(change) if change.flow == sent.flow && change.state == state => Some(()),
                    _ => None,
                });
            }
        }
    }
    fact("exchange", "yes");
    fact("process", "yes");
    fact("join across NAT", "yes");
    nothing_lost(observer);
}

#[test]
fn an_answer_with_too_small_a_ttl_is_seen_to_die() {
    if !can_run_live() {
        return;
    }
    let lab = lab(1);
    let mut observer = Observer::open(&lab, options(&lab)).unwrap();
    for (index, endpoint) in lab.endpoints().iter().enumerate() {
        let marker = format!("lost-{index}");
        let status = token_request(lab.pod(0), endpoint, &marker).status().unwrap();
        assert_eq!(status.code(), Some(28), "curl must time out");
        let sent = request(&mut observer, &marker);
        let answer = uplink(&mut observer, Direction::Response, sent.flow, false);
        assert_eq!(answer.ttl, 1);
        let icmp = uplink(&mut observer, Direction::Request, sent.flow, true).icmp.unwrap();
        assert_eq!(
            (icmp.kind, icmp.code),
            if endpoint.is_ipv6() { (3, 0) } else { (11, 0) }
        );
        let drop: PacketDrop = observer.wait("drop", |event| match event {
            Event::Drop(drop) if drop.flow == sent.flow && drop.direction == Direction::Response => Some(drop.clone()),
            _ => None,
        });
        assert_eq!(drop.ttl, 1);
        assert_eq!(
            drop.sender.map(|sender| sender.key),
            sent.sender.map(|sender| sender.key)
        );
        assert_eq!(drop.netns, lab.node().netns().inode() as u32);
        let reason = drop.reason.as_deref();
        let location = drop.location.as_deref();
        let family = if endpoint.is_ipv6() { "v6" } else { "v4" };
        fact(
            &format!("lost response {family}"),
            &format!(
                "{} at {}",
                reason.unwrap_or("no reason"),
                location.unwrap_or("unknown place")
            ),
        );
        if kernel() < (5, 17) {
            assert_eq!(reason, None);
        } else {
            assert_eq!(reason, Some("IP_INHDR"));
        }
        if let Some(location) = location {
            assert!(location.contains("forward"), "{location}");
        }
        assert!(
            !observer.events.iter().any(|event| matches!(event, Event::Packet(packet)
                if packet.vantage == Vantage::Socket && packet.direction == Direction::Response && packet.flow == sent.flow && packet.payload_len > 0)),
            "it was not delivered"
        );
    }
    nothing_lost(observer);
}

/// The newest `connect()` to `remote`.
fn attempt(observer: &mut Observer, remote: SocketAddr) -> FlowId {
    observer.wait("connect attempt", |event| match event {
        Event::Connect(attempt) if attempt.remote == remote => Some(attempt.flow),
        _ => None,
    })
}

#[test]
fn a_failed_connect_is_distinguished() {
    if !can_run_live() {
        return;
    }
    let lab = lab(2);
    // An address that the lab has no route to: it represents an endpoint whose route was deleted.
    let nowhere = Ipv4Addr::new(169, 254, 170, 99);
    let mut options = options(&lab);
    options.endpoints.push(nowhere.into());
    let mut observer = Observer::open(&lab, options).unwrap();

    let nowhere = SocketAddr::from((nowhere, 80));
    let status = curl(lab.node(), &["http://169.254.170.99/"]).status().unwrap();
    assert_eq!(status.code(), Some(7));
    let flow = attempt(&mut observer, nowhere);
    let errno = observer.wait("return of connect()", |event| match event {
        Event::ConnectReturned(result) if result.flow == flow => Some(result.errno),
        _ => None,
    });
    assert_eq!(errno, libc::ENETUNREACH);
    fact("errno of connect()", "yes");

    for endpoint in lab.endpoints() {
        let closed = SocketAddr::new(endpoint.ip(), 81);
        let url = format!("http://{}:81/", host(&closed));
        assert_eq!(curl(lab.node(), &[&url]).status().unwrap().code(), Some(7));
        let flow = attempt(&mut observer, closed);
        observer.wait("RST", |event| match event {
            Event::Packet(packet) if packet.flow == flow && packet.tcp_flags & Packet::RST != 0 => Some(()),
            _ => None,
        });
    }
    assert!(
        !observer
            .events
            .iter()
            .any(|event| matches!(event, Event::Packet(packet) if packet.flow == flow)),
        "no packet may leave"
    );
    nothing_lost(observer);
}

#[test]
fn a_low_limit_of_locked_memory_is_named() {
    if !can_run_live() {
        return;
    }
    let lab = lab(2);
    let mut command = child(&lab);
    // SAFETY: one system call between fork and exec.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            let limit = libc::rlimit {
                rlim_cur: LITTLE_LOCKED_MEMORY,
                rlim_max: LITTLE_LOCKED_MEMORY,
            };
            nix::errno::Errno::result(libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit))?;
            Ok(())
        });
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let said = wait_until_observing(&mut child);
    let _ = child.kill();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    // Up to 5.10, maps are charged against the limit. User 0 with all privileges can raise it.
    if kernel() < (5, 11) && Privileges::from_env().unwrap() == Privileges::DaemonSet {
        assert!(!said, "it must not start");
        assert!(
            errors.contains("RLIMIT_MEMLOCK") && errors.contains("CAP_SYS_RESOURCE"),
            "{errors}"
        );
        fact("locked memory of 64 KiB", "refused, and named");
    } else {
        assert!(said, "{errors}");
        fact("locked memory of 64 KiB", "enough");
    }
}

/// Runs this test program as an observer in the node's namespace, in a separate process.
fn child(lab: &Lab) -> Command {
    let mut command = lab.node().command(std::env::current_exe().unwrap()).unwrap();
    command
        .args(["--exact", "child_that_observes", "--nocapture"])
        .env(CHILD, lab.cgroup_directory())
        .stdin(Stdio::null());
    command
}

fn wait_until_observing(child: &mut std::process::Child) -> bool {
    let output = BufReader::new(child.stdout.take().unwrap());
    output
        .lines()
        .map_while(Result::ok)
        .any(|line| line.contains("observing"))
}

/// Not a test by itself: other tests start and kill it as a process.
#[test]
fn child_that_observes() {
    let Some(cgroup) = std::env::var_os(CHILD) else { return };
    let source = open_here("eth0", Path::new(&cgroup)).unwrap_or_else(|error| panic!("{error:#}"));
    println!("observing");
    let mut events = Vec::new();
    let mut source = source;
    loop {
        source
            .next_batch(std::time::Duration::from_secs(1), &mut events)
            .expect("read events");
        events.clear();
    }
}

/// Number of our filters at the uplink, as listed by tc(8).
fn filters(lab: &Lab) -> usize {
    ["ingress", "egress"]
        .iter()
        .map(|direction| {
            let output = lab
                .node()
                .command("tc")
                .unwrap()
                .args(["filter", "show", "dev", "eth0", direction])
                .output()
                .unwrap();
            String::from_utf8_lossy(&output.stdout)
                .lines()
                .filter(|line| line.contains("wire_"))
                .count()
        })
        .sum()
}

#[test]
fn no_filter_outlives_its_observer() {
    if !can_run_live() {
        return;
    }
    let lab = lab(2);
    let filters_of_one = if kernel() >= (6, 6) { 0 } else { 2 };
    assert_eq!(filters(&lab), 0);
    let observer = Observer::open(&lab, options(&lab)).unwrap();
    assert_eq!(filters(&lab), filters_of_one);
    // Closing drops the observer on another thread. Detaching must find the right namespace from there.
    nothing_lost(observer);
    assert_eq!(filters(&lab), 0, "detached");

    let mut child = child(&lab).stdout(Stdio::piped()).spawn().unwrap();
    assert!(wait_until_observing(&mut child));
    let second = Observer::open(&lab, options(&lab)).unwrap();
    assert_eq!(
        filters(&lab),
        2 * filters_of_one,
        "two live observers leave each other alone"
    );
    drop(second);
    assert_eq!(filters(&lab), filters_of_one);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(filters(&lab), filters_of_one, "a killed one can't clean up");
    let third = Observer::open(&lab, options(&lab)).unwrap();
    assert_eq!(filters(&lab), filters_of_one, "the next one removes what was left");
    drop(third);
    assert_eq!(filters(&lab), 0);
    fact("filters left after kill -9", "removed by the next start");
}
