//! Processes that run for some milliseconds. Each exchange must be attributed to the right process, as recorded by the launcher.

use std::collections::HashMap;
use std::fs;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use imds_observer_lab::topology::{LabOptions, PodCgroup, PodOptions};
use serde_json::Value;

use crate::support::{Observer, cgroup_of, lab};

/// Launches per second.
const RATE: u32 = 50;
const CGROUPS: usize = 10;

/// Number of launches; `IMDS_OBSERVER_SHORT_LIVED=1000` for the complete test.
fn launches() -> usize {
    std::env::var("IMDS_OBSERVER_SHORT_LIVED").map_or(200, |count| count.parse().expect("a number"))
}

/// Facts that the launcher records about one curl.
struct Launched {
    pid: u32,
    cgroup: String,
    url: String,
}

#[test]
#[ignore = "live"]
fn each_of_many_short_lived_processes_is_named_rightly() {
    check(false);
}

#[test]
#[ignore = "live"]
fn also_while_every_core_is_busy() {
    check(true);
}

fn check(load: bool) {
    let pods = (0..CGROUPS)
        .map(|number| PodOptions {
            cgroup: PodCgroup::Path(format!("jobs/job-{number}")),
            nested: false,
        })
        .collect();
    let lab = lab(LabOptions {
        pods,
        ..LabOptions::default()
    });
    let mut observer = Observer::stream(&lab, &[]);
    let busy = load.then(Busy::start);

    let mut launched: HashMap<String, Launched> = HashMap::new();
    let mut children: Vec<Child> = Vec::new();
    let begin = Instant::now();
    for number in 0..launches() {
        // Keeps the requested rate. A machine that is too slow launches as fast as it can.
        let due = begin + Duration::from_secs(1) / RATE * number as u32;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let place = lab.pod(number % CGROUPS);
        let path = format!("/latest/meta-data/instance-id?launch={number}");
        let url = format!("http://169.254.169.254{path}");
        let child = place
            .command("curl")
            .unwrap()
            .args(["--silent", "--max-time", "20", "--output", "/dev/null", &url])
            .stdin(Stdio::null())
            .spawn()
            .expect("run curl");
        let known = Launched {
            pid: child.id(),
            cgroup: cgroup_of(place),
            url,
        };
        launched.insert(path, known);
        children.push(child);
        children.retain_mut(|child| child.try_wait().unwrap().is_none());
    }
    for mut child in children {
        assert!(child.wait().unwrap().success(), "curl has its answer");
    }
    drop(busy);
    let took = begin.elapsed();
    let seen = std::cell::Cell::new(0);
    observer.wait_for(|record| {
        seen.set(seen.get() + usize::from(record["record"] == "exchange"));
        seen.get() == launches()
    });
    let finished = observer.finish();

    let own_comm = fs::read_to_string("/proc/self/comm").unwrap();
    let exchanges = finished.kind("exchange");
    assert_eq!(exchanges.len(), launches(), "one exchange a curl");
    let exe = fs::canonicalize("/usr/bin/curl").unwrap();
    let mut wrong: Vec<&Value> = Vec::new();
    for exchange in exchanges {
        let path = exchange["request"]["path"].as_str().unwrap();
        let known = launched.remove(path).unwrap_or_else(|| panic!("launched once: {path}"));
        let process = &exchange["process"];
        let right = process["pid"] == known.pid
            && process["tid"] == known.pid
            && process["comm"] == "curl"
            && process["exe"] == exe.to_str().unwrap()
            && process["cmdline"][0] == "curl"
            && process["cmdline"][6] == known.url.as_str()
            && process["cgroup"] == known.cgroup.as_str()
            && process["uid"] == 0
            && process["ancestors"][0]["pid"] == std::process::id()
            && process["ancestors"][0]["comm"] == own_comm.trim();
        if !right {
            wrong.push(exchange);
        }
    }
    assert!(wrong.is_empty(), "{} wrong, such as {}", wrong.len(), wrong[0]);
    let loss = finished.kind("loss").pop().unwrap();
    for count in ["ring_buffer", "unparsed", "evicted", "unattributed"] {
        assert_eq!(loss[count], 0, "{loss}");
    }
    eprintln!(
        "{} launches in {took:?}, load: {load}; 0 wrong, 0 unattributed",
        launches()
    );
}

/// One spinning thread per core, for at most two seconds.
struct Busy {
    stop: std::sync::Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Busy {
    fn start() -> Self {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let end = Instant::now() + Duration::from_secs(2);
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..cores)
            .map(|_| {
                let stop = stop.clone();
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) && Instant::now() < end {
                        std::hint::spin_loop();
                    }
                })
            })
            .collect();
        Self { stop, threads }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
