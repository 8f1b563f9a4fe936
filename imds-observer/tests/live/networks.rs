//! Networks that differ from the lab's: observers that start late, ports that NAT reuses, uplinks that rules select, responses that arrive
//! on another interface, local endpoints, and connections that are redirected before their first packet.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use imds_observer_lab::faults::{Hook, accompany, rewrite_connect};
use imds_observer_lab::server::Behaviour;
use imds_observer_lab::topology::{Lab, LabOptions, Place, PodOptions};
use serde_json::Value;

use crate::support::{Finished, Observer, in_netns, kernel, lab, observed_cgroup, patience, program, run};

/// Sends a request for each line of input, on one connection, and prints the status of each response.
const TALKER: &str = r#"
import os, socket, sys
s = socket.socket()
mark = int(sys.argv[1])
if mark:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
if len(sys.argv) > 2:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, sys.argv[2].encode())
s.settimeout(10)
s.connect(("169.254.169.254", 80))
print(os.getpid(), flush=True)
for name in sys.stdin:
    s.sendall(f"GET /latest/meta-data/instance-id?{name.strip()} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        more = s.recv(4096)
        assert more, "it closes"
        answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(body) < length:
        body += s.recv(4096)
    print(int(head[9:12]), flush=True)
"#;

/// Answers every request at a given address, and prints a line when it listens.
const SERVER: &str = r#"
import socket, sys, threading
def serve(c):
    bytes = b""
    while True:
        more = c.recv(4096)
        if not more:
            return
        bytes += more
        while b"\r\n\r\n" in bytes:
            _, _, bytes = bytes.partition(b"\r\n\r\n")
            c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nid")
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((sys.argv[1], int(sys.argv[2])))
s.listen()
print("listens", flush=True)
while True:
    c, _ = s.accept()
    threading.Thread(target=serve, args=(c,), daemon=True).start()
"#;

/// A Python process in a place, with which the test exchanges lines.
struct Partner {
    child: Child,
    stdin: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl Partner {
    fn start(place: &Place, code: &str, arguments: &[&str]) -> Self {
        let mut child = place
            .command("/usr/bin/python3")
            .unwrap()
            .args(["-c", code])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run python3");
        let mut partner = Self {
            stdin: child.stdin.take().unwrap(),
            lines: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        let first = partner.line();
        assert!(!first.is_empty(), "it is ready");
        partner
    }

    fn talker(place: &Place) -> Self {
        Self::start(place, TALKER, &["0"])
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn ask(&mut self, name: &str) {
        writeln!(self.stdin, "{name}").unwrap();
        assert_eq!(self.line(), "200", "{name}");
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn keeping_alive() -> LabOptions {
    LabOptions {
        behaviour: Behaviour {
            keep_alive: true,
            ..Behaviour::default()
        },
        ..LabOptions::default()
    }
}

fn shell(place: &Place, line: &str) {
    let output = in_netns(place, "sh").args(["-c", line]).output().unwrap();
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn has(record: &Value, name: &str) -> bool {
    let path = record["request"]["path"].as_str();
    path.is_some_and(|path| path.ends_with(&format!("?{name}")))
}

/// The only exchange with this path.
fn only<'a>(finished: &'a Finished, name: &str) -> &'a Value {
    let found: Vec<_> = finished
        .kind("exchange")
        .into_iter()
        .filter(|record| has(record, name))
        .collect();
    assert_eq!(found.len(), 1, "{name}: {found:#?}");
    found[0]
}

fn nothing_is_lost(finished: &Finished) {
    let loss = finished.kind("loss").pop().unwrap();
    for name in ["ring_buffer", "unparsed", "truncated", "evicted", "unattributed"] {
        assert_eq!(loss[name], 0, "{loss}");
    }
}

#[test]
#[ignore = "live"]
fn a_connection_that_is_older_than_the_observer_is_one_caller() {
    let lab = lab(keeping_alive());
    let (mut pod, mut host) = (Partner::talker(lab.pod(0)), Partner::talker(lab.node()));
    pod.ask("pod-before");
    host.ask("host-before");
    let mut observer = Observer::follow(&lab, &[]);
    for number in 0..3 {
        pod.ask(&format!("pod-{number}"));
        host.ask(&format!("host-{number}"));
    }
    observer.wait_for(|record| has(record, "host-2"));
    let finished = observer.finish();
    for number in 0..3 {
        for (name, partner, ttl) in [("pod", &pod, 63), ("host", &host, 64)] {
            let exchange = only(&finished, &format!("{name}-{number}"));
            assert_eq!(exchange["process"]["pid"], partner.pid(), "{exchange}");
            assert_eq!(exchange["request"]["ttl"], ttl, "{exchange}");
            assert_eq!(exchange["request"]["ttl_on_wire"], true, "{exchange}");
            assert_eq!(exchange["response"]["ttl"], 255, "{exchange}");
        }
    }
    assert_eq!(finished.kind("exchange").len(), 6);
    nothing_is_lost(&finished);
}

/// Opens a number of connections. Prints how many connections sent their SYN more than once, and which requests were answered. NAT may have
/// no free port.
const MANY: &str = r#"
import socket, struct, sys
answered, again = [], 0
for number in range(int(sys.argv[1]), int(sys.argv[2])):
    try:
        s = socket.create_connection(("169.254.169.254", 80), 3)
        again += struct.unpack("<I", s.getsockopt(socket.IPPROTO_TCP, 11, 104)[100:104])[0] > 0
        s.sendall(f"GET /latest/meta-data/instance-id?many-{number}- HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while more := s.recv(4096):
            answer += more
        if answer.startswith(b"HTTP/1.1 200"):
            answered.append(number)
        s.close()
    except OSError:
        pass
print(again, *answered)
"#;

/// The server's side of the port is in TIME_WAIT and answers the SYN with an acknowledgment of the previous connection.
#[test]
#[ignore = "live"]
fn ports_that_nat_hands_out_again_lose_no_request() {
    const PORTS: u32 = 128;
    let lab = lab(LabOptions::default());
    // Conntrack's entries end sooner than the server's TCP state, as on a busy node with many ports. TCP timestamps are disabled, because
    // kernels that derive them only from the addresses would accept every reused port.
    shell(lab.pod(0), "echo 0 > /proc/sys/net/ipv4/tcp_timestamps");
    shell(
        lab.node(),
        &format!(
            "echo 1 > /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait;
             echo 1 > /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close;
             nft add table ip ports;
             nft 'add chain ip ports out {{ type nat hook postrouting priority 99; }}';
             nft add rule ip ports out ip saddr 10.88.0.0/16 tcp dport 80 snat to 10.77.0.5:7000-{} fully-random",
            7000 + PORTS - 1
        ),
    );
    let many = |from: u32, to: u32| {
        let output = run(
            lab.pod(0),
            "/usr/bin/python3",
            &["-c", MANY, &from.to_string(), &to.to_string()],
        );
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let mut numbers = text.split_whitespace().map(|number| number.parse::<u32>().unwrap());
        (numbers.next().unwrap(), numbers.collect::<Vec<u32>>())
    };
    let mut observer = Observer::follow(&lab, &[]);
    let mut answered = Vec::new();
    let (mut sent, mut again) = (0, 0);
    let begin = Instant::now();
    // Repeat until enough connections met a port in TIME_WAIT. Each reuse of a port counts with a probability of one half, depending on
    // whether the sequence numbers of the two connections are in order.
    while again < 8 {
        assert!(
            begin.elapsed() < 2 * patience(),
            "{sent} connections met {again} ports again"
        );
        let (met, numbers) = many(sent, sent + PORTS / 4);
        answered.extend(numbers);
        sent += PORTS / 4;
        again += met;
    }
    let last = format!("many-{}-", answered.last().unwrap());
    observer.wait_for(|record| has(record, &last));
    let finished = observer.finish();
    for number in &answered {
        let exchange = only(&finished, &format!("many-{number}-"));
        assert_eq!(exchange["outcome"], "answered", "{exchange}");
        assert!(!exchange["process"].is_null(), "{exchange}");
        assert_eq!(exchange["request"]["ttl"], 63, "{exchange}");
    }
    nothing_is_lost(&finished);
}

/// Adds a second uplink, which is used for packets with a mark.
fn marked_uplink(lab: &mut Lab) {
    let second = lab.add_uplink().unwrap();
    assert_eq!(second, "eth1");
    shell(
        lab.node(),
        "for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $file; done;
         ip route add default via 10.77.1.1 dev eth1 table 7; ip rule add fwmark 7 lookup 7",
    );
}

#[test]
#[ignore = "live"]
fn uplinks_that_a_mark_or_a_bound_device_chooses_are_observed() {
    let mut lab = lab(keeping_alive());
    marked_uplink(&mut lab);
    shell(
        lab.node(),
        "ip route add 169.254.169.254 via 10.77.1.1 dev eth1 metric 4000",
    );
    let mut observer = Observer::follow(&lab, &[]);
    let mut marked = Partner::start(lab.node(), TALKER, &["7"]);
    marked.ask("marked");
    let mut bound = Partner::start(lab.node(), TALKER, &["0", "eth1"]);
    bound.ask("bound");
    observer.wait_for(|record| has(record, "bound"));
    let finished = observer.finish();
    assert_eq!(
        finished.kind("start")[0]["interfaces"],
        serde_json::json!(["eth0", "eth1"])
    );
    for name in ["marked", "bound"] {
        let exchange = only(&finished, name);
        assert_eq!(exchange["request"]["ttl_on_wire"], true, "{exchange}");
        assert_eq!(exchange["response"]["ttl"], 255, "{exchange}");
    }
}

#[test]
#[ignore = "live"]
fn what_leaves_by_an_uplink_without_our_programs_is_never_called_safe() {
    let mut lab = lab(LabOptions::default());
    marked_uplink(&mut lab);
    shell(
        lab.node(),
        "nft add table ip marks; nft 'add chain ip marks in { type filter hook prerouting priority mangle; }';
         nft add rule ip marks in iifname cni0 meta mark set 7;
         nft add table ip behind; nft 'add chain ip behind out { type nat hook postrouting priority 100; }';
         nft add rule ip behind out oifname eth1 masquerade",
    );
    lab.server().set(Behaviour {
        hop_limit: 2,
        ..Behaviour::default()
    });
    for (interfaces, verdict, status) in [(&["-i", "eth0"][..], "cannot-say", 4), (&[], "not-safe", 3)] {
        let mut child = in_netns(lab.node(), program())
            .args([
                "preflight",
                "--hop-limit",
                "1",
                "--count",
                "2",
                "--min-duration",
                "1ms",
                "-o",
                "json",
            ])
            .args(["--cgroup", &observed_cgroup(&lab)])
            .args(interfaces)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The command prints nothing before its end, so send requests until it has seen enough.
        while child.try_wait().unwrap().is_none() {
            token(lab.pod(0));
        }
        let output = child.wait_with_output().unwrap();
        let judged: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(judged["verdict"], verdict, "{judged}");
        assert_eq!(output.status.code(), Some(status), "{judged}");
    }
}

fn token(place: &Place) {
    let arguments = [
        "-s",
        "-m",
        "2",
        "-o",
        "/dev/null",
        "-X",
        "PUT",
        "-H",
        "X-aws-ec2-metadata-token-ttl-seconds: 60",
        "http://169.254.169.254/latest/api/token",
    ];
    run(place, "curl", &arguments);
}

/// Requests leave through eth0, responses arrive on eth1.
#[test]
#[ignore = "live"]
fn a_ttl_that_was_not_seen_on_the_wire_is_null() {
    let mut lab = lab(keeping_alive());
    marked_uplink(&mut lab);
    shell(
        lab.imds(),
        "for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $file; done;
         ip route add 10.77.0.5/32 via 10.77.1.5 dev up1",
    );
    let mut observer = Observer::stream(&lab, &[]);
    let mut host = Partner::talker(lab.node());
    host.ask("elsewhere");
    // The opposite case: the request leaves through eth1, which has no program of ours.
    let mut marked = Partner::start(lab.node(), TALKER, &["7"]);
    marked.ask("unseen");
    observer.wait_for(|record| has(record, "unseen"));
    let finished = observer.finish();
    let elsewhere = only(&finished, "elsewhere");
    assert_eq!(elsewhere["outcome"], "answered");
    assert_eq!(elsewhere["request"]["ttl_on_wire"], true, "{elsewhere}");
    assert!(elsewhere["response"]["ttl"].is_null(), "{elsewhere}");
    let unseen = only(&finished, "unseen");
    assert_eq!(unseen["outcome"], "answered");
    assert_eq!(unseen["request"]["ttl"], 64, "as the socket sent it: {unseen}");
    assert_eq!(unseen["request"]["ttl_on_wire"], false, "{unseen}");
    assert!(unseen["response"]["ttl"].is_null(), "{unseen}");
}

/// Both ends of the connection have the endpoint's address.
#[test]
#[ignore = "live"]
fn of_an_endpoint_on_loopback_only_the_client_is_a_caller() {
    let lab = lab(LabOptions::default());
    let pod = lab.pod(0);
    shell(pod, "ip addr add 169.254.169.254/32 dev lo");
    let server = Partner::start(pod, SERVER, &["169.254.169.254", "80"]);
    // The connection is accepted before the observer starts, so the observer sees only its middle.
    let mut early = Partner::talker(pod);
    early.ask("early");
    let mut observer = Observer::follow(&lab, &[]);
    let mut client = Partner::talker(pod);
    for number in 0..4 {
        early.ask(&format!("early-{number}"));
        client.ask(&format!("client-{number}"));
    }
    observer.wait_for(|record| has(record, "client-3"));
    drop(client);
    let finished = observer.finish();
    for number in 0..4 {
        only(&finished, &format!("early-{number}"));
        let exchange = only(&finished, &format!("client-{number}"));
        assert_eq!(exchange["outcome"], "answered", "{exchange}");
        assert_eq!(exchange["response"]["delivered"], true, "{exchange}");
        assert_eq!(exchange["request"]["ttl_on_wire"], false, "{exchange}");
    }
    for kind in ["exchange", "connect", "drop"] {
        for record in finished.kind(kind) {
            assert_ne!(record["process"]["pid"], server.pid(), "{record}");
        }
    }
    assert_eq!(finished.kind("exchange").len(), 8);
    assert_eq!(finished.opened("slow-responses").len(), 0);
    nothing_is_lost(&finished);
}

/// nat OUTPUT rewrites the destination before any hook processes the packet.
#[test]
#[ignore = "live"]
fn clients_that_nat_redirects_are_recorded_with_where_they_go() {
    let lab = lab(LabOptions::default());
    let node = lab.node();
    shell(
        node,
        "nft add table ip away; nft 'add chain ip away out { type nat hook output priority -100; }';
         nft add rule ip away out ip daddr 169.254.169.254 tcp dport 80 dnat to 127.0.0.1:1338",
    );
    let mut observer = Observer::follow(&lab, &[]);
    // The proxy is not running.
    run(
        node,
        "curl",
        &["-s", "-m", "5", "http://169.254.169.254/latest/meta-data/?dead"],
    );
    let refused = observer.wait_for(|record| record["record"] == "connect");
    assert_eq!(refused["outcome"], "refused", "{refused}");
    assert_eq!(refused["connection"]["redirected_to"], "127.0.0.1:1338", "{refused}");

    let _server = Partner::start(node, SERVER, &["127.0.0.1", "1338"]);
    let mut client = Partner::talker(node);
    client.ask("first");
    client.ask("second");
    observer.wait_for(|record| has(record, "second"));
    let finished = observer.finish();
    for name in ["first", "second"] {
        let exchange = only(&finished, name);
        assert_eq!(exchange["process"]["pid"], client.pid(), "{exchange}");
        assert_eq!(exchange["connection"]["remote"], "169.254.169.254:80", "{exchange}");
        assert_eq!(exchange["connection"]["redirected_to"], "127.0.0.1:1338", "{exchange}");
        assert_eq!(exchange["outcome"], "answered", "{exchange}");
        assert_eq!(exchange["request"]["ttl_on_wire"], false, "{exchange}");
    }
    assert_eq!(finished.kind("exchange").len(), 2);
    assert_eq!(finished.opened("blocked-by-firewall").len(), 0);
    nothing_is_lost(&finished);
}

/// Load balancing at the socket. The effect of such a program can't be determined from the program.
#[test]
#[ignore = "live"]
fn a_program_that_may_rewrite_addresses_at_the_socket_is_named_as_missing() {
    let lab = lab(LabOptions::default());
    let missing = |observer: Observer| {
        let finished = observer.finish();
        let missing = finished.kind("start")[0]["missing"].as_array().unwrap().clone();
        missing
            .into_iter()
            .filter(|missing| missing["capability"].as_str().unwrap().ends_with("-before-others"))
            .collect::<Vec<_>>()
    };
    assert_eq!(missing(Observer::follow(&lab, &[])), Vec::<Value>::new());
    let _program = accompany(&lab, Hook::Connect4).unwrap();
    let named = missing(Observer::follow(&lab, &[]));
    // On these kernels, our program runs before the other one and sees the original address. The next test verifies this.
    if named.is_empty() {
        assert!(kernel() >= (6, 12), "no kernel before attaches in this order");
        return;
    }
    assert!(kernel() < (6, 17));
    assert_eq!(named.len(), 1, "{named:?}");
    assert_eq!(named[0]["capability"], "connect4-before-others");
    assert!(
        named[0]["why"].as_str().unwrap().contains("at connect4 of"),
        "{named:?}"
    );
}

/// Programs of other tools at `connect4` run before or after ours: in the same cgroup in the order of attaching, and programs of a child
/// cgroup first. If the kernel supports it, ours always runs first. Otherwise `start.missing` names the program that runs first.
#[test]
#[ignore = "live"]
fn clients_that_a_program_in_connect_redirects_are_recorded_or_named_as_missing() {
    let lab = lab(LabOptions::default());
    let node = lab.node();
    let target = "127.0.0.1:1338";
    let own = node.cgroup().directory().to_owned();
    for (name, cgroup, before) in [
        ("behind", lab.cgroup_directory(), false),
        ("before", lab.cgroup_directory(), true),
        ("below", own.as_path(), true),
    ] {
        let attach = || rewrite_connect(cgroup, target.parse().unwrap()).unwrap();
        let mut program = before.then(attach);
        let mut observer = Observer::follow(&lab, &[]);
        program.get_or_insert_with(attach);
        let missing = observer.output.concat();
        assert!(missing.contains(r#""record":"start""#), "{missing}");
        let mut is_first = !missing.contains("connect4-before-others");
        assert!(is_first || before && kernel() < (6, 17), "{name}: {missing}");
        // No process listens at the target.
        run(
            node,
            "curl",
            &["-s", "-m", "5", "http://169.254.169.254/latest/meta-data/?dead"],
        );
        if is_first {
            // A program that is attached after the start and still runs first is reported as loss.
            let refused = observer.wait_for(|record| {
                record["record"] == "connect" || record["record"] == "loss" && record["preempted"] != 0
            });
            is_first = refused["record"] == "connect";
            assert!(is_first || !before && kernel() < (6, 17), "{name}: {refused}");
            if !is_first {
                assert_eq!(refused["preempted"], 1, "{name}: {refused}");
                let finished = observer.finish();
                assert!(
                    finished.stderr.contains("attached during the run"),
                    "{name}: {}",
                    finished.stderr
                );
                continue;
            }
            assert_eq!(refused["outcome"], "refused", "{name}: {refused}");
            let to = refused["connection"]["redirected_to"].as_str().unwrap_or_default();
            assert!(to.starts_with("127.0.0.1:"), "{name}: {refused}");
        }
        let _server = Partner::start(node, SERVER, &["127.0.0.1", "1338"]);
        let mut client = Partner::talker(node);
        client.ask("first");
        client.ask("second");
        if is_first {
            observer.wait_for(|record| has(record, "second"));
        }
        let finished = observer.finish();
        if !is_first {
            continue;
        }
        for request in ["first", "second"] {
            let exchange = only(&finished, request);
            assert_eq!(exchange["process"]["pid"], client.pid(), "{name}: {exchange}");
            assert_eq!(
                exchange["connection"]["remote"], "169.254.169.254:80",
                "{name}: {exchange}"
            );
            assert_eq!(exchange["connection"]["redirected_to"], target, "{name}: {exchange}");
            assert_eq!(exchange["outcome"], "answered", "{name}: {exchange}");
            assert_eq!(exchange["response"]["delivered"], true, "{name}: {exchange}");
            assert_eq!(exchange["request"]["ttl_on_wire"], false, "{name}: {exchange}");
        }
        assert_eq!(finished.kind("exchange").len(), 2, "{name}");
        assert_eq!(finished.opened("redirected-locally").len(), 1, "{name}");
        assert_eq!(finished.opened("blocked-by-firewall").len(), 0, "{name}");
        nothing_is_lost(&finished);
    }
}

/// The quota counts DNS wherever the resolver is: at its link-local address, or at the base address of the VPC + 2, as in the host's
/// nameserver entry.
#[test]
#[ignore = "live"]
fn dns_to_the_vpc_resolver_counts_and_other_dns_does_not() {
    let lab = lab(LabOptions::default());
    let node = lab.node();
    shell(
        node,
        "v4=$(ip -4 route get 169.254.169.254 | grep -o 'via [0-9.]*'); v6=$(ip -6 route get fd00:ec2::254 | grep -o 'via [0-9a-f:]*')
         ip route add 10.28.0.0/24 $v4 dev eth0; ip route replace 169.254.169.253/32 $v4 dev eth0; ip -6 route replace fd00:ec2::253/128 $v6 dev eth0",
    );
    // A host's root as mounted in a container: the host's resolv.conf names a local stub, and the real nameservers are in another file.
    let root = tempfile::tempdir().unwrap();
    for (file, text) in [
        ("etc/resolv.conf", "nameserver 127.0.0.53\n"),
        ("run/systemd/resolve/resolv.conf", "nameserver 10.28.0.2\n"),
    ] {
        let path = root.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let observer = Observer::stream(&lab, &["--host-root", root.path().to_str().unwrap()]);
    let send = r#"
import socket, sys
for address, port, count in (("10.28.0.2", 53, 40), ("10.28.0.2", 8053, 7), ("10.28.0.10", 53, 7), ("169.254.169.253", 53, 30), ("fd00:ec2::253", 53, 20)):
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    for n in range(count):
        s.sendto(b"q" * 40, (address, port))
"#;
    run(node, "/usr/bin/python3", &["-c", send]);
    let finished = observer.finish();
    let summaries = finished.kind("summary");
    let total = summaries.iter().find(|summary| summary["total"] == true).unwrap();
    let interface = &total["interfaces"][0];
    assert_eq!(interface["egress_packets"], 90, "{interface}");
    let classes: Vec<&String> = interface["peak_by_class"].as_object().unwrap().keys().collect();
    assert_eq!(classes, ["dns"], "{interface}");
    assert_eq!(interface["vpc_resolver"]["address"], "10.28.0.2", "{interface}");
}

/// A metadata agent on the node, configured like kube2iam and kiam: the NAT rule is in the node's namespace, where the pod's packets have
/// no socket.
#[test]
#[ignore = "live"]
fn pods_that_the_node_redirects_to_an_agent_are_reported_with_the_rule() {
    let lab = lab(LabOptions::default());
    shell(
        lab.node(),
        "nft add table ip away; nft 'add chain ip away pre { type nat hook prerouting priority -100; }';
         nft add rule ip away pre ip daddr 169.254.169.254 tcp dport 80 dnat to 10.88.0.1:8181",
    );
    let _agent = Partner::start(lab.node(), SERVER, &["10.88.0.1", "8181"]);
    let mut observer = Observer::follow(&lab, &[]);
    let mut client = Partner::talker(lab.pod(0));
    client.ask("first");
    client.ask("second");
    observer.wait_for(|record| has(record, "second"));
    // The node's own requests are not redirected.
    let mut own = Partner::talker(lab.node());
    own.ask("own");
    observer.wait_for(|record| has(record, "own"));
    let finished = observer.finish();
    let exchange = only(&finished, "second");
    assert_eq!(exchange["request"]["ttl_on_wire"], false, "{exchange}");
    let found = finished.opened("redirected-locally");
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["severity"], "info", "{}", found[0]);
    assert_eq!(found[0]["subject"]["process"]["pid"], client.pid(), "{}", found[0]);
    assert!(
        found[0]["summary"].as_str().unwrap().contains("10.88.0.1:8181"),
        "{}",
        found[0]
    );
}

/// The `connect` record of a pod's attempt, and the complete output of the observer.
fn failed_attempt(lab: &Lab, mut observer: Observer) -> (Value, Finished) {
    run(
        lab.pod(0),
        "curl",
        &["-s", "-m", "4", "http://169.254.169.254/latest/meta-data/"],
    );
    let connect = observer.wait_for(|record| record["record"] == "connect");
    (connect, observer.finish())
}

/// SYN-ACKs that are dropped on the node, between the uplink and a pod. The finding must name what drops them, and never the path of the
/// request.
#[test]
#[ignore = "live"]
fn syn_acks_that_the_node_drops_are_named_by_their_cause() {
    let lab = lab(LabOptions::default());
    let raw = "nft add table ip away; nft 'add chain ip away pre { type filter hook prerouting priority raw; }';
               nft add rule ip away pre ip saddr 169.254.169.254 tcp flags '& (syn | ack) == (syn | ack)' drop";
    // Upstream, like a proxy that limits the TTL of all responses.
    let ttl = "nft add table ip away; nft 'add chain ip away out { type filter hook output priority 0; }';
               nft add rule ip away out ip saddr 169.254.169.254 tcp flags '& (syn | ack) == (syn | ack)' ip ttl set 1";
    for (place, rule, word) in [(lab.node(), raw, "netfilter"), (lab.imds(), ttl, "TTL")] {
        shell(place, rule);
        let (connect, finished) = failed_attempt(&lab, Observer::follow(&lab, &[]));
        shell(place, "nft delete table ip away");
        let found = finished.opened("response-dropped");
        assert_eq!(found.len(), 1, "{word}: {found:?} {connect}");
        let summary = found[0]["summary"].as_str().unwrap();
        // Before 5.17, only the kernel's symbols show what drops a packet, and the DaemonSet may not read them.
        let unnamed = finished.kind("start")[0]["missing"].to_string().contains("kallsyms") && kernel() < (5, 17);
        let right = if unnamed { "unknown" } else { word };
        assert!(summary.contains(right), "{word}: {summary}");
        for other in ["blocked-by-firewall", "no-answer", "no-route"] {
            assert_eq!(finished.opened(other).len(), 0, "{word}: {other}");
        }
    }
}

/// Waits until two minutes after boot, before which a missing network is not reported as a fault. A guest may reach this earlier.
fn past_boot() {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let seconds: f64 = uptime.split_whitespace().next().unwrap().parse().unwrap();
    std::thread::sleep(Duration::from_secs_f64((121.0_f64 - seconds).max(0.0)));
}

/// Two network namespaces that send the endpoint's packets to each other.
#[test]
#[ignore = "live"]
fn a_routing_loop_is_named() {
    past_boot();
    let lab = lab(LabOptions {
        pods: vec![PodOptions::default(); 2],
        masquerade: false,
        ..LabOptions::default()
    });
    // To another pod, which forwards the packets back.
    shell(
        lab.node(),
        "ip route replace 169.254.169.254/32 via 10.88.0.3 dev cni0; echo 0 >/proc/sys/net/ipv4/conf/all/send_redirects",
    );
    shell(lab.pod(1), "echo 1 >/proc/sys/net/ipv4/ip_forward");
    let (connect, finished) = failed_attempt(&lab, Observer::follow(&lab, &["--interface", "eth0"]));
    let found = finished.opened("no-route");
    assert_eq!(found.len(), 1, "{connect} {:?}", finished.kind("drop"));
    assert!(found[0]["summary"].as_str().unwrap().contains("loop"), "{}", found[0]);
}

/// IPVS in NAT mode, as kube-proxy configures it: the service's address is on a dummy device, and each connection is sent to a real server.
#[test]
#[ignore = "live"]
fn connections_that_ipvs_balances_are_recorded_once() {
    let lab = lab(LabOptions::default());
    let made = in_netns(lab.node(), "sh")
        .args([
            "-c",
            "ipvsadm -A -t 169.254.169.254:80 -s rr && ipvsadm -a -t 169.254.169.254:80 -r 10.88.0.1:8181 -m
             ip link add kube-ipvs0 type dummy && ip addr add 169.254.169.254/32 dev kube-ipvs0",
        ])
        .output()
        .unwrap();
    if !made.status.success() {
        let expected = std::env::var("IMDS_OBSERVER_TEST_DEVICES").unwrap_or_default();
        assert!(!expected.split(',').any(|kind| kind == "ipvs"), "{made:?}");
        eprintln!("left out: ipvs: {made:?}");
        return;
    }
    let server = Partner::start(lab.node(), SERVER, &["10.88.0.1", "8181"]);
    let mut observer = Observer::follow(&lab, &[]);
    let mut pod = Partner::talker(lab.pod(0));
    pod.ask("pod");
    let mut host = Partner::talker(lab.node());
    host.ask("host");
    observer.wait_for(|record| has(record, "host"));
    let finished = observer.finish();
    for (name, client, target) in [("pod", &pod, Value::Null), ("host", &host, "10.88.0.1:8181".into())] {
        let exchange = only(&finished, name);
        assert_eq!(exchange["process"]["pid"], client.pid(), "{exchange}");
        assert_eq!(exchange["outcome"], "answered", "{exchange}");
        assert_eq!(exchange["request"]["ttl_on_wire"], false, "{exchange}");
        assert_eq!(exchange["response"]["ttl"], Value::Null, "{exchange}");
        assert_eq!(exchange["connection"]["redirected_to"], target, "{exchange}");
    }
    assert_eq!(
        finished.kind("exchange").len(),
        2,
        "the server {} is no caller",
        server.pid()
    );
    for finding in finished.kind("finding") {
        // The client sends no token.
        let code = finding["code"].as_str().unwrap();
        assert!(["imdsv1-request", "redirected-locally"].contains(&code), "{finding}");
    }
    nothing_is_lost(&finished);
}
