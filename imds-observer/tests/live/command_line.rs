//! Properties of the live commands: when they end, where they write, and that a reader may close its end.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use imds_observer_lab::topology::{Lab, LabOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{UPLINK, in_netns, lab, run};

/// Starts a live command on the lab's node and reads its first line. After this line, it misses nothing.
fn start(lab: &Lab, command: &str, arguments: &[&str]) -> (Child, BufReader<ChildStdout>, String) {
    let cgroup = lab.cgroup_directory();
    let mut child = in_netns(lab.node(), env!("CARGO_BIN_EXE_imds-observer"))
        .args([command, "-i", UPLINK, "--cgroup", cgroup.to_str().unwrap()])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    stdout.read_line(&mut first).unwrap();
    (child, stdout, first)
}

fn curl(lab: &Lab, times: usize) {
    for _ in 0..times {
        let url = "http://169.254.169.254/latest/meta-data/instance-id";
        assert!(
            run(lab.node(), "curl", &["-sS", "-m", "5", "-o", "/dev/null", url])
                .status
                .success()
        );
    }
}

fn kinds(text: &str) -> Vec<String> {
    let kind = |line: &str| {
        serde_json::from_str::<Value>(line).unwrap()["record"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    text.lines().map(kind).collect()
}

#[test]
#[ignore = "live"]
fn stream_stops_after_so_many_exchanges_with_the_totals() {
    let lab = lab(LabOptions::default());
    let (mut child, mut stdout, first) = start(&lab, "stream", &["-c", "3", "--host", "node-7"]);
    assert_eq!(serde_json::from_str::<Value>(&first).unwrap()["host"], "node-7");
    curl(&lab, 5);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let kinds = kinds(&rest);
    assert_eq!(kinds.iter().filter(|kind| *kind == "exchange").count(), 3);
    assert_eq!(kinds[kinds.len() - 2..], ["summary", "loss"]);
}

#[test]
#[ignore = "live"]
fn stream_ends_when_its_reader_leaves_though_nothing_happens() {
    let lab = lab(LabOptions::default());
    let (mut child, stdout, first) = start(&lab, "stream", &["--interval", "1h"]);
    assert!(first.contains("\"start\""));
    drop(stdout);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
#[ignore = "live"]
fn stream_rotates_its_file_at_whole_lines_and_survives_kill_9() {
    let lab = lab(LabOptions::default());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace.ndjson");
    let stream = |lab: &Lab| -> Child {
        let cgroup = lab.cgroup_directory();
        let arguments = ["-C", "8k", "-W", "4", "-w", path.to_str().unwrap()];
        let child = in_netns(lab.node(), env!("CARGO_BIN_EXE_imds-observer"))
            .args(["stream", "-i", UPLINK, "--cgroup", cgroup.to_str().unwrap()])
            .args(arguments)
            .spawn()
            .unwrap();
        let deadline = std::time::Instant::now() + crate::support::patience();
        // Each run begins a new file, which begins with the `start` record.
        while !fs::read_to_string(&path).is_ok_and(|text| text.lines().count() == 1 && text.contains("\"start\"")) {
            assert!(std::time::Instant::now() < deadline, "no start record");
            std::thread::yield_now();
        }
        child
    };
    let mut child = stream(&lab);
    curl(&lab, 30);
    child.kill().unwrap();
    child.wait().unwrap();
    // Simulates a kill in the middle of a line.
    let mut torn = fs::read_to_string(&path).unwrap();
    torn.push_str("{\"record\":\"exch");
    fs::write(&path, torn).unwrap();
    let mut child = stream(&lab);
    curl(&lab, 5);
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));

    let mut files: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!((2..=4).contains(&files.len()), "{files:?}");
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        assert!(text.ends_with('\n') && text.len() <= 8192, "{}", file.display());
        kinds(&text);
    }
    let output = Command::new(env!("CARGO_BIN_EXE_imds-observer"))
        .arg("analyze")
        .args(&files)
        .output()
        .unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "live"]
fn watch_reports_people_who_asks() {
    let lab = lab(LabOptions::default());
    let (mut child, mut stdout, first) = start(&lab, "watch", &["--plain", "-c", "4"]);
    assert!(first.starts_with("imds-observer "), "{first}");
    curl(&lab, 4);
    let mut text = String::new();
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let row = text.lines().find(|line| line.starts_with("curl")).expect(&text);
    assert!(row.contains("v1:4") && row.contains("200:4"), "{row}");
    assert!(!text.contains('\x1b'), "no escape sequences on a pipe");
}

#[test]
#[ignore = "live"]
fn preflight_judges_what_it_sees() {
    let lab = lab(LabOptions::default());
    let mut child = in_netns(lab.node(), env!("CARGO_BIN_EXE_imds-observer"))
        .args([
            "preflight",
            "--http-tokens",
            "required",
            "-o",
            "json",
            "-i",
            UPLINK,
            "-c",
            "2",
            "--duration",
            "20s",
        ])
        .args(["--cgroup", lab.cgroup_directory().to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The command prints nothing before its end, so send requests until it has seen enough.
    while child.try_wait().unwrap().is_none() {
        curl(&lab, 1);
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&answer["verdict"], &answer["breaks"][0]["count"]),
        (&"not-safe".into(), &2.into())
    );
}
