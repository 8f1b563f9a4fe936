//! A named pipe as input, without a writer or with one that opens it late.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

const PATIENCE: Duration = Duration::from_secs(20);

const LOSS: &str = r#"{"record":"loss","schema":1,"time":"2026-01-01T00:00:01.000000000Z","host":"node-7","ring_buffer":0,"unparsed":0,"truncated":0,"evicted":0,"unattributed":0}"#;

/// Starts `analyze` on the pipe, and returns when it has opened the pipe.
fn analyze(pipe: &Path) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_imds-observer"))
        .args(["analyze", "-o", "json"])
        .arg(pipe)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    let opened = |pid: u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"));
        descriptors.is_ok_and(|all| {
            all.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
                .any(|target| target == pipe)
        })
    };
    while !opened(child.id()) {
        if begin.elapsed() >= PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("analyze has not opened the pipe");
        }
        thread::sleep(Duration::from_millis(5));
    }
    child
}

/// Exit status and standard output.
fn finished(mut child: Child) -> (Option<i32>, String) {
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() >= PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("analyze has not ended");
        }
        thread::sleep(Duration::from_millis(5));
    }
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    (child.wait().unwrap().code(), text)
}

#[test]
fn the_first_signal_ends_the_wait_for_a_writer() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().canonicalize().unwrap().join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let child = analyze(&pipe);
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let (status, text) = finished(child);
        assert_eq!(status, Some(0), "{text}");
        assert!(
            text.contains("\"records\":0") || text.contains("\"records\": 0"),
            "{text}"
        );
    }
}

#[test]
fn a_writer_may_come_late_and_pause() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().canonicalize().unwrap().join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    let child = analyze(&pipe);
    let mut writer = fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    for piece in [&LOSS[..50], &LOSS[50..], "\n", LOSS, "\n"] {
        writer.write_all(piece.as_bytes()).unwrap();
        thread::sleep(Duration::from_millis(30));
    }
    drop(writer);
    let (status, text) = finished(child);
    assert_eq!(status, Some(0), "{text}");
    let analysis: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(analysis["input"]["records"], 2, "{text}");
}
