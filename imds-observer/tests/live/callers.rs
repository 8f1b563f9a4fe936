//! Processes that are difficult to identify: threads, inherited and passed sockets, `exec` chains, other names, users and namespaces, and
//! sockets that are older than the observer. Each process reports its identity, which the record must match.

use std::io::Write as _;
use std::process::{Child, Stdio};

use imds_observer_lab::server::Behaviour;
use imds_observer_lab::topology::{Lab, LabOptions};
use serde_json::Value;

use crate::support::{Finished, Observer, UPLINK, cgroup_of, first_line, lab, run};

/// Prelude of all scripts: sending one request on a socket until its end.
const PRELUDE: &str = r#"
import array, ctypes, json, os, socket, sys, threading
def connected():
    return socket.create_connection(("169.254.169.254", 80), 10)
def ask(s, name):
    s.sendall(f"GET /latest/meta-data/instance-id?{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    while s.recv(4096):
        pass
def me(**more):
    print(json.dumps({"pid": os.getpid(), "tid": threading.get_native_id(), **more}), flush=True)
"#;

/// Runs Python in the node and returns the identity that it printed.
fn python(lab: &Lab, code: &str) -> Value {
    let output = run(lab.node(), "/usr/bin/python3", &["-c", &format!("{PRELUDE}{code}")]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("it doesn't say who it is: {}", String::from_utf8_lossy(&output.stderr)))
}

fn exchange<'a>(finished: &'a Finished, name: &str) -> &'a Value {
    let found: Vec<&Value> = finished
        .kind("exchange")
        .into_iter()
        .filter(|record| {
            record["request"]["path"]
                .as_str()
                .unwrap()
                .ends_with(&format!("?{name}"))
        })
        .collect();
    assert_eq!(found.len(), 1, "{name}: {:?}", finished.kind("exchange"));
    found[0]
}

fn same(finished: &Finished, name: &str, who: &Value) -> Value {
    let exchange = exchange(finished, name);
    let process = &exchange["process"];
    assert_eq!(process["pid"], who["pid"], "{name}: {exchange}");
    assert_eq!(process["tid"], who["tid"], "{name}: {exchange}");
    process.clone()
}

#[test]
#[ignore = "live"]
fn what_the_kernel_sends_later_is_still_the_callers() {
    let lab = lab(LabOptions::default());
    let mut observer = Observer::stream(&lab, &[]);
    // The kernel delays the request until a timer sends it, in an interrupt of processes that never send requests to IMDS.
    let caller = python(
        &lab,
        r#"
import time
busy = []
for _ in range(os.cpu_count()):
    pid = os.fork()
    if pid == 0:
        end = time.monotonic() + 10
        while time.monotonic() < end:
            pass
        os._exit(0)
    busy.append(pid)
for n in range(5):
    s = connected()
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    ask(s, f"kept-{n}")
for pid in busy:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
me()
"#,
    );
    for n in 0..5 {
        let path = format!("/latest/meta-data/instance-id?kept-{n}");
        observer.wait_for(|record| record["request"]["path"] == path.as_str());
    }
    let finished = observer.finish();
    for n in 0..5 {
        same(&finished, &format!("kept-{n}"), &caller);
    }
}

#[test]
#[ignore = "live"]
fn threads_and_sockets_that_change_hands() {
    let lab = lab(LabOptions::default());
    // This client connects before the observer starts, and sends its request on a signal.
    let mut early = Early::start(&lab);
    let mut observer = Observer::stream(&lab, &[]);

    let thread = python(
        &lab,
        r#"
def work():
    ask(connected(), "thread")
    me()
t = threading.Thread(target=work); t.start(); t.join()
"#,
    );
    let inherited = python(
        &lab,
        r#"
s = connected()
pid = os.fork()
if pid == 0:
    ask(s, "inherited")
    me()
    os._exit(0)
os.waitpid(pid, 0)
"#,
    );
    let passed = python(
        &lab,
        r#"
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
pid = os.fork()
if pid == 0:
    _, fds, _, _ = socket.recv_fds(b, 1, 1)
    s = socket.socket(fileno=fds[0])
    s.settimeout(10)
    ask(s, "passed")
    me()
    os._exit(0)
s = connected()
socket.send_fds(a, [b"x"], [s.fileno()])
s.close()
os.waitpid(pid, 0)
"#,
    );
    let renamed = python(
        &lab,
        r#"
ctypes.CDLL(None).prctl(15, b"other name")
ask(connected(), "renamed")
me()
"#,
    );
    let user = python(
        &lab,
        r#"
os.setgid(65534); os.setuid(65534)
ask(connected(), "setuid")
me()
"#,
    );
    // Each image of the chain sends a request under the same PID.
    let chain = python(
        &lab,
        r#"
ask(connected(), "chain-first")
me()
os.execvp("env", ["env", "curl", "-s", "-o", "/dev/null", "http://169.254.169.254/latest/meta-data/instance-id?chain-last"])
"#,
    );
    for (name, unshare) in [("pid-namespace", "--pid"), ("user-namespace", "--user")] {
        let url = format!("http://169.254.169.254/latest/meta-data/instance-id?{name}");
        let output = run(
            lab.node(),
            "unshare",
            &[unshare, "--fork", "curl", "-s", "-o", "/dev/null", &url],
        );
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let early_pid = early.ask();
    observer.wait_for(|record| record["request"]["path"] == "/latest/meta-data/instance-id?early");
    let finished = observer.finish();

    let thread_ = same(&finished, "thread", &thread);
    assert_ne!(thread_["pid"], thread_["tid"], "a thread of its own");
    let inherited_ = same(&finished, "inherited", &inherited);
    assert!(
        inherited_["ancestors"][0]["comm"]
            .as_str()
            .unwrap()
            .starts_with("python3")
    );
    same(&finished, "passed", &passed);
    assert_eq!(same(&finished, "renamed", &renamed)["comm"], "other name");
    assert_eq!(same(&finished, "setuid", &user)["uid"], 65534);
    let first = same(&finished, "chain-first", &chain);
    assert!(first["exe"].as_str().unwrap().contains("python3"));
    let last = same(&finished, "chain-last", &chain);
    assert_eq!(last["comm"], "curl");
    assert!(last["exe"].as_str().unwrap().ends_with("/curl"));
    assert_eq!(last["cmdline"][0], "curl");
    let inside = &exchange(&finished, "pid-namespace")["process"];
    assert_eq!(inside["namespace_pid"], 1, "{inside}");
    assert_eq!(inside["ancestors"][0]["comm"], "unshare");
    let mapped = &exchange(&finished, "user-namespace")["process"];
    assert_eq!(
        mapped["uid"], 0,
        "as the host counts, not as the namespace does: {mapped}"
    );
    let early_ = &exchange(&finished, "early")["process"];
    assert_eq!(early_["pid"], early_pid);
    for record in finished.kind("exchange") {
        assert_eq!(record["process"]["cgroup"], cgroup_of(lab.node()), "{record}");
    }
    let loss = finished.kind("loss").pop().unwrap();
    assert_eq!(loss["unattributed"], 0, "{loss}");
}

/// A virtual machine as seen from its host: frames from a tap device on the bridge, without a socket. The script itself implements ARP and
/// TCP.
const MACHINE: &str = r#"
import fcntl, os, select, socket, struct, sys
tap, bridge, own, gateway = sys.argv[1:]
remote = "169.254.169.254"
wire = os.open("/dev/net/tun", os.O_RDWR)
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454ca, 2, 0x1000
fcntl.ioctl(wire, TUNSETIFF, struct.pack("16sH22x", tap.encode(), IFF_TAP | IFF_NO_PI))
assert os.system(f"ip link set {tap} master {bridge} up") == 0
mac = b"\x02\0\0\0\0\x42"
ip = socket.inet_aton
def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
def arp(operation, target_mac, target):
    destination = b"\xff" * 6 if operation == 1 else target_mac
    os.write(wire, destination + mac + struct.pack("!HHHBBH", 0x806, 1, 0x800, 6, 4, operation) + mac + ip(own) + target_mac + target)
def read(patience):
    return os.read(wire, 4096) if select.select([wire], [], [], patience)[0] else None
def frames():
    while True:
        frame = read(10)
        assert frame, "no answer"
        if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1" and frame[38:42] == ip(own):
            arp(2, frame[22:28], frame[28:32])
        else:
            yield frame
# Until the bridge's port forwards, nobody answers.
gateway_mac = None
for _ in range(200):
    arp(1, b"\0" * 6, ip(gateway))
    frame = read(0.1)
    while frame and not gateway_mac:
        if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2" and frame[28:32] == ip(gateway):
            gateway_mac = frame[22:28]
        frame = read(0)
    if gateway_mac:
        break
frames = frames()
port, seq, ack = 45678, 1000, 0
def send(flags, data=b""):
    global seq
    tcp = struct.pack("!HHIIBBHHH", port, 80, seq, ack, 5 << 4, flags, 65535, 0, 0)
    pseudo = ip(own) + ip(remote) + struct.pack("!BBH", 0, 6, len(tcp) + len(data))
    tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp + data)) + tcp[18:]
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp) + len(data), 1, 0, 64, 6, 0, ip(own), ip(remote))
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    os.write(wire, gateway_mac + mac + b"\x08\0" + header + tcp + data)
    seq += len(data) + bool(flags & 3)
def receive():
    for frame in frames:
        if frame[12:14] == b"\x08\0" and frame[26:34] == ip(remote) + ip(own) and frame[23] == 6:
            tcp = frame[34:14 + struct.unpack("!H", frame[16:18])[0]]
            return struct.unpack("!I", tcp[4:8])[0], tcp[13], tcp[(tcp[12] >> 4) * 4:]
send(2)
theirs, flags, _ = receive()
assert flags & 0x12 == 0x12, flags
ack = theirs + 1
send(16)
send(24, b"GET /latest/meta-data/instance-id?machine HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
status = b""
while not flags & 1:
    theirs, flags, data = receive()
    if theirs == ack & 0xffffffff:
        status += data
        ack = theirs + len(data) + (flags & 1)
        send(17 if flags & 1 else 16)
print(status[:12].decode())
"#;

#[test]
#[ignore = "live"]
fn a_machine_behind_a_tap_is_reported_by_interface_and_address() {
    let lab = lab(LabOptions::default());
    let octets = lab.pod(0).ipv4().octets();
    let own = format!("{}.{}.{}.{}", octets[0], octets[1], octets[2], octets[3] ^ 0x40);
    let gateway = format!("{}.{}.{}.1", octets[0], octets[1], octets[2]);
    let mut observer = Observer::stream(&lab, &[]);
    let arguments = ["-c", MACHINE, "tap0", "cni0", &own, &gateway];
    let output = run(lab.node(), "/usr/bin/python3", &arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "HTTP/1.1 200");
    observer.wait_for(|record| record["record"] == "exchange");
    let finished = observer.finish();

    let exchange = exchange(&finished, "machine");
    assert_eq!(exchange["process"], Value::Null, "{exchange}");
    assert_eq!(exchange["container"], Value::Null, "{exchange}");
    assert_eq!(exchange["connection"]["interface"], UPLINK, "{exchange}");
    assert_eq!(exchange["request"]["imds_version"], "v1", "{exchange}");
    assert_eq!(exchange["response"]["status"], 200, "{exchange}");
    let loss = finished.kind("loss").pop().unwrap();
    assert_eq!(loss["unattributed"], 1, "{loss}");
}

/// Sends requests on one connection, at a fixed rate and for a fixed time.
const STEADY: &str = r#"
import socket, sys, time
name, rate, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
s = socket.create_connection(("169.254.169.254", 80), 10)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
request = f"GET /latest/meta-data/instance-id?{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
begin = time.monotonic()
for number in range(rate * seconds):
    delay = begin + number / rate - time.monotonic()
    if delay > 0.001:
        time.sleep(delay)
    s.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        more = s.recv(4096)
        assert more, "it closes"
        answer += more
    assert answer.startswith(b"HTTP/1.1 200"), answer[:12]
    head, _, body = answer.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(body) < length:
        body += s.recv(4096)
print(rate * seconds / (time.monotonic() - begin))
"#;

#[test]
#[ignore = "live"]
fn of_5000_exchanges_a_second_none_is_lost_or_somebody_elses() {
    let lab = lab(LabOptions {
        behaviour: Behaviour {
            keep_alive: true,
            ..Behaviour::default()
        },
        ..LabOptions::default()
    });
    // A busy machine may not reach the rate, or may not run the observer for longer than the ring buffer can hold. The test is then
    // repeated. If the rate is never reached, one round with half of it must be complete, and the reached rates are printed: the observer
    // is not responsible for requests that the clients did not send.
    let rounds: Vec<Round> = (0..5)
        .map(|_| steady(&lab))
        .take_while(|round| !(round.whole && round.rate >= FULL))
        .collect();
    if rounds.len() == 5 {
        eprintln!("this machine had no more than these exchanges a second: {rounds:.0?}");
        assert!(
            rounds.iter().any(|round| round.whole && round.rate >= FULL / 2.0),
            "too little to say anything: {rounds:?}"
        );
    }
}

#[derive(Debug)]
struct Round {
    /// Exchanges per second.
    rate: f64,
    /// Whether no exchange was lost.
    whole: bool,
}

/// Required rate in exchanges per second. It is slightly below 5,000, because the clients' clocks may be inexact.
const FULL: f64 = 4900.0;

/// Runs one round. Missing events must be reported, and no exchange may be attributed to another process.
fn steady(lab: &Lab) -> Round {
    const CLIENTS: usize = 2;
    const RATE: usize = 5000 / CLIENTS;
    const SECONDS: usize = 4;
    let observer = Observer::stream(lab, &[]);
    let clients: Vec<Child> = (0..CLIENTS)
        .map(|number| {
            lab.node()
                .command("/usr/bin/python3")
                .unwrap()
                .args([
                    "-c",
                    STEADY,
                    &number.to_string(),
                    &RATE.to_string(),
                    &SECONDS.to_string(),
                ])
                .stdout(Stdio::piped())
                .spawn()
                .expect("run python3")
        })
        .collect();
    let mut pids = Vec::new();
    let mut reached = 0.0;
    for client in clients {
        pids.push(client.id());
        let output = client.wait_with_output().unwrap();
        assert!(output.status.success(), "it has all its answers");
        reached += String::from_utf8(output.stdout).unwrap().trim().parse::<f64>().unwrap();
    }
    let finished = observer.finish();
    let exchanges = finished.kind("exchange");
    let loss = finished.kind("loss").pop().unwrap();
    let wanted = RATE * SECONDS * CLIENTS;
    eprintln!("{} of {wanted} exchanges at {reached:.0} a second", exchanges.len());
    let lost = |name: &str| loss[name].as_u64().unwrap();
    if exchanges.len() != wanted {
        assert!(
            lost("ring_buffer") + lost("truncated") > 0,
            "what is missing is reported: {loss}"
        );
    }
    for exchange in &exchanges {
        let path = exchange["request"]["path"].as_str().unwrap();
        let number: usize = path.rsplit('?').next().unwrap().parse().unwrap();
        assert_eq!(exchange["process"]["pid"], pids[number], "{exchange}");
    }
    for name in ["unparsed", "unattributed", "shed"] {
        assert_eq!(lost(name), 0, "{name}: {loss}");
    }
    let whole = lost("ring_buffer") == 0;
    if whole {
        assert_eq!(exchanges.len(), wanted, "{loss}");
        assert!(exchanges.iter().all(|exchange| exchange["outcome"] == "answered"));
        for name in ["truncated", "evicted"] {
            assert_eq!(lost(name), 0, "{name}: {loss}");
        }
    }
    Round { rate: reached, whole }
}

/// A client that connects immediately and sends its request later.
struct Early(Child);

impl Early {
    fn start(lab: &Lab) -> Self {
        let code = format!("{PRELUDE}\ns = connected()\nme()\nsys.stdin.readline()\nask(s, \"early\")\n");
        let mut child = lab
            .node()
            .command("/usr/bin/python3")
            .unwrap()
            .args(["-c", &code])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run python3");
        let line = first_line(&mut child);
        assert!(line.contains("pid"), "it is connected");
        Self(child)
    }

    fn ask(&mut self) -> u32 {
        self.0.stdin.take().unwrap().write_all(b"now\n").unwrap();
        assert!(self.0.wait().unwrap().success());
        self.0.id()
    }
}

impl Drop for Early {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
