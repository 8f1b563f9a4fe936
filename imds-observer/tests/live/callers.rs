//! Processes that make it hard: threads, inherited and passed sockets, `exec` chains, other names, users and namespaces, and sockets
//! that are older than the observer. Each says who it is; the record has to say the same.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Stdio};

use imds_observer_lab::topology::{Lab, LabOptions};
use serde_json::Value;

use crate::support::{Finished, Observer, cgroup_of, lab, run};

/// What all of them need: one request on a socket, and its end.
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

/// Runs Python in the node and returns what it printed of itself.
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
fn threads_and_sockets_that_change_hands() {
    let lab = lab(LabOptions::default());
    // Connected before the observer is there; asks when told.
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
    // Each image of the chain asks under the same PID.
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

/// A client that connects at once and asks later.
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
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
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
