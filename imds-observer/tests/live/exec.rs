//! `exec` must report the command's requests correctly, without being noticeable to the command, and without leaving anything behind.
//!
//! Every run begins in a lab's node. If a packet left the namespace of the stand-in, it would reach the lab's service and be counted.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use imds_observer_lab::bpf;
use imds_observer_lab::terminal::{Control, Pty};
use imds_observer_lab::topology::{Lab, LabOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{first_line, in_netns, lab, lives, patience, program, python};

const PUT: &str = "curl -s -m 1 -o /dev/null -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' \
    http://169.254.169.254/latest/api/token";
const GET: &str = "curl -s -m 1 -o /dev/null http://169.254.169.254/latest/meta-data/instance-id";
/// ID of an unprivileged user.
const NOBODY: &str = "65534";

fn exec(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = in_netns(lab.node(), program());
    command.arg("exec").args(arguments);
    command
}

/// `exec` as an unprivileged user.
fn exec_as_nobody(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = in_netns(lab.node(), "setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
    command.arg(program()).arg("exec").args(arguments);
    command
}

/// Whether a process is running. A zombie that init has not reaped yet is not running.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Runs `exec` to its end and returns its JSON report, which is the last part of standard output.
fn story(lab: &Lab, arguments: &[&str]) -> (Option<i32>, Value, Output) {
    let mut all = vec!["-o", "json"];
    all.extend(arguments);
    let output = exec(lab, &all).output().expect("run exec");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let at = text
        .find("{\n")
        .unwrap_or_else(|| panic!("no object: {text}{}", String::from_utf8_lossy(&output.stderr)));
    let object = serde_json::from_str(&text[at..]).unwrap_or_else(|error| panic!("{error}: {text}"));
    (output.status.code(), object, output)
}

fn codes(story: &Value) -> Vec<&str> {
    let findings = story["findings"].as_array().expect("findings");
    findings.iter().filter_map(|finding| finding["code"].as_str()).collect()
}

fn requests<'a>(story: &'a Value, kind: &str) -> Vec<&'a Value> {
    let requests = story["requests"].as_array().expect("requests");
    requests.iter().filter(|request| request["record"] == kind).collect()
}

/// Cgroups and supervisors of `exec`, network namespaces with a process, and eBPF programs.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    cgroups: BTreeSet<String>,
    supervisors: BTreeSet<u32>,
    namespaces: BTreeSet<u64>,
}

fn left() -> Left {
    let mut found = Left {
        cgroups: BTreeSet::new(),
        supervisors: BTreeSet::new(),
        namespaces: BTreeSet::new(),
    };
    cgroups(Path::new("/sys/fs/cgroup"), &mut found.cgroups);
    for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim() == "imds-exec") {
            found.supervisors.insert(pid);
        }
        if let Ok(namespace) = fs::metadata(entry.path().join("ns/net")) {
            found.namespaces.insert(namespace.ino());
        }
    }
    found
}

fn cgroups(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("imds-observer-exec-") {
                found.insert(name);
            }
            cgroups(&entry.path(), found);
        }
    }
}

/// Waits until nothing exists that did not exist before.
fn nothing_more_than(before: &Left, programs: u32) {
    let deadline = Instant::now() + patience();
    loop {
        let now = left();
        let more = now.cgroups.difference(&before.cgroups).count()
            + now.supervisors.difference(&before.supervisors).count()
            + now.namespaces.difference(&before.namespaces).count();
        let loaded = bpf::last_program().expect("list programs") > programs;
        if more == 0 && !loaded {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "left: {now:#?}, before: {before:#?}, programs: {loaded}"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

fn spawn(lab: &Lab, arguments: &[&str]) -> Child {
    exec(lab, arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start exec")
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).expect("send a signal");
}

fn rest(mut child: Child) -> (Option<i32>, String) {
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    (child.wait().unwrap().code(), text)
}

#[test]
#[ignore = "live"]
fn a_hop_limit_of_one_is_too_small_for_a_container() {
    let lab = lab(LabOptions::default());
    for (against, lost) in [
        ("tokens=optional,hop-limit=1,hops=0", false),
        ("tokens=optional,hop-limit=1,hops=1", true),
        ("tokens=optional,hop-limit=2,hops=1", false),
        ("tokens=optional,hop-limit=2,hops=2", true),
        ("tokens=optional,hop-limit=3,hops=2", false),
    ] {
        let (status, story, _) = story(&lab, &["--against", against, "--", "sh", "-c", PUT]);
        let exchanges = requests(&story, "exchange");
        assert_eq!(exchanges.len(), 1, "{against}: {story:#}");
        assert_eq!(
            exchanges[0]["outcome"],
            if lost { "lost" } else { "answered" },
            "{against}"
        );
        assert_eq!(exchanges[0]["process"]["comm"], "curl", "{against}");
        assert_eq!(
            codes(&story),
            if lost { vec!["token-response-lost"] } else { vec![] },
            "{against}"
        );
        assert_eq!(status, Some(if lost { 28 } else { 0 }), "{against}: curl's own status");
        let waited = story["waited_ns"].as_u64().unwrap();
        assert_eq!(waited > 900_000_000, lost, "{against}: {waited}");
    }
    // No request may have reached the service of the namespace in which all commands were started.
    assert_eq!(lab.server().log().total, 0);
}

#[test]
#[ignore = "live"]
fn statuses_are_the_commands_own() {
    let lab = lab(LabOptions::default());
    let status = |arguments: &[&str]| exec(&lab, arguments).output().expect("run exec").status.code();
    let against = ["--against", "tokens=required", "--"];
    let with = |command: &[&str]| status(&[&against[..], command].concat());
    assert_eq!(with(&["true"]), Some(0));
    assert_eq!(with(&["sh", "-c", "exit 7"]), Some(7));
    assert_eq!(with(&["sh", "-c", "kill -9 $$"]), Some(137));
    assert_eq!(with(&["/nonexistent/program"]), Some(127));
    assert_eq!(with(&["/etc/passwd"]), Some(126));
    let asserted = |assertion: &str, command: &str| {
        status(&[
            "--against",
            "hop-limit=1",
            "--assert",
            assertion,
            "--",
            "sh",
            "-c",
            command,
        ])
    };
    assert_eq!(asserted("no v1", GET), Some(3));
    assert_eq!(asserted("v1 = 1, no findings-high", GET), Some(0));
    assert_eq!(asserted("some v1", "exit 7"), Some(3));
    assert_eq!(status(&["--assert", "no v3", "--", "true"]), Some(2));
    assert_eq!(status(&["--against", "hop-limit=65", "--", "true"]), Some(2));
    // An image requires a stand-in. A matrix may have options for the stand-in, but no HTML page.
    assert_eq!(status(&["--image", "client"]), Some(2));
    assert_eq!(
        status(&["--matrix", "--against", "role=web", "-o", "html", "--", "true"]),
        Some(125)
    );
    assert_eq!(
        status(&["--against", "hops=1", "--fail-on", "high", "--", "sh", "-c", PUT]),
        Some(3)
    );
}

#[test]
#[ignore = "live"]
fn output_is_passed_through_and_the_report_can_go_to_a_file() {
    let lab = lab(LabOptions::default());
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let script = "cat; echo to-stderr >&2";
    let mut child = exec(&lab, &["--against", "hops=1", "-w", path, "--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"from-stdin").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "from-stdin");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "to-stderr\n");
    assert!(
        fs::read_to_string(path)
            .unwrap()
            .contains("no requests to IMDS observed")
    );

    let page = exec(&lab, &["--against", "hops=1", "-o", "html", "--", "sh", "-c", PUT])
        .output()
        .unwrap();
    let page = String::from_utf8_lossy(&page.stdout).into_owned();
    assert!(page.contains("<html") && page.contains("token-response-lost"), "{page}");
}

#[test]
#[ignore = "live"]
fn signals_reach_the_command() {
    let lab = lab(LabOptions::default());
    let (before, programs) = (left(), bpf::last_program().unwrap());
    let script = "trap 'echo got TERM; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let mut child = spawn(&lab, &["--against", "hops=1", "--", "sh", "-c", script]);
    assert_eq!(first_line(&mut child), "ready\n");
    signal(&child, Signal::SIGTERM);
    let (status, text) = rest(child);
    assert_eq!(status, Some(5));
    assert!(
        text.starts_with("got TERM\n") && text.contains("exited with status 5"),
        "{text}"
    );
    nothing_more_than(&before, programs);
}

#[test]
#[ignore = "live"]
fn the_second_signal_ends_a_command_that_ignores_both() {
    let lab = lab(LabOptions::default());
    let (before, programs) = (left(), bpf::last_program().unwrap());
    let script = "trap '' INT TERM; (trap '' INT TERM; exec sleep 600) & echo ready; while :; do sleep 0.05; done";
    let mut child = spawn(&lab, &["--against", "hops=1", "--", "sh", "-c", script]);
    assert_eq!(first_line(&mut child), "ready\n");
    signal(&child, Signal::SIGINT);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(
        child.try_wait().unwrap(),
        None,
        "the first signal is the command's to ignore"
    );
    signal(&child, Signal::SIGTERM);
    let (status, text) = rest(child);
    assert_eq!(status, Some(137));
    assert!(text.contains("was ended by signal 9"), "{text}");
    nothing_more_than(&before, programs);
}

/// The terminal sends the signal to all foreground processes, so `exec` must not send it to the command again.
#[test]
#[ignore = "live"]
fn ctrl_c_reaches_the_command_once() {
    let lab = lab(LabOptions::default());
    let (before, programs) = (left(), bpf::last_program().unwrap());
    let script = "n=0; trap 'n=$((n+1)); echo got INT' INT; echo ready; \
        while [ $n -eq 0 ]; do sleep 0.05; done; sleep 0.5; echo counted $n; exit 6";
    let command = exec(&lab, &["--against", "hops=1", "--", "sh", "-c", script]);
    let mut pty = Pty::spawn(command, (160, 50), Control::Controlling).unwrap();
    pty.wait_for("ready").unwrap();
    pty.press("\x03").unwrap();
    pty.wait_for("counted 1").unwrap();
    let status = pty.wait().unwrap();
    assert_eq!(status.code(), Some(6), "{}", pty.text());
    assert!(pty.text().contains("exited with status 6"), "{}", pty.text());

    // A command that ignores the signal is ended by the second one.
    let script = "trap '' INT; echo ready; while :; do sleep 0.05; done";
    let command = exec(&lab, &["--against", "hops=1", "--", "sh", "-c", script]);
    let mut pty = Pty::spawn(command, (160, 50), Control::Controlling).unwrap();
    pty.wait_for("ready").unwrap();
    pty.press("\x03").unwrap();
    thread::sleep(Duration::from_millis(200));
    pty.press("\x03").unwrap();
    assert_eq!(pty.wait().unwrap().code(), Some(137), "{}", pty.text());
    nothing_more_than(&before, programs);
}

/// Measures the time from the start of `exec` to the command's first request, minus the command's own time. The target for an optimized
/// program is 300 ms. The tests' build needs longer, because it reads the kernel's types more slowly.
#[test]
#[ignore = "live"]
fn the_command_starts_soon() {
    let lab = lab(LabOptions::default());
    let now_ns = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let median = |mut times: Vec<u64>| {
        times.sort_unstable();
        Duration::from_nanos(times[times.len() / 2])
    };
    let alone = median(
        (0..7)
            .map(|_| {
                let start = now_ns();
                assert!(crate::support::run(lab.node(), "sh", &["-c", GET]).status.success());
                lab.server().take_log().requests[0].time_unix_ns - start
            })
            .collect(),
    );
    let within = median(
        (0..7)
            .map(|_| {
                let start = now_ns();
                let (status, story, _) = story(&lab, &["--against", "hops=1", "--", "sh", "-c", GET]);
                assert_eq!(status, Some(0));
                let time = requests(&story, "exchange")[0]["time"].as_str().unwrap();
                time.parse::<jiff::Timestamp>().unwrap().as_nanosecond() as u64 - start
            })
            .collect(),
    );
    let added = within.saturating_sub(alone);
    println!("first request after {within:?}, by itself after {alone:?}: {added:?} added");
    let optimized = std::env::var_os("IMDS_OBSERVER_TEST_PROGRAM").is_some();
    let target = Duration::from_millis(if optimized { 300 } else { 1000 });
    assert!(added < target * crate::support::slowness(), "{added:?} added");
}

#[test]
#[ignore = "live"]
fn what_the_command_leaves_ends_with_it() {
    let lab = lab(LabOptions::default());
    let (before, programs) = (left(), bpf::last_program().unwrap());
    let script = "setsid sleep 600 >/dev/null 2>&1 & echo $!";
    let (status, text) = rest(spawn(&lab, &["--against", "hops=2", "--", "sh", "-c", script]));
    assert_eq!(status, Some(0));
    let pid: u32 = text.lines().next().unwrap().parse().unwrap();
    assert!(!lives(pid));
    nothing_more_than(&before, programs);
}

#[test]
#[ignore = "live"]
fn nothing_is_left_after_kill_9() {
    let lab = lab(LabOptions::default());
    let (before, programs) = (left(), bpf::last_program().unwrap());
    let script = "trap '' INT TERM HUP; setsid sleep 600 & echo $!; while :; do sleep 0.05; done";
    let mut child = spawn(&lab, &["--against", "hops=2", "--", "sh", "-c", script]);
    let pid: u32 = first_line(&mut child).trim().parse().unwrap();
    assert!(lives(pid));
    let during = left();
    assert!(during.cgroups.len() > before.cgroups.len() && during.supervisors.len() > before.supervisors.len());
    assert!(bpf::last_program().unwrap() > programs, "programs are loaded");
    signal(&child, Signal::SIGKILL);
    child.wait().unwrap();
    nothing_more_than(&before, programs);
    assert!(!lives(pid));
}

#[test]
#[ignore = "live"]
fn nothing_is_left_of_a_matrix_after_kill_9() {
    let lab = lab(LabOptions::default());
    let (before, programs) = (left(), bpf::last_program().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let script = format!(
        "trap '' INT TERM HUP; echo $$ > {}; while :; do sleep 0.05; done",
        file.display()
    );
    let mut child = spawn(&lab, &["--matrix", "--", "sh", "-c", &script]);
    let deadline = Instant::now() + patience();
    let pid: u32 = loop {
        if let Ok(pid) = fs::read_to_string(&file).unwrap_or_default().trim().parse() {
            break pid;
        }
        assert!(Instant::now() < deadline, "no setting has started");
        thread::sleep(Duration::from_millis(20));
    };
    assert!(lives(pid) && left().supervisors.len() > before.supervisors.len());
    signal(&child, Signal::SIGKILL);
    child.wait().unwrap();
    nothing_more_than(&before, programs);
    assert!(!lives(pid));
}

#[test]
#[ignore = "live"]
fn a_killed_supervisor_is_reported_and_leaves_nothing() {
    let lab = lab(LabOptions::default());
    for as_root in [true, false] {
        let (before, programs) = (left(), bpf::last_program().unwrap());
        let arguments = [
            "--against",
            "hops=1",
            "--",
            "sh",
            "-c",
            "echo $$; while :; do sleep 0.05; done",
        ];
        let mut command = if as_root {
            exec(&lab, &arguments)
        } else {
            exec_as_nobody(&lab, &arguments)
        };
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid: u32 = first_line(&mut child).trim().parse().unwrap();
        let during = left();
        let supervisor = during
            .supervisors
            .difference(&before.supervisors)
            .next()
            .expect("a supervisor");
        kill(Pid::from_raw(*supervisor as i32), Signal::SIGKILL).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(125), "root: {as_root}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("supervisor was killed"));
        nothing_more_than(&before, programs);
        assert!(!runs(pid), "root: {as_root}");
    }
}

#[test]
#[ignore = "live"]
fn no_packet_leaves_the_stand_ins_world() {
    let lab = lab(LabOptions::default());
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let mut tcpdump = in_netns(lab.node(), "tcpdump")
        .args(["-i", "any", "-U", "-w", path, "--immediate-mode"])
        .args(["net 169.254.0.0/16 or host fd00:ec2::254 or host 100.100.100.200"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("start tcpdump");
    let mut ready = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(tcpdump.stderr.as_mut().unwrap()),
        &mut ready,
    )
    .unwrap();
    let everywhere = "for a in 169.254.169.254 169.254.170.2 169.254.170.23 100.100.100.200 '[fd00:ec2::254]' 8.8.8.8; do \
        curl -gs -m 1 -o /dev/null http://$a/latest/; done; true";
    for against in [
        "hops=0",
        "hops=2,ipv6,pod-identity,ecs",
        "fail=PUT:403",
        "endpoint=disabled",
    ] {
        let (status, ..) = story(&lab, &["--against", against, "--", "sh", "-c", everywhere]);
        assert_eq!(status, Some(0), "{against}");
    }
    let user = exec_as_nobody(&lab, &["--against", "hops=1", "--", "sh", "-c", everywhere])
        .output()
        .unwrap();
    assert_eq!(user.status.code(), Some(0), "{}", String::from_utf8_lossy(&user.stderr));
    let size = || fs::metadata(path).unwrap().len();
    let empty = size();
    assert_eq!(empty, 24, "a capture without a packet");
    assert_eq!(lab.server().log().total, 0);
    // Checks that the capture shows packets that leave.
    let deadline = Instant::now() + patience();
    while size() == empty {
        assert!(Instant::now() < deadline, "the capture sees nothing at all");
        crate::support::run(lab.node(), "sh", &["-c", GET]);
    }
    tcpdump.kill().unwrap();
    tcpdump.wait().unwrap();
}

#[test]
#[ignore = "live"]
fn without_root_the_stand_ins_uplink_shows_what_it_can() {
    let lab = lab(LabOptions::default());
    let (before, programs) = (left(), bpf::last_program().unwrap());
    let output = exec_as_nobody(
        &lab,
        &[
            "-o",
            "json",
            "--against",
            "tokens=required,hops=1",
            "--",
            "sh",
            "-c",
            PUT,
        ],
    )
    .output()
    .unwrap();
    let story: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(output.status.code(), Some(28));
    assert_eq!(codes(&story), ["token-response-lost"]);
    let exchanges = requests(&story, "exchange");
    assert_eq!((exchanges.len(), &exchanges[0]["process"]), (1, &Value::Null));
    let missing = story["missing"].to_string();
    assert!(
        missing.contains("which process") && missing.contains("not root"),
        "{missing}"
    );
    nothing_more_than(&before, programs);

    let plain = exec_as_nobody(&lab, &["--", "true"]).output().unwrap();
    assert_eq!(plain.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&plain.stderr).contains("--against"));
}

#[test]
#[ignore = "live"]
fn without_a_stand_in_only_the_command_is_observed() {
    let lab = lab(LabOptions::default());
    let (before, programs) = (left(), bpf::last_program().unwrap());
    let script = format!("echo ready; read line; {GET}");
    let mut child = exec(&lab, &["-o", "json", "--", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    assert_eq!(first_line(&mut child), "ready\n");
    // Another program sends requests at the same time.
    let other = crate::support::run(lab.node(), "sh", &["-c", PUT]);
    assert!(other.status.success());
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"go\n").unwrap();
    let (status, text) = rest(child);
    assert_eq!(status, Some(0));
    let story: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let exchanges = requests(&story, "exchange");
    assert_eq!(exchanges.len(), 1, "{story:#}");
    assert_eq!(exchanges[0]["request"]["imds_version"], "v1");
    assert_eq!(exchanges[0]["response"]["status"], 200);
    assert_eq!(story["against"], Value::Null);
    assert_eq!(codes(&story), ["imdsv1-request"]);
    nothing_more_than(&before, programs);
}

/// Behavior of a client in a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Works,
    /// Gets credentials after this number of seconds.
    Waits(u64),
    /// Gets no credentials, and fails after this number of seconds.
    Fails(u64),
}
use Does::{Fails, Waits, Works};

/// Expected behavior of a client that receives the token response, and of one that doesn't. In both arrays, the first value is for settings
/// that allow IMDSv1, the second for settings that require tokens.
struct Client {
    with_token: [Does; 2],
    without_token: [Does; 2],
}

/// Settings, and whether the hop limit suffices. A container needs at least 2, a nested container would need 3.
const SETTINGS: [(&str, u64, bool); 6] = [
    ("host", 1, true),
    ("host", 2, true),
    ("container", 1, false),
    ("container", 2, true),
    ("nested", 1, false),
    ("nested", 2, false),
];

/// Runs a shell command in all settings. The command must succeed if the client has credentials.
fn matrix_of(script: &str, client: &Client) {
    judge(script, client, true);
}

/// Like `matrix_of`, for a command that continues to a service that doesn't exist here. Its exit status therefore shows nothing about
/// credentials.
fn matrix_by_credentials_of(script: &str, client: &Client) {
    judge(&format!("{script}; true"), client, false);
}

fn judge(script: &str, client: &Client, by_status: bool) {
    let lab = lab(LabOptions::default());
    let before = left();
    let home = tempfile::tempdir().unwrap();
    let output = exec(&lab, &["--matrix", "-o", "json", "--", "sh", "-c", script])
        .env("HOME", home.path())
        .env("AWS_CONFIG_FILE", "/nonexistent")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        .env("NODE_PATH", clients().join("node/node_modules"))
        .output()
        .unwrap();
    let matrix: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(output.status.code(), Some(0));
    let cells = matrix["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 2 * SETTINGS.len());
    let mut cells = cells.iter();
    for (place, hop_limit, suffices) in SETTINGS {
        for (tokens, index) in [("optional", 0), ("required", 1)] {
            let cell = cells.next().unwrap();
            let setting = (
                cell["place"].as_str(),
                cell["hop_limit"].as_u64(),
                cell["tokens"].as_str(),
            );
            assert_eq!(setting, (Some(place), Some(hop_limit), Some(tokens)));
            let expected = if suffices {
                client.with_token
            } else {
                client.without_token
            }[index];
            let waited = Duration::from_nanos(cell["waited_ns"].as_u64().unwrap());
            let (result, seconds) = match expected {
                Works => ("works", 0),
                Waits(seconds) => ("waits", seconds),
                Fails(seconds) => ("fails", seconds),
            };
            let by_itself = match (by_status, seconds) {
                (true, _) => result,
                (false, 0) => "works",
                (false, _) => "waits",
            };
            assert_eq!(cell["result"], by_itself, "{cell:#}");
            // The client waits for the given number of timeouts of one second. The time until its request is sent is part of a timeout.
            let range =
                Duration::from_millis((seconds * 1000).saturating_sub(50))..Duration::from_millis(seconds * 1000 + 700);
            assert!(range.contains(&waited), "{expected:?}: {cell:#}");
            assert_eq!(cell["credentials_obtained"], result != "fails", "{cell:#}");
            let used_v1 = cell["versions"].as_array().unwrap().contains(&Value::from("v1"));
            assert!(used_v1 || !matches!(expected, Waits(_)), "{cell:#}");
            if !suffices && seconds > 0 {
                assert!(cell["reason"].as_str().unwrap().contains("hop limit"), "{cell:#}");
            }
        }
    }
    let after = left();
    assert_eq!((after.cgroups, after.supervisors), (before.cgroups, before.supervisors));
}

/// Creates a file system with curl and its libraries.
fn image(root: &Path) {
    let copy = |file: &str| {
        let target = root.join(file.trim_start_matches('/'));
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(file, target).unwrap_or_else(|error| panic!("copy {file}: {error}"));
    };
    let linked = crate::support::output("ldd", &["/usr/bin/curl"]);
    linked
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .for_each(copy);
    copy("/usr/bin/curl");
    for directory in ["proc", "dev", "sys", "etc", "tmp"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
}

#[test]
#[ignore = "live"]
fn a_container_of_podman_is_in_the_stand_ins_world() {
    let lab = lab(LabOptions::default());
    let directory = tempfile::tempdir().unwrap();
    let [root, data, run] = ["root", "data", "run"].map(|name| directory.path().join(name));
    image(&root);
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    for (hop_limit, status, codes_expected) in [(1, 28, &["token-response-lost"][..]), (2, 0, &[])] {
        let against = format!("tokens=required,hop-limit={hop_limit},hops=1");
        let (found, story, output) = story(
            &lab,
            &[
                &[
                    "--against",
                    &against,
                    "--",
                    "podman",
                    "--storage-driver",
                    "vfs",
                    "--cgroup-manager",
                    "cgroupfs",
                ][..],
                &[
                    "--root",
                    &path(&data),
                    "--runroot",
                    &path(&run),
                    "run",
                    "--rm",
                    "--network",
                    "host",
                ],
                &[
                    "--ulimit",
                    "nofile=1024:1024",
                    "--ulimit",
                    "nproc=1024:1024",
                    "--rootfs",
                    &path(&root),
                ],
                &["/usr/bin/curl", "-s", "-m", "1", "-o", "/dev/null", "-X", "PUT"],
                &[
                    "-HX-aws-ec2-metadata-token-ttl-seconds: 60",
                    "http://169.254.169.254/latest/api/token",
                ],
            ]
            .concat(),
        );
        assert_eq!(found, Some(status), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(requests(&story, "exchange").len(), 1, "{story:#}");
        assert_eq!(codes(&story), codes_expected, "{story:#}");
    }
    assert_eq!(lab.server().log().total, 0);
}

#[test]
#[ignore = "live"]
fn an_image_is_run_with_its_own_command() {
    let lab = lab(LabOptions::default());
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    image(Path::new(&path("root")));
    // Separate storage, and limits that an unprivileged container may set.
    fs::write(
        path("containers.conf"),
        "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n[engine]\ncgroup_manager = \"cgroupfs\"\n",
    )
    .unwrap();
    let storage = format!(
        "[storage]\ndriver = \"vfs\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
        path("data"),
        path("run")
    );
    fs::write(path("storage.conf"), storage).unwrap();
    let environment = [
        ("CONTAINERS_CONF", path("containers.conf")),
        ("CONTAINERS_STORAGE_CONF", path("storage.conf")),
    ];
    let made = Command::new("tar")
        .args(["-C", &path("root"), "-cf", &path("root.tar"), "."])
        .status()
        .unwrap();
    assert!(made.success());
    let request =
        r#"["/usr/bin/curl","-s","-m","1","-o","/dev/null","http://169.254.169.254/latest/meta-data/instance-id"]"#;
    let imported = in_netns(lab.node(), "podman")
        .envs(environment.clone())
        .args([
            "import",
            "--quiet",
            "--change",
            &format!("CMD={request}"),
            &path("root.tar"),
            "client:latest",
        ])
        .output()
        .unwrap();
    assert!(
        imported.status.success(),
        "{}",
        String::from_utf8_lossy(&imported.stderr)
    );
    let output = exec(
        &lab,
        &[
            "-o",
            "json",
            "--against",
            "hops=1",
            "--assert",
            "v1 = 1",
            "--image",
            "client:latest",
        ],
    )
    .envs(environment)
    .output()
    .unwrap();
    let story: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(
        output.status.code(),
        Some(0),
        "{story:#}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(requests(&story, "exchange").len(), 1, "{story:#}");
}

/// Tests the script of the GitHub Action.
#[test]
#[ignore = "live"]
fn the_script_for_ci_passes_its_settings_on() {
    let lab = lab(LabOptions::default());
    let file = tempfile::NamedTempFile::new().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/exec/run.sh");
    let run = |settings: &[(&str, &str)]| {
        let output = in_netns(lab.node(), &script)
            .env("EXEC_PROGRAM", program())
            .env("EXEC_REPORT", file.path())
            .envs(settings.iter().copied())
            .output()
            .unwrap();
        (output.status.code(), fs::read_to_string(file.path()).unwrap())
    };
    let (status, report) = run(&[("EXEC_COMMAND", GET), ("EXEC_ASSERT", "no v1, waited < 1s")]);
    assert_eq!(status, Some(3), "{report}");
    assert!(
        report.contains("tokens=required,hop-limit=1,hops=1") && report.contains("FAILED no v1"),
        "{report}"
    );
    let (status, report) = run(&[
        ("EXEC_COMMAND", PUT),
        ("EXEC_AGAINST", "hops=1"),
        ("EXEC_FAIL_ON", "high"),
    ]);
    assert_eq!(status, Some(3), "{report}");
    let (status, report) = run(&[("EXEC_COMMAND", "exit 7"), ("EXEC_AGAINST", "hops=1")]);
    assert_eq!(status, Some(7), "{report}");
    let (status, _) = run(&[]);
    assert_eq!(status, Some(2), "without a command");
}

/// Directory that `cargo xtask setup --for scenarios` created.
fn clients() -> std::path::PathBuf {
    crate::support::tool_directory().join("clients")
}

/// `cargo xtask test` doesn't install these clients. Without a client, its matrix is skipped, which the output states.
fn is_installed(client: &str, present: bool) -> bool {
    if !present {
        eprintln!("left out: {client} is not installed (cargo xtask setup --for scenarios)");
    }
    present
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let status = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

fn has_node() -> bool {
    let modules = clients().join("node/node_modules").is_dir();
    is_installed("an SDK for JavaScript", modules && succeeds("node", &["--version"]))
}

/// A client of the scenarios, which prints whether it has credentials.
fn scenario_client(program: &str, file: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../imds-observer-lab/clients")
        .join(file);
    assert!(file.exists(), "{}", file.display());
    format!("{program} {} </dev/null | grep -q '^has credentials'", file.display())
}

/// From its source (`utils.py`, `IMDSFetcher`): one attempt of 1 s for the token, then IMDSv1.
#[test]
#[ignore = "live"]
fn the_matrix_of_botocore_is_as_its_source_has_it() {
    matrix_of(
        &scenario_client(python().to_str().unwrap(), "botocore_load.py"),
        &Client {
            with_token: [Works, Works],
            without_token: [Waits(1), Fails(1)],
        },
    );
}

/// The AWS CLI uses botocore.
#[test]
#[ignore = "live"]
fn the_matrix_of_the_aws_cli_is_that_of_botocore() {
    if !is_installed("the AWS CLI", Path::new("/usr/bin/aws").exists()) {
        return;
    }
    matrix_by_credentials_of(
        "AWS_MAX_ATTEMPTS=1 /usr/bin/aws sts get-caller-identity --region us-east-1 --endpoint-url http://127.0.0.1:9 \
         --cli-connect-timeout 1",
        &Client {
            with_token: [Works, Works],
            without_token: [Waits(1), Fails(1)],
        },
    );
}

/// Docker's credential helper for ECR. From its source (the middleware of `feature/ec2/imds`): three attempts, each with 0.5 s for the
/// response's head, and 1 s between them; then IMDSv1, until that is answered with 401. The helper would repeat all of this a second later,
/// and would repeatedly try to reach ECR, which doesn't exist here. The test therefore stops it first.
#[test]
#[ignore = "live"]
fn the_matrix_of_the_sdk_for_go_v2_is_as_its_source_has_it() {
    let present = succeeds("sh", &["-c", "command -v docker-credential-ecr-login"]);
    if !is_installed("docker's credential helper for ECR", present) {
        return;
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../imds-observer-lab/clients/ecr_login.sh");
    matrix_by_credentials_of(
        &format!("timeout 4.2 {}", file.display()),
        &Client {
            with_token: [Works, Works],
            without_token: [Waits(3), Fails(3)],
        },
    );
}

/// From its source (`fromInstanceMetadata.js`): 1 s and no retry for the token, then IMDSv1.
#[test]
#[ignore = "live"]
fn the_matrix_of_the_sdk_for_javascript_v3_is_as_its_source_has_it() {
    if !has_node() {
        return;
    }
    matrix_of(
        &scenario_client("node", "js_v3.js"),
        &Client {
            with_token: [Works, Works],
            without_token: [Waits(1), Fails(1)],
        },
    );
}

/// Version 2.560.0 doesn't support IMDSv2, so the hop limit doesn't matter.
#[test]
#[ignore = "live"]
fn the_matrix_of_an_old_sdk_for_javascript_is_as_its_source_has_it() {
    if !has_node() {
        return;
    }
    matrix_of(
        &scenario_client("node", "js_v2.js"),
        &Client {
            with_token: [Works, Fails(0)],
            without_token: [Works, Fails(0)],
        },
    );
}

/// From its source (the token middleware of `aws-config`): an error after 1 s, and never IMDSv1.
#[test]
#[ignore = "live"]
fn the_matrix_of_the_sdk_for_rust_is_as_its_source_has_it() {
    let program = clients().join("rust-sdk/release/rust-sdk");
    if !is_installed("the SDK for Rust", program.exists()) {
        return;
    }
    let script = format!("{} </dev/null | grep -q '^has credentials'", program.display());
    matrix_of(
        &script,
        &Client {
            with_token: [Works, Works],
            without_token: [Fails(1), Fails(1)],
        },
    );
}

/// From its source (`instance_profile_credentials.rb`), with `retries` as in the default chain: Net::HTTP sends an idempotent PUT twice,
/// each with 1 s, then IMDSv1. If that fails too, `initialize` and the two calls of `credentials` in `set?` each refresh, which takes 6 s.
/// (Without the chain, the provider's `retries` is 1, which doubles the 2 s.)
#[test]
#[ignore = "live"]
fn the_matrix_of_the_sdk_for_ruby_is_as_its_source_has_it() {
    let present = succeeds("ruby", &["-e", "require 'aws-sdk-core'"]);
    if !is_installed("the SDK for Ruby", present) {
        return;
    }
    let program = "require 'aws-sdk-core'; exit(Aws::InstanceProfileCredentials.new(retries: 0).set? ? 0 : 1)";
    matrix_of(
        &format!("exec ruby -e \"{program}\""),
        &Client {
            with_token: [Works, Works],
            without_token: [Waits(2), Fails(6)],
        },
    );
}
