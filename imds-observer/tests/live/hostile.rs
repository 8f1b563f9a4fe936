//! An unprivileged user of the host against the observer: what it can do in a network namespace of its own, and to the health port.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use imds_observer_lab::topology::{Lab, LabOptions, PodOptions};

use crate::support::{Observer, first_line, in_netns, lab, run};

const ADDRESS: &str = "127.0.0.1:9469";
const URL: &str = "http://169.254.169.254/latest/meta-data/instance-id";

/// Requests that show when the observer has caught up: a minute of them.
const MARKERS: usize = 600;

/// Resident memory that the observer may have under attack: the unit's limit is 256 MiB, of which the kernel's tables need a part.
const MAX_RESIDENT_KIB: u64 = 170 << 10;

/// A server at the endpoint's address that takes connections and never answers, and clients that ask it. Once all is sent it writes a line, and
/// it ends when its standard input does.
const UNANSWERED: &str = r"
import resource, socket, subprocess, sys
connections, requests = int(sys.argv[1]), int(sys.argv[2])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
for command in ('link set lo up', 'addr add 169.254.169.254/32 dev lo'):
    subprocess.run(['ip'] + command.split(), check=True)
server = socket.socket()
server.bind(('169.254.169.254', 80))
server.listen(4096)
held = []
for number in range(connections):
    client = socket.create_connection(('169.254.169.254', 80), timeout=20)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    held.append(client)
    held.append(server.accept()[0])
    for request in range(requests):
        head = 'GET /latest/meta-data/%s?hostile HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n' % ('x' * 400)
        client.sendall(head.encode())
print('sent', flush=True)
sys.stdin.read()
";

/// The attack, as an unprivileged user in its own namespaces, in the pod's cgroup.
fn attack(lab: &Lab, connections: usize, requests: usize) -> Child {
    let mut child = lab
        .pod(1)
        .command("setpriv")
        .unwrap()
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=-all",
            "--",
        ])
        .args([
            "unshare",
            "--user",
            "--map-root-user",
            "--net",
            "/usr/bin/python3",
            "-c",
            UNANSWERED,
        ])
        .args([connections.to_string(), requests.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the attack");
    let said = first_line(&mut child);
    assert_eq!(said, "sent\n", "the attack has sent all");
    child
}

/// Answers of `/healthz`, and the longest time that one took.
fn probe(lab: &Lab, times: usize) -> Duration {
    let mut longest = Duration::ZERO;
    for _ in 0..times {
        let begin = Instant::now();
        let probe = run(
            lab.node(),
            "curl",
            &["-s", "-m", "5", &format!("http://{ADDRESS}/healthz")],
        );
        longest = longest.max(begin.elapsed());
        assert_eq!(
            String::from_utf8_lossy(&probe.stdout),
            "ok\n",
            "after {:?}",
            begin.elapsed()
        );
    }
    longest
}

fn resident_peak_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
#[ignore = "live"]
fn unanswered_requests_of_one_user_cost_neither_memory_nor_the_requests_of_others() {
    const CONNECTIONS: usize = 1500;
    const REQUESTS: usize = 64;
    const VICTIMS: usize = 20;
    let lab = lab(LabOptions {
        pods: vec![PodOptions::default(); 2],
        ..LabOptions::default()
    });
    let mut observer = Observer::stream(&lab, &["--metrics", ADDRESS, "--interval", "1s"]);
    let mut hostile = attack(&lab, CONNECTIONS, REQUESTS);
    // While the observer reads what has piled up, the ring buffer overflows and the loss record counts it. Once it has caught up, the attack still
    // holds all that it may, and the others are seen.
    let mut flood = lab
        .pod(0)
        .command("sh")
        .unwrap()
        .args([
            "-c",
            &format!("for n in $(seq {MARKERS}); do curl -s -o /dev/null '{URL}?marker'; sleep 0.1; done"),
        ])
        .spawn()
        .unwrap();
    observer.wait_for(|record| {
        record["request"]["path"]
            .as_str()
            .is_some_and(|path| path.contains("?marker"))
    });
    flood.kill().unwrap();
    flood.wait().unwrap();
    for victim in 0..VICTIMS {
        let url = format!("{URL}?victim{victim}");
        assert!(
            run(lab.pod(0), "curl", &["-s", "-o", "/dev/null", &url])
                .status
                .success()
        );
    }
    let health = probe(&lab, 5);
    let peak = resident_peak_kib(observer.pid());
    drop(hostile.stdin.take());
    assert!(hostile.wait().unwrap().success());
    let peak = peak.max(resident_peak_kib(observer.pid()));
    let finished = observer.finish();

    let exchanges = finished.kind("exchange");
    let of = |name: &str| {
        let path = |exchange: &&&serde_json::Value| {
            exchange["request"]["path"]
                .as_str()
                .is_some_and(|path| path.contains(name))
        };
        exchanges.iter().filter(path).count()
    };
    let (victims, attackers) = (of("?victim"), of("?hostile"));
    let loss = finished.kind("loss").pop().unwrap();
    let lost: u64 = ["ring_buffer", "evicted", "truncated", "shed", "unparsed"]
        .iter()
        .map(|count| loss[count].as_u64().unwrap())
        .sum();
    eprintln!(
        "{victims} of {VICTIMS} seen; {attackers} of {} of the attack, {loss}; {peak} KiB; healthz {health:?}",
        CONNECTIONS * REQUESTS
    );
    assert!(peak < MAX_RESIDENT_KIB, "{peak} KiB");
    assert!(health < Duration::from_secs(1), "healthz took {health:?}");
    assert_eq!(victims, VICTIMS, "each of the others is seen: {loss}");
    // One lost event may hide all later requests of its connection, so the counts are not those of requests.
    assert!(
        attackers == CONNECTIONS * REQUESTS || lost > 0,
        "what is missing is reported: {attackers} and {loss}"
    );
}

#[test]
#[ignore = "live"]
fn idle_connections_cannot_keep_a_probe_out() {
    const IDLE: &str = r"
import socket, sys
held = [socket.create_connection(('127.0.0.1', 9469)) for _ in range(40)]
for connection in held[:20]:
    connection.sendall(b'GET /healthz HTTP/1.1\r\nHost: ')
print('held', flush=True)
sys.stdin.read()
";
    let lab = lab(LabOptions::default());
    let observer = Observer::stream(&lab, &["--metrics", ADDRESS]);
    let mut command: Command = in_netns(lab.node(), "setpriv");
    let mut crowd = command
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--",
            "/usr/bin/python3",
            "-c",
            IDLE,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = first_line(&mut crowd);
    assert_eq!(said, "held\n");
    let longest = probe(&lab, 20);
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    drop(crowd.stdin.take());
    crowd.wait().unwrap();
    observer.finish();
}

/// Datagrams of several protocols and with IPv6 extension headers to the endpoints, as an unprivileged user in namespaces of its own.
const DATAGRAMS: &str = r"
import socket, subprocess
for command in ('link set lo up', 'addr add 169.254.169.254/32 dev lo', 'addr add fd00:ec2::254/128 dev lo nodad'):
    subprocess.run(['ip'] + command.split(), check=True)
DESTINATION_OPTIONS = bytes([0, 0, 1, 4, 0, 0, 0, 0])
sent = 0
for family, address in ((socket.AF_INET, '169.254.169.254'), (socket.AF_INET6, 'fd00:ec2::254')):
    for options in (None, 54, 59):
        if options and family == socket.AF_INET:
            continue
        server = socket.socket(family, socket.SOCK_DGRAM)
        server.bind((address, 80))
        client = socket.socket(family, socket.SOCK_DGRAM)
        if options:
            for side in (client, server):
                side.setsockopt(socket.IPPROTO_IPV6, options, DESTINATION_OPTIONS)
        for size in (10, 8000):
            client.sendto(b'x' * size, (address, 80))
            _, peer = server.recvfrom(10000)
            server.sendto(b'y' * size, peer)
            client.recv(10000)
            sent += 1
        client.close()
        server.close()
print(sent)
";

#[test]
#[ignore = "live"]
fn datagrams_to_the_endpoints_are_no_unread_requests() {
    let lab = lab(LabOptions {
        pods: vec![PodOptions::default(); 1],
        ..LabOptions::default()
    });
    let observer = Observer::stream(&lab, &[]);
    let sent = lab
        .pod(0)
        .command("setpriv")
        .unwrap()
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=-all",
            "--",
        ])
        .args([
            "unshare",
            "--user",
            "--map-root-user",
            "--net",
            "/usr/bin/python3",
            "-c",
            DATAGRAMS,
        ])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&sent.stdout),
        "8\n",
        "{}",
        String::from_utf8_lossy(&sent.stderr)
    );
    let finished = observer.finish();
    let loss = finished.kind("loss").pop().unwrap();
    assert_eq!(loss["unparsed"], 0, "{loss}");
}
