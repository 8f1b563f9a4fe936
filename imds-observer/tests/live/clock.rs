//! Steps of the wall clock while the observer runs. A preloaded library changes the time for the observer only, because other programs need
//! the machine's clock.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use imds_observer::record::Time;
use imds_observer_lab::server::Behaviour;
use imds_observer_lab::topology::{Lab, LabOptions};

use serde_json::Value;

use crate::support::{Observer, lab, run};

/// Library that adds seconds from a file to the time. The file is mapped before the observer drops its privileges.
const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

static int (*real)(clockid_t, struct timespec *);
static volatile long long *step;

__attribute__((constructor)) static void begin(void) {
    step = mmap(0, sizeof *step, PROT_READ, MAP_SHARED, open(getenv("TEST_CLOCK_STEP"), O_RDONLY), 0);
    if (step == MAP_FAILED) abort();
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, time);
    if (!failed && clock == CLOCK_REALTIME && step) time->tv_sec += *step;
    return failed;
}
"#;

/// Longer than the observer's interval for checking the clock.
const LOOK: Duration = Duration::from_secs(4);
const HOUR: i64 = 3600;

fn compile(directory: &Path) -> String {
    let (source, library) = (directory.join("step.c"), directory.join("step.so"));
    fs::write(&source, LIBRARY).unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .output()
        .expect("run cc");
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    library.to_str().unwrap().to_owned()
}

fn slow(lab: &Lab, number: usize) -> Child {
    lab.node()
        .command("curl")
        .unwrap()
        .args(["-s", "-o", "/dev/null"])
        .arg(format!("http://169.254.169.254/latest/meta-data/slow/{number}"))
        .spawn()
        .unwrap()
}

/// An observer whose clock can be stepped.
struct Stepped {
    directory: tempfile::TempDir,
    library: String,
}

impl Stepped {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let stepped = Self {
            library: compile(directory.path()),
            directory,
        };
        fs::write(stepped.file(), [0; 8]).unwrap();
        stepped
    }

    fn file(&self) -> std::path::PathBuf {
        self.directory.path().join("step")
    }

    /// Sets the clock this number of seconds ahead of the machine's.
    fn set(&self, seconds: i64) {
        let file = fs::OpenOptions::new().write(true).open(self.file()).unwrap();
        file.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }

    fn environment(&self) -> [(String, String); 2] {
        [
            ("LD_PRELOAD".to_owned(), self.library.clone()),
            ("TEST_CLOCK_STEP".to_owned(), self.file().to_str().unwrap().to_owned()),
        ]
    }
}

fn time(value: &Value) -> Time {
    value.as_str().unwrap_or_else(|| panic!("{value}")).parse().unwrap()
}

fn ahead(time: Time, seconds: i64) -> Time {
    Time(time.0.saturating_add_signed(seconds * 1_000_000_000))
}

/// Steps the clock an hour forward and two hours back, each during a request.
#[test]
#[ignore = "live"]
fn a_stepped_wall_clock_is_followed_at_once_and_judges_nobody() {
    let clock = Stepped::new();
    let lab = lab(LabOptions {
        behaviour: Behaviour {
            delay_ms: 2_000,
            only: vec!["meta-data/slow".to_owned()],
            ..Behaviour::default()
        },
        ..LabOptions::default()
    });
    let before = Time::now();
    let environment = clock.environment();
    let environment = environment
        .each_ref()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let mut observer = Observer::stream_with(&lab, &environment, &[]);
    let mut asked = 0;
    let mut of_step = Vec::new();
    for (number, (set, by)) in [(HOUR, HOUR), (-HOUR, -2 * HOUR)].into_iter().enumerate() {
        let mut waiting = slow(&lab, number);
        asked += 1;
        clock.set(set);
        let begin = Instant::now();
        observer.wait_for(|record| {
            let step = record["clock_step_ns"].as_i64().unwrap_or(0);
            (step - by * 1_000_000_000).abs() < 500_000_000
        });
        assert!(begin.elapsed() < LOOK, "{:?}", begin.elapsed());
        let path = format!("/latest/meta-data/instance-id?{number}");
        let url = format!("http://169.254.169.254{path}");
        let asked_at = Time::now();
        assert!(
            run(lab.node(), "curl", &["-s", "-o", "/dev/null", &url])
                .status
                .success()
        );
        asked += 1;
        observer.wait_for(|record| record["request"]["path"].as_str().is_some_and(|asked| asked == path));
        assert!(waiting.wait().unwrap().success());
        let slow = format!("/latest/meta-data/slow/{number}");
        observer.wait_for(|record| record["request"]["path"].as_str().is_some_and(|asked| asked == slow));
        of_step.push((path, set, asked_at));
    }
    let finished = observer.finish();
    let after = Time::now();
    let exchanges = finished.kind("exchange");
    assert_eq!(exchanges.len(), asked, "{}", finished.stdout);
    for exchange in &exchanges {
        assert_eq!(exchange["outcome"], "answered", "{exchange}");
        assert!(exchange["latency_ns"].as_u64().unwrap() < 3_000_000_000, "{exchange}");
        // By the same clock, a process that began after the run did not begin before it.
        let lasted = time(&exchange["time"]).since(time(&exchange["process"]["start_time"]));
        assert!(0 < lasted && lasted < 10_000_000_000, "{exchange}");
    }
    for (path, set, asked_at) in of_step {
        let of_path = |exchange: &&&Value| exchange["request"]["path"] == *path;
        let found = time(&exchanges.iter().find(of_path).unwrap()["time"]);
        assert!(
            ahead(asked_at, set) <= found && found <= ahead(after, set),
            "{path}: {found}"
        );
    }
    // curl sends no token, which is the only finding.
    for finding in finished.kind("finding") {
        assert_eq!(finding["code"], "imdsv1-request", "{finding}");
    }
    let total = finished.kind("summary").pop().unwrap();
    assert!(total["interval_ns"].as_u64().unwrap() < 120_000_000_000, "{total}");
    assert!(ahead(before, -HOUR) <= time(&total["from"]), "{total}");
    assert!(
        finished.stderr.contains("the wall clock was stepped by 3600."),
        "{}",
        finished.stderr
    );
    // `analyze` must read the trace in the same way.
    let trace = clock.directory.path().join("trace.ndjson");
    fs::write(&trace, &finished.stdout).unwrap();
    let analysis = Command::new(env!("CARGO_BIN_EXE_imds-observer"))
        .args(["analyze", "-o", "json"])
        .arg(&trace)
        .output()
        .unwrap();
    let analysis: Value = serde_json::from_slice(&analysis.stdout).unwrap();
    assert_eq!(analysis["input"]["skipped"], 0, "{analysis}");
    assert_eq!(analysis["loss"]["unparsed"], 0, "{analysis}");
    for finding in analysis["findings"].as_array().unwrap() {
        assert_eq!(finding["code"], "imdsv1-request", "{finding}");
    }
    let interval_ns = analysis["summary"]["interval_ns"].as_u64().unwrap();
    assert!(interval_ns < 120_000_000_000, "{analysis}");
}

/// A step of two days doesn't count as two days of observation.
#[test]
#[ignore = "live"]
fn a_stepped_wall_clock_is_no_proof_to_preflight() {
    let clock = Stepped::new();
    let lab = lab(LabOptions::default());
    let environment = clock.environment();
    let preflight = ["preflight", "--endpoint", "disabled", "-o", "json", "--duration", "8s"];
    let mut command = lab.node().command(env!("CARGO_BIN_EXE_imds-observer")).unwrap();
    let running = command
        .args(preflight)
        .envs(environment)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_secs(4));
    clock.set(48 * HOUR);
    let output = running.wait_with_output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["verdict"], "cannot-say", "{answer}");
    let unproven = answer["unproven"].as_array().unwrap();
    assert!(unproven.contains(&"observed-long-enough".into()), "{answer}");
    let interval_ns = answer["summary"]["interval_ns"].as_u64().unwrap();
    assert!(interval_ns < 60_000_000_000, "{answer}");
}
