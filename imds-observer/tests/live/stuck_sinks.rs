//! A full disk, a pipe without a reader, and `kill -9`: reading kernel events must never wait for a sink, the least important records are
//! dropped first, and every written line must parse.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use imds_observer_lab::topology::{Lab, LabOptions};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{UPLINK, in_netns, lab, patience, run};

const BASE: &str = "http://169.254.169.254/latest/meta-data/instance-id";

fn stream(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = in_netns(lab.node(), env!("CARGO_BIN_EXE_imds-observer"));
    command
        .args([
            "stream",
            "-i",
            UPLINK,
            "--cgroup",
            lab.cgroup_directory().to_str().unwrap(),
        ])
        .args(arguments);
    command
}

/// Sends a number of requests over one connection, as fast as responses arrive.
fn ask(lab: &Lab, name: &str, times: usize) {
    let url = format!("{BASE}?{name}[1-{times}]");
    assert!(
        run(lab.pod(0), "curl", &["-s", "-o", "/dev/null", &url])
            .status
            .success()
    );
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience();
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// Parses every line of a text, whose last line must be complete.
fn records(text: &str) -> Vec<Value> {
    assert!(text.is_empty() || text.ends_with('\n'), "the last line is torn");
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

fn last<'a>(records: &'a [Value], kind: &str) -> &'a Value {
    records
        .iter()
        .rfind(|record| record["record"] == kind)
        .unwrap_or_else(|| panic!("no {kind}"))
}

fn requests(summary: &Value) -> u64 {
    let rows = summary["processes"].as_array().unwrap();
    rows.iter().map(|row| row["requests"].as_u64().unwrap()).sum()
}

fn interrupt(pid: u32) {
    kill(Pid::from_raw(pid as i32), Signal::SIGINT).unwrap();
}

/// A file system with a limited size, which is unmounted on drop.
struct Small(PathBuf);

impl Small {
    fn new(at: &Path, kib: u32) -> Self {
        let options = format!("size={kib}k");
        mount(
            Some("none"),
            at,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .expect("mount a tmpfs");
        Self(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
#[ignore = "live"]
fn a_full_disk_costs_exchanges_and_is_reported_and_writing_goes_on() {
    let lab = lab(LabOptions::default());
    let directory = tempfile::tempdir().unwrap();
    let disk = Small::new(directory.path(), 256);
    let (filler, file) = (disk.0.join("filler"), disk.0.join("trace"));
    fs::write(&filler, vec![0; 128 << 10]).unwrap();
    let mut child = stream(&lab, &["-w", file.to_str().unwrap(), "--interval", "1s"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text = || fs::read_to_string(&file).unwrap_or_default();
    until("it starts", || text().contains("\"start\""));
    // About 1 KiB per record, more than the file system can hold.
    ask(&lab, "before", 400);
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut full = String::new();
    said.read_line(&mut full).unwrap();
    assert!(
        full.contains("No space left on device") && full.contains("trace"),
        "{full}"
    );
    // A finding opens while nothing can be written.
    let token = [
        "-s",
        "-m",
        "1",
        "-X",
        "PUT",
        "-H",
        "X-aws-ec2-metadata-token-ttl-seconds: 60",
    ];
    lab.server().update(|behaviour| behaviour.hop_limit = 1);
    run(
        lab.pod(0),
        "curl",
        &[&token[..], &["http://169.254.169.254/latest/api/token"]].concat(),
    );
    ask(&lab, "meanwhile", 50);
    assert!(child.try_wait().unwrap().is_none(), "it goes on");

    fs::remove_file(&filler).unwrap();
    until("it is written again", || {
        ask(&lab, "after", 1);
        text().contains("?after1\"") && text().contains("\"token-response-lost\"")
    });
    interrupt(child.id());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let records = records(&text());
    let loss = last(&records, "loss");
    assert!(loss["shed"].as_u64() > Some(100), "{loss}");
    assert_eq!(
        (&loss["ring_buffer"], &loss["unattributed"]),
        (&0.into(), &0.into()),
        "{loss}"
    );
    let total = last(&records, "summary");
    assert!(requests(total) >= 452, "all were seen: {total}");
    let rest: String = said.lines().map_while(Result::ok).collect();
    assert!(
        rest.contains("write recovered") && rest.contains("lines dropped"),
        "{rest}"
    );
}

#[test]
#[ignore = "live"]
fn a_pipe_that_nobody_empties_costs_exchanges_and_no_finding() {
    let lab = lab(LabOptions::default());
    let config = tempfile::NamedTempFile::new().unwrap();
    fs::write(&config, "[limits]\nqueue = 60\n").unwrap();
    let mut child = stream(
        &lab,
        &["--config", config.path().to_str().unwrap(), "--interval", "500ms"],
    )
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    stdout.read_line(&mut text).unwrap();
    // A pipe holds 64 KiB, the writer 256 records, and the queue 60.
    ask(&lab, "before", 700);
    let token = [
        "-s",
        "-m",
        "1",
        "-X",
        "PUT",
        "-H",
        "X-aws-ec2-metadata-token-ttl-seconds: 60",
    ];
    lab.server().update(|behaviour| behaviour.hop_limit = 1);
    run(
        lab.pod(0),
        "curl",
        &[&token[..], &["http://169.254.169.254/latest/api/token"]].concat(),
    );
    ask(&lab, "meanwhile", 300);
    // The pipe is read again, to its end.
    let reader = std::thread::spawn(move || {
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut stdout, &mut rest).map(|_| rest)
    });
    std::thread::sleep(Duration::from_secs(1));
    interrupt(child.id());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    text += &reader.join().unwrap().unwrap();
    let records = records(&text);
    assert!(
        records
            .iter()
            .any(|record| record["code"] == "token-response-lost" && record["state"] == "open"),
        "the finding is there"
    );
    let loss = last(&records, "loss");
    assert!(loss["shed"].as_u64() > Some(100), "{loss}");
    assert_eq!(
        (&loss["ring_buffer"], &loss["unattributed"]),
        (&0.into(), &0.into()),
        "{loss}"
    );
    let total = last(&records, "summary");
    assert!(requests(total) >= 1001, "all were seen: {total}");
}

/// `tests/rotation.rs` does this a thousand times with the sink; this test uses the whole program.
#[test]
#[ignore = "live"]
fn the_program_killed_at_any_moment_leaves_whole_lines() {
    let lab = lab(LabOptions::default());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("trace");
    let mut seed = 0x1bd5_2026_u64;
    let mut rotations = 0;
    for round in 0..6 {
        let arguments = [
            "-w",
            file.to_str().unwrap(),
            "-C",
            "8k",
            "-W",
            "4",
            "--interval",
            "100ms",
        ];
        let before = fs::metadata(&file).ok().map(|file| file.ino());
        let mut child = stream(&lab, &arguments).stderr(Stdio::piped()).spawn().unwrap();
        // The file of the previous round has a first line as well.
        let begun = || {
            let text = fs::read_to_string(&file).unwrap_or_default();
            text.contains("\"start\"") && fs::metadata(&file).is_ok_and(|file| Some(file.ino()) != before)
        };
        until("it starts", begun);
        let pid = child.id() as i32;
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let moment = Duration::from_micros(50_000 + seed % 300_000);
        let killer = std::thread::spawn(move || {
            std::thread::sleep(moment);
            kill(Pid::from_raw(pid), Signal::SIGKILL)
        });
        ask(&lab, &format!("round{round}-"), 200);
        killer.join().unwrap().unwrap();
        child.wait().unwrap();
        let mut newest = true;
        for name in ["trace", "trace.1", "trace.2", "trace.3"] {
            let Ok(text) = fs::read_to_string(directory.path().join(name)) else {
                continue;
            };
            // Only the last line of the newest file may be incomplete.
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            assert!(newest || whole == text.len(), "{name} has a torn line");
            newest = false;
            rotations += usize::from(name != "trace");
            records(&text[..whole]);
        }
        assert!(!directory.path().join("trace.4").exists());
    }
    println!("{rotations} older files were looked at");
    assert!(rotations > 6);
}
