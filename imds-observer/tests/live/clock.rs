//! The wall clock is stepped while the observer runs. Only for the observer: a library in between answers for it, because the machine's clock
//! belongs to others.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use imds_observer_lab::server::Behaviour;
use imds_observer_lab::topology::{Lab, LabOptions};

use crate::support::{Observer, lab, run};

/// Adds seconds from a file, which is mapped before the observer is confined.
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

/// Longer than the observer takes to look at the clock again.
const LOOK: Duration = Duration::from_secs(12);

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

#[test]
#[ignore = "live"]
fn a_wall_clock_that_is_stepped_judges_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let library = compile(directory.path());
    let step = directory.path().join("step");
    fs::write(&step, [0; 8]).unwrap();
    let set = |seconds: i64| {
        let file = fs::OpenOptions::new().write(true).open(&step).unwrap();
        file.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    };
    let lab = lab(LabOptions {
        behaviour: Behaviour {
            delay_ms: 2_000,
            only: vec!["meta-data/slow".to_owned()],
            ..Behaviour::default()
        },
        ..LabOptions::default()
    });
    let before = imds_observer::record::Time::now();
    let environment = [
        ("LD_PRELOAD", library.as_str()),
        ("TEST_CLOCK_STEP", step.to_str().unwrap()),
    ];
    let mut observer = Observer::stream_with(&lab, &environment, &[]);
    let mut asked = 0;
    for (number, seconds) in [3600, -3600].into_iter().enumerate() {
        // One request is on its way when the clock is stepped; others follow until the observer has looked at it.
        let mut waiting = slow(&lab, number);
        asked += 1;
        let begin = Instant::now();
        while begin.elapsed() < LOOK {
            let url = format!("http://169.254.169.254/latest/meta-data/instance-id?{number}-{asked}");
            assert!(
                run(lab.node(), "curl", &["-s", "-o", "/dev/null", &url])
                    .status
                    .success()
            );
            observer.wait_for(|record| {
                record["request"]["path"]
                    .as_str()
                    .is_some_and(|path| url.ends_with(path))
            });
            asked += 1;
            set(seconds);
            thread::sleep(Duration::from_secs(1));
        }
        assert!(waiting.wait().unwrap().success());
    }
    let finished = observer.finish();
    let after = imds_observer::record::Time::now();
    let exchanges = finished.kind("exchange");
    assert_eq!(exchanges.len(), asked, "{}", finished.stdout);
    for exchange in exchanges {
        assert_eq!(exchange["outcome"], "answered", "{exchange}");
        let time: imds_observer::record::Time = exchange["time"].as_str().unwrap().parse().unwrap();
        assert!(before <= time && time <= after, "{exchange}");
        assert!(exchange["latency_ns"].as_u64().unwrap() < 3_000_000_000, "{exchange}");
    }
    // curl sends no token, and nothing else is wrong.
    for finding in finished.kind("finding") {
        assert_eq!(finding["code"], "imdsv1-request", "{finding}");
    }
    let total = finished.kind("summary").pop().unwrap();
    assert!(total["interval_ns"].as_u64().unwrap() < 120_000_000_000, "{total}");
    assert!(
        finished.stderr.contains("the wall clock was stepped"),
        "{}",
        finished.stderr
    );
}
