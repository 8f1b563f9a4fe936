//! Attacks of an unprivileged user of the host on the observer: from the user's own network namespace, and through the health port.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use imds_observer_lab::server::Behaviour;
use imds_observer_lab::topology::{Lab, LabOptions, Place, PodOptions};

use crate::support::{Finished, Observer, UPLINK, cgroup_of, first_line, in_netns, lab, observed_cgroup, program, run};

const ADDRESS: &str = "127.0.0.1:9469";
const URL: &str = "http://169.254.169.254/latest/meta-data/instance-id";

/// Number of requests that show when the observer has caught up; they take a minute.
const MARKERS: usize = 600;

/// Limit on the observer's resident memory under attack. The unit's limit is 256 MiB, but the kernel's tables need a part of it.
const MAX_RESIDENT_KIB: u64 = 170 << 10;

/// A server at the endpoint's address that accepts connections and never answers, and its clients. The script writes a line when all
/// requests are sent, and ends when its standard input is closed.
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

/// Namespaces that a user can create without privileges.
const IN_OWN_NAMESPACES: [&str; 4] = ["unshare", "--user", "--map-root-user", "--net"];

/// Makes a command run as an unprivileged user.
fn unprivileged(place: &Place) -> Command {
    let mut command = place.command("setpriv").unwrap();
    command.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
        "--",
    ]);
    command
}

/// Runs a script as an unprivileged user of a pod, in new namespaces. Returns its output and the observed records.
fn sent_in_own_namespaces(script: &str) -> (Output, Finished) {
    let lab = lab(LabOptions {
        pods: vec![PodOptions::default(); 1],
        ..LabOptions::default()
    });
    let observer = Observer::stream(&lab, &[]);
    let sent = unprivileged(lab.pod(0))
        .args(IN_OWN_NAMESPACES)
        .args(["/usr/bin/python3", "-c", script])
        .output()
        .unwrap();
    (sent, observer.finish())
}

/// The attack: an unprivileged user in new namespaces, in the pod's cgroup.
fn attack(lab: &Lab, connections: usize, requests: usize) -> Child {
    let mut child = unprivileged(lab.pod(1))
        .args(IN_OWN_NAMESPACES)
        .args(["/usr/bin/python3", "-c", UNANSWERED])
        .args([connections.to_string(), requests.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the attack");
    let said = first_line(&mut child);
    assert_eq!(said, "sent\n", "the attack has sent all");
    child
}

/// Requests `/healthz` several times and returns the longest response time.
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

/// Sends requests of another client until one of them is recorded: the observer has then read all earlier events.
fn catch_up(lab: &Lab, observer: &mut Observer) {
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
}

/// Number of events in a loss record that were not read or not kept.
fn lost(loss: &serde_json::Value) -> u64 {
    let counts = ["ring_buffer", "evicted", "truncated", "shed", "unparsed"];
    counts.iter().map(|count| loss[count].as_u64().unwrap()).sum()
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
    // While the observer reads the backlog, the ring buffer overflows, which the loss record counts. After that, the attack still uses its
    // full budget, and the other clients' requests must be recorded.
    catch_up(&lab, &mut observer);
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
    let lost = lost(loss);
    eprintln!(
        "{victims} of {VICTIMS} seen; {attackers} of {} of the attack, {loss}; {peak} KiB; healthz {health:?}",
        CONNECTIONS * REQUESTS
    );
    assert!(peak < MAX_RESIDENT_KIB, "{peak} KiB");
    assert!(health < Duration::from_secs(1), "healthz took {health:?}");
    assert_eq!(victims, VICTIMS, "each of the others is seen: {loss}");
    // One lost event may hide all later requests of its connection, so the number of losses differs from the number of missing requests.
    assert!(
        attackers == CONNECTIONS * REQUESTS || lost > 0,
        "what is missing is reported: {attackers} and {loss}"
    );
}

/// A cgroup with a memory limit, of either cgroup version.
struct MemoryLimit {
    directory: PathBuf,
    peak: &'static str,
}

impl MemoryLimit {
    fn new(bytes: u64) -> Self {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let name = format!("imds-observer-test-{}", std::process::id());
        let (directory, limit, peak) = if v1.exists() {
            (v1.join(name), "memory.limit_in_bytes", "memory.max_usage_in_bytes")
        } else {
            let root = Path::new("/sys/fs/cgroup");
            fs::write(root.join("cgroup.subtree_control"), "+memory").expect("enable the memory controller");
            (root.join(name), "memory.max", "memory.peak")
        };
        fs::create_dir(&directory).expect("make a memory cgroup");
        fs::write(directory.join(limit), bytes.to_string()).expect("limit the memory");
        Self { directory, peak }
    }

    /// Makes the command start in this cgroup.
    fn confine(&self, command: &mut Command) {
        let mut procs = fs::OpenOptions::new()
            .write(true)
            .open(self.directory.join("cgroup.procs"))
            .expect("open the memory cgroup");
        // SAFETY: between fork and exec there is one system call; the file was opened before.
        unsafe { command.pre_exec(move || procs.write_all(b"0")) };
    }

    /// Peak memory of the process and of its kernel objects (maps, ring buffer), in bytes.
    fn peak_bytes(&self) -> u64 {
        let peak = fs::read_to_string(self.directory.join(self.peak)).unwrap();
        peak.trim().parse().unwrap()
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.directory);
    }
}

/// `MemoryMax` of the unit, in bytes.
fn unit_memory_bytes() -> u64 {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/imds-observer.service");
    let unit = fs::read_to_string(unit).unwrap();
    let limit = unit.lines().find_map(|line| line.strip_prefix("MemoryMax=")).unwrap();
    limit.strip_suffix('M').unwrap().parse::<u64>().unwrap() << 20
}

#[test]
#[ignore = "live"]
fn under_the_units_memory_limit_nine_thousand_connections_hide_no_others() {
    const CONNECTIONS: usize = 9000;
    const REQUESTS: usize = 64;
    const AFTERWARDS: usize = 20;
    let lab = lab(LabOptions {
        pods: vec![PodOptions::default(); 2],
        ..LabOptions::default()
    });
    let limit = MemoryLimit::new(unit_memory_bytes());
    let mut command = in_netns(lab.node(), program());
    limit.confine(&mut command);
    let cgroup = observed_cgroup(&lab);
    command.args(["stream", "-i", UPLINK, "--cgroup", &cgroup, "--metrics", ADDRESS]);
    let mut observer = Observer::start(&mut command);
    observer.wait_for(|record| record["record"] == "start");
    let ask = || {
        let output = run(lab.pod(0), "curl", &["-s", "-o", "/dev/null", URL]);
        assert!(output.status.success());
    };

    // Other clients send requests while the attack is sent and while all its connections are open.
    let (mut asked, mut health) = (0, Duration::ZERO);
    let mut hostile = thread::scope(|scope| {
        let attack = scope.spawn(|| attack(&lab, CONNECTIONS, REQUESTS));
        while !attack.is_finished() {
            ask();
            asked += 1;
            health = health.max(probe(&lab, 1));
        }
        attack.join().unwrap()
    });
    let during = asked;
    catch_up(&lab, &mut observer);
    for _ in 0..AFTERWARDS {
        ask();
        health = health.max(probe(&lab, 1));
    }
    drop(hostile.stdin.take());
    assert!(hostile.wait().unwrap().success());
    let peak = limit.peak_bytes();
    let finished = observer.finish();

    let (others, attacker) = (cgroup_of(lab.pod(0)), cgroup_of(lab.pod(1)));
    let exchanges = finished.kind("exchange");
    let of = |cgroup: &str, marker: bool| {
        let is = |exchange: &&&serde_json::Value| {
            let path = exchange["request"]["path"].as_str().unwrap_or_default();
            exchange["process"]["cgroup"] == cgroup && path.contains("?marker") == marker
        };
        exchanges.iter().filter(is).count()
    };
    let (seen, attackers) = (of(&others, false), of(&attacker, false));
    let loss = finished.kind("loss").pop().unwrap();
    eprintln!(
        "{seen} of {during} + {AFTERWARDS} seen; {attackers} of {} of the attack, {loss}; peak {} MiB of {}; healthz {health:?}",
        CONNECTIONS * REQUESTS,
        peak >> 20,
        unit_memory_bytes() >> 20
    );
    assert!(peak < unit_memory_bytes(), "{peak} bytes");
    assert!(health < Duration::from_secs(1), "healthz took {health:?}");
    // The attack may use only its share of the ring buffer and of the budget for connections.
    assert_eq!(seen, during + AFTERWARDS, "each of the others is seen: {loss}");
    assert!(
        attackers == CONNECTIONS * REQUESTS || lost(loss) > 0,
        "what is missing is reported: {loss}"
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

/// Sends datagrams of several protocols and with IPv6 extension headers to the endpoints, as an unprivileged user in new namespaces.
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
    let (sent, finished) = sent_in_own_namespaces(DATAGRAMS);
    assert_eq!(
        String::from_utf8_lossy(&sent.stdout),
        "8\n",
        "{}",
        String::from_utf8_lossy(&sent.stderr)
    );
    let loss = finished.kind("loss").pop().unwrap();
    assert_eq!(loss["unparsed"], 0, "{loss}");
}

/// Sends requests with extension headers to the IPv6 endpoint, two per connection, as an unprivileged user in new namespaces.
const EXTENDED: &str = r"
import socket, subprocess
for command in ('link set lo up', 'addr add fd00:ec2::254/128 dev lo nodad'):
    subprocess.run(['ip'] + command.split(), check=True)
OPTIONS = bytes([0, 0, 1, 4, 0, 0, 0, 0])
HOP, DESTINATION = 54, 59
server = socket.socket(socket.AF_INET6)
server.bind(('fd00:ec2::254', 80))
server.listen(16)
asked = 0
for number, options in enumerate(((), (HOP,), (DESTINATION,), (HOP, DESTINATION))):
    client = socket.socket(socket.AF_INET6)
    for option in options:
        client.setsockopt(socket.IPPROTO_IPV6, option, OPTIONS)
    client.connect(('fd00:ec2::254', 80))
    peer, _ = server.accept()
    for option in options:
        peer.setsockopt(socket.IPPROTO_IPV6, option, OPTIONS)
    for part in (b'a', b'b'):
        client.sendall(b'GET /latest/meta-data/%d%s HTTP/1.1\r\nHost: x\r\n\r\n' % (number, part))
        peer.recv(10000)
        peer.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok')
        client.recv(10000)
        asked += 1
    client.close()
    peer.close()
print(asked)
";

#[test]
#[ignore = "live"]
fn extension_headers_hide_no_request() {
    let (sent, finished) = sent_in_own_namespaces(EXTENDED);
    assert_eq!(
        String::from_utf8_lossy(&sent.stdout),
        "8\n",
        "{}",
        String::from_utf8_lossy(&sent.stderr)
    );
    let exchanges = finished.kind("exchange");
    assert_eq!(exchanges.len(), 8, "{}", finished.stdout);
    for exchange in exchanges {
        assert_eq!(exchange["outcome"], "answered", "{exchange}");
        assert_eq!(exchange["response"]["status"], 200, "{exchange}");
        assert_eq!(exchange["process"]["comm"], "python3", "{exchange}");
    }
    let loss = finished.kind("loss").pop().unwrap();
    assert_eq!(lost(loss), 0, "{loss}");
}

/// Sends requests in unusual ways, as an unprivileged user in new namespaces. Each has its own connection and a path that names the way.
const WAYS: &str = r"
import array, os, socket, subprocess, tempfile, threading
for command in ('link set lo up', 'addr add 169.254.169.254/32 dev lo'):
    subprocess.run(['ip'] + command.split(), check=True)
with open('/proc/sys/net/ipv4/tcp_fastopen', 'w') as setting:
    setting.write(str(0x607))
ENDPOINT = ('169.254.169.254', 80)
server = socket.socket()
server.setsockopt(socket.SOL_TCP, 23, 16)
server.bind(ENDPOINT)
server.listen(64)

def serve():
    while True:
        peer, _ = server.accept()
        seen = b''
        while b'\r\n\r\n' not in seen:
            more = peer.recv(10000)
            if not more:
                break
            seen += more
        peer.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok')
        peer.close()

threading.Thread(target=serve, daemon=True).start()

def head(name):
    return b'GET /latest/meta-data/%s HTTP/1.1\r\nHost: x\r\n\r\n' % name.encode()

def plain(kind=socket.AF_INET, protocol=0, address=ENDPOINT):
    client = socket.socket(kind, socket.SOCK_STREAM, protocol)
    client.settimeout(10)
    client.connect(address)
    return client

def fast_open(name):
    client = socket.socket()
    client.settimeout(10)
    client.sendto(head(name), 0x20000000, ENDPOINT)
    return client

def multipath(name):
    client = plain(protocol=262)
    client.sendall(head(name))
    return client

def mapped(name):
    client = plain(socket.AF_INET6, address=('::ffff:169.254.169.254', 80))
    client.sendall(head(name))
    return client

def zero_copy(name):
    client = plain()
    client.setsockopt(socket.SOL_SOCKET, 60, 1)
    client.send(head(name), 0x4000000)
    return client

def file(name):
    client = plain()
    with tempfile.TemporaryFile() as source:
        source.write(head(name))
        source.flush()
        os.sendfile(client.fileno(), source.fileno(), 0, len(head(name)))
    return client

def splice(name):
    client = plain()
    read, write = os.pipe()
    os.write(write, head(name))
    os.splice(read, client.fileno(), len(head(name)))
    return client

def bytewise(name):
    client = plain()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in head(name):
        client.sendall(bytes([byte]))
    return client

def corked(name):
    client = plain()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    client.sendall(head(name)[:9])
    client.sendall(head(name)[9:])
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    return client

def passed(name):
    ours, theirs = socket.socketpair()
    client = plain()
    child = os.fork()
    if child == 0:
        _, (control,), _, _ = theirs.recvmsg(1, 100)
        handed = array.array('i', control[2])[0]
        os.write(handed, head(name))
        os._exit(0)
    ours.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [client.fileno()]))])
    os.waitpid(child, 0)
    return client

def small_segments(name):
    client = socket.socket()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 88)
    client.settimeout(10)
    client.connect(ENDPOINT)
    client.sendall(head(name + 'x' * 300))
    return client

for way in (fast_open, multipath, mapped, zero_copy, file, splice, bytewise, corked, passed, small_segments):
    client = way(way.__name__)
    assert client.recv(10000).startswith(b'HTTP/1.1 200'), way
    client.close()
    print(way.__name__, flush=True)
";

#[test]
#[ignore = "live"]
fn no_way_to_send_hides_a_request() {
    let (sent, finished) = sent_in_own_namespaces(WAYS);
    let ways = String::from_utf8_lossy(&sent.stdout).into_owned();
    assert_eq!(ways.lines().count(), 10, "{}", String::from_utf8_lossy(&sent.stderr));
    for way in ways.lines() {
        let path = format!("/latest/meta-data/{way}");
        let of_way: Vec<_> = finished
            .kind("exchange")
            .into_iter()
            .filter(|exchange| {
                exchange["request"]["path"]
                    .as_str()
                    .is_some_and(|asked| asked.starts_with(&path))
            })
            .collect();
        assert_eq!(of_way.len(), 1, "{way}: {}", finished.stdout);
        assert_eq!(of_way[0]["outcome"], "answered", "{}", of_way[0]);
        assert_eq!(of_way[0]["process"]["comm"], "python3", "{}", of_way[0]);
    }
    let loss = finished.kind("loss").pop().unwrap();
    assert_eq!(lost(loss), 0, "{loss}");
}

/// Token requests of a pod that chooses its TTL: from the start, per segment, or before it closes its sending side.
const TTLS: &str = r"
import socket
TOKEN = b'PUT /latest/api/token?%s HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n'
def ask(name, first, then=None):
    client = socket.socket()
    client.settimeout(5)
    client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, first)
    client.connect(('169.254.169.254', 80))
    whole = TOKEN % name
    client.sendall(whole[:20])
    if then:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, then)
    client.sendall(whole[20:])
    if then:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, then - 1)
        client.shutdown(socket.SHUT_WR)
    print(client.recv(10000).split(b'\r\n')[0].decode(), flush=True)
    client.close()
ask(b'one', 65)
ask(b'two', 66)
ask(b'high', 129)
ask(b'changing', 65, 64)
ask(b'rising', 64, 65)
";

#[test]
#[ignore = "live"]
fn a_pod_that_chooses_its_ttl_is_no_closer_to_the_uplink() {
    let lab = lab(LabOptions {
        behaviour: Behaviour {
            hop_limit: 2,
            ..Behaviour::default()
        },
        ..LabOptions::default()
    });
    let observer = Observer::stream(&lab, &[]);
    let sent = unprivileged(lab.pod(0))
        .args(["/usr/bin/python3", "-c", TTLS])
        .output()
        .unwrap();
    let answers = String::from_utf8_lossy(&sent.stdout);
    assert_eq!(
        answers.matches("200 OK").count(),
        5,
        "{answers} {}",
        String::from_utf8_lossy(&sent.stderr)
    );
    let finished = observer.finish();
    let exchanges = finished.kind("exchange");
    assert_eq!(exchanges.len(), 5, "{}", finished.stdout);
    for exchange in exchanges {
        assert_eq!(exchange["request"]["hops"], 1, "{exchange}");
    }
    let trace = tempfile::NamedTempFile::new().unwrap();
    fs::write(trace.path(), &finished.stdout).unwrap();
    let preflight = Command::new(program())
        .args(["preflight", "--hop-limit", "1", "-o", "json"])
        .arg(trace.path())
        .output()
        .unwrap();
    let verdict: serde_json::Value = serde_json::from_slice(&preflight.stdout).unwrap();
    assert_eq!(preflight.status.code(), Some(3), "{verdict}");
    assert_eq!(verdict["breaks"][0]["count"], 5, "{verdict}");
}
