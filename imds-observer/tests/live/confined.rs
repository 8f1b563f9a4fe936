//! Privileges that the observer keeps while it observes, and whether they are sufficient.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use caps::{CapSet, Capability};
use imds_observer::attribution::host::HostRoot;
use imds_observer_lab::privileges::withhold;
use imds_observer_lab::topology::{Lab, LabOptions, Place};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Observer, UPLINK, first_line, in_netns, kernel, lab, patience, run};

const URL: &str = "http://169.254.169.254/latest/meta-data/instance-id";

fn stream(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = in_netns(lab.node(), env!("CARGO_BIN_EXE_imds-observer"));
    command
        .args(["stream", "--cgroup", lab.cgroup_directory().to_str().unwrap()])
        .args(arguments);
    command
}

fn ask(place: &Place, query: &str) {
    let url = format!("{URL}?{query}");
    assert!(
        run(place, "curl", &["-s", "-m", "5", "-o", "/dev/null", &url])
            .status
            .success()
    );
}

/// State of a thread, as reported by the kernel.
#[derive(Debug)]
pub(crate) struct Thread {
    pub(crate) name: String,
    pub(crate) permitted: Vec<String>,
    pub(crate) bounding: u64,
    no_new_privs: bool,
    /// Number of seccomp filters.
    pub(crate) filters: u32,
}

/// Names of the capabilities in a set.
pub(crate) fn names(set: u64) -> Vec<String> {
    let mut names: Vec<String> = caps::all()
        .iter()
        .filter(|capability| set & capability.bitmask() != 0)
        .map(ToString::to_string)
        .collect();
    names.sort_unstable();
    names
}

pub(crate) fn threads(pid: u32) -> Vec<Thread> {
    let mut threads = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        // A thread may end meanwhile.
        let Ok(status) = fs::read_to_string(task.path().join("status")) else {
            continue;
        };
        let field = |name: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().trim().to_owned()
        };
        let set = |name: &str| u64::from_str_radix(&field(name), 16).unwrap();
        assert_eq!(set("CapPrm"), set("CapEff"), "{status}");
        assert_eq!(set("CapInh") | set("CapAmb"), 0, "{status}");
        threads.push(Thread {
            name: field("Name"),
            permitted: names(set("CapPrm")),
            bounding: set("CapBnd"),
            no_new_privs: field("NoNewPrivs") == "1",
            filters: field("Seccomp_filters").parse().unwrap(),
        });
    }
    threads
}

fn of<'a>(threads: &'a [Thread], name: &str) -> &'a Thread {
    threads
        .iter()
        .find(|thread| thread.name == name)
        .unwrap_or_else(|| panic!("no thread {name}: {threads:#?}"))
}

/// Kernels before 5.19 require CAP_BPF for reading maps if unprivileged BPF is disabled.
pub(crate) fn for_maps(mut capabilities: Vec<&'static str>) -> Vec<&'static str> {
    if kernel() < (5, 19) {
        capabilities.insert(0, "CAP_BPF");
    }
    capabilities
}

#[test]
#[ignore = "live"]
fn only_what_is_needed_is_kept_and_the_work_goes_on() {
    let lab = lab(LabOptions::default());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("trace");
    // A small file in a separate directory, because rotation needs write access to its directory.
    let arguments = [
        "-w",
        file.to_str().unwrap(),
        "-C",
        "4k",
        "-W",
        "3",
        "--metrics",
        "127.0.0.1:9469",
    ];
    let mut child = stream(&lab, &arguments).spawn().unwrap();
    let written = |wanted: &str| {
        let mut all = String::new();
        for name in ["trace.2", "trace.1", "trace"] {
            all += &fs::read_to_string(directory.path().join(name)).unwrap_or_default();
        }
        all.contains(wanted).then_some(all)
    };
    let wait_for = |wanted: &str| {
        let deadline = Instant::now() + patience();
        loop {
            if let Some(all) = written(wanted) {
                return all;
            }
            assert!(Instant::now() < deadline, "{wanted} is not written");
            std::thread::yield_now();
        }
    };
    wait_for("\"record\":\"start\"");
    let start: Value = serde_json::from_str(fs::read_to_string(&file).unwrap().lines().next().unwrap()).unwrap();
    let confinement = &start["confinement"];
    assert_eq!(confinement["no_new_privs"], true, "{confinement}");
    assert_eq!(confinement["seccomp"], true, "{confinement}");
    let limits = fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(
        core.split_ascii_whitespace().filter(|word| *word == "0").count(),
        2,
        "{core}"
    );
    println!("kernel {:?}: {confinement}", kernel());
    let mut kept = for_maps(vec!["CAP_NET_ADMIN"]);
    kept.push("CAP_SYS_PTRACE");
    assert_eq!(confinement["capabilities"], serde_json::json!(kept));

    // The attribution thread drops the rest after the search for older sockets.
    let deadline = Instant::now() + patience();
    let threads = loop {
        let threads = threads(child.id());
        if of(&threads, "attribution").permitted == ["CAP_SYS_PTRACE"] {
            break threads;
        }
        assert!(Instant::now() < deadline, "{threads:#?}");
        std::thread::yield_now();
    };
    for thread in &threads {
        assert!(thread.no_new_privs && thread.filters > 0, "{thread:?}");
        match thread.name.as_str() {
            "attribution" => {}
            "clsact" => assert_eq!(thread.permitted, ["CAP_NET_ADMIN"]),
            _ => assert_eq!(thread.permitted, for_maps(vec!["CAP_NET_ADMIN"]), "{thread:?}"),
        }
        let execve = Capability::CAP_SYS_ADMIN.bitmask() | Capability::CAP_DAC_OVERRIDE.bitmask();
        assert_eq!(thread.bounding & execve, 0, "{thread:?}");
    }
    for name in ["writer", "metrics"] {
        of(&threads, name);
    }

    // Repeat often, and include a process of another user.
    for number in 0..30 {
        ask(lab.pod(0), &number.to_string());
    }
    let code = format!(
        "import os, urllib.request\nos.setgid(65534); os.setuid(65534)\nurllib.request.urlopen('{URL}?other-user').read()"
    );
    assert!(run(lab.node(), "/usr/bin/python3", &["-c", &code]).status.success());
    let all = wait_for("?other-user");
    let line = all.lines().find(|line| line.contains("?other-user")).unwrap();
    let exchange: Value = serde_json::from_str(line).unwrap();
    assert_eq!(exchange["process"]["uid"], 65_534);
    assert!(
        exchange["process"]["exe"].as_str().unwrap().contains("python"),
        "{exchange}"
    );
    assert!(directory.path().join("trace.2").exists() && !directory.path().join("trace.3").exists());
    let metrics = run(lab.node(), "curl", &["-s", "-m", "5", "http://127.0.0.1:9469/metrics"]);
    let metrics = String::from_utf8(metrics.stdout).unwrap();
    for series in [
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_cpu_seconds_total",
    ] {
        assert!(metrics.contains(series), "{metrics}");
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    // All counters must be readable until the end, and no failure may be logged.
    let all = written("").unwrap();
    let loss = all.lines().rfind(|line| line.contains("\"record\":\"loss\"")).unwrap();
    let loss: Value = serde_json::from_str(loss).unwrap();
    assert_eq!(loss["unattributed"], 0, "{loss}");
    let summary = all
        .lines()
        .rfind(|line| line.contains("\"record\":\"summary\""))
        .unwrap();
    let summary: Value = serde_json::from_str(summary).unwrap();
    assert!(
        summary["interfaces"][0]["egress_packets"].as_u64() > Some(100),
        "{summary}"
    );
}

#[test]
#[ignore = "live"]
fn what_is_named_once_and_for_all_takes_even_less() {
    let lab = lab(LabOptions::default());
    let mut observer = Observer::start(&mut stream(&lab, &["-i", UPLINK]));
    let start = observer.wait_for(|record| record["record"] == "start");
    let threads = threads(observer.pid());
    let main = threads
        .iter()
        .find(|thread| thread.name.starts_with("imds-observer"))
        .unwrap();
    assert_eq!(main.permitted, for_maps(Vec::new()), "{start}");
    ask(lab.pod(0), "still");
    let exchange = observer.wait_for(|record| record["record"] == "exchange");
    assert_eq!(
        (&exchange["process"]["comm"], &exchange["response"]["ttl"]),
        (&"curl".into(), &255.into())
    );
    observer.finish();
}

#[test]
#[ignore = "live"]
fn nothing_is_given_up_if_that_is_asked_for() {
    let lab = lab(LabOptions::default());
    let mut observer = Observer::start(&mut stream(&lab, &["-i", UPLINK, "--unconfined"]));
    let start = observer.wait_for(|record| record["record"] == "start");
    assert_eq!(start["confinement"], Value::Null);
    let own = threads(std::process::id());
    let threads = threads(observer.pid());
    let main = threads
        .iter()
        .find(|thread| thread.name.starts_with("imds-observer"))
        .unwrap();
    assert_eq!(main.permitted, own[0].permitted);
    assert!(!main.no_new_privs && main.filters == own[0].filters, "{main:?}");
    observer.finish();
}

#[test]
#[ignore = "live"]
fn a_directory_of_somebody_else_is_still_written_to() {
    let lab = lab(LabOptions::default());
    let directory = tempfile::tempdir().unwrap();
    nix::unistd::chown(directory.path(), Some(65_534.into()), Some(65_534.into())).unwrap();
    fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let file = directory.path().join("trace");
    let arguments = ["-i", UPLINK, "-w", file.to_str().unwrap(), "-C", "3k", "-W", "2"];
    let mut child = stream(&lab, &arguments).spawn().unwrap();
    let deadline = Instant::now() + patience();
    while !fs::read_to_string(&file).is_ok_and(|text| text.contains("CAP_DAC_OVERRIDE")) {
        assert!(Instant::now() < deadline, "{:?}", fs::read_to_string(&file));
        std::thread::yield_now();
    }
    while !directory.path().join("trace.1").exists() {
        assert!(Instant::now() < deadline, "it is not rotated");
        ask(lab.pod(0), "more");
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// A connected client that sends nothing.
struct Connected(Child);

impl Connected {
    fn start(place: &Place, user: u32) -> Self {
        let (user, code) = (
            user.to_string(),
            "import socket, sys\n\
             s = socket.create_connection(('169.254.169.254', 80), 60)\n\
             print('connected', flush=True)\n\
             sys.stdin.readline()\n",
        );
        let mut child = place
            .command("setpriv")
            .unwrap()
            .args([
                "--reuid",
                &user,
                "--regid",
                &user,
                "--clear-groups",
                "/usr/bin/python3",
                "-c",
                code,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run python3");
        let line = first_line(&mut child);
        assert_eq!(line, "connected\n");
        Self(child)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The rows in docs/privileges.md about connections that are older than the observer.
#[test]
#[ignore = "live"]
fn each_right_to_look_at_processes_is_for_what_the_table_says() {
    let lab = lab(LabOptions::default());
    let old = [
        Connected::start(lab.node(), 0),
        Connected::start(lab.node(), 65_534),
        Connected::start(lab.pod(0), 0),
    ];
    for (withheld, expected) in [
        (&[][..], [true, true, true]),
        // CAP_DAC_OVERRIDE includes the permission to read.
        (
            &[Capability::CAP_DAC_READ_SEARCH, Capability::CAP_DAC_OVERRIDE],
            [true, false, true],
        ),
        (&[Capability::CAP_SYS_ADMIN], [true, true, false]),
        (&[Capability::CAP_SYS_PTRACE], [false, false, false]),
        (
            &[Capability::CAP_NET_ADMIN, Capability::CAP_BPF, Capability::CAP_PERFMON],
            [true, true, true],
        ),
    ] {
        let found = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let netns = fs::File::open(lab.node().netns().path()).unwrap();
                nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                let mut keep = caps::read(None, CapSet::Permitted).unwrap();
                keep.retain(|capability| !withheld.contains(capability));
                caps::set(None, CapSet::Effective, &keep).unwrap();
                caps::set(None, CapSet::Permitted, &keep).unwrap();
                let endpoints = ["169.254.169.254".parse().unwrap()];
                imds_observer::attribution::sockets::find(&HostRoot::new(Path::new("/")), &endpoints)
            });
            thread.join().unwrap()
        });
        let reported = [0, 1, 2].map(|number: usize| found.iter().any(|held| held.pid == old[number].0.id()));
        println!("without {withheld:?}: of root, of another user, in a pod: {reported:?}");
        assert_eq!(reported, expected, "without {withheld:?}");
    }
}

/// Whether `/proc/kallsyms` shows addresses to all users.
fn symbols_are_public() -> bool {
    let setting = |name: &str| -> i32 {
        let text = fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap();
        text.trim().parse().unwrap()
    };
    setting("kptr_restrict") == 0 && setting("perf_event_paranoid") <= 1
}

/// The row of that table about `CAP_SYSLOG`, which is needed for the name of the function that dropped a packet.
#[test]
#[ignore = "live"]
fn the_function_that_drops_takes_syslog_at_the_start_alone() {
    let lab = lab(LabOptions::default());
    lab.server().update(|behaviour| behaviour.hop_limit = 1);
    for withheld in [&[][..], &["CAP_SYSLOG"]] {
        let mut command = stream(&lab, &["-i", UPLINK]);
        withhold(&mut command, withheld).unwrap();
        let mut observer = Observer::start(&mut command);
        observer.wait_for(|record| record["record"] == "start");
        let token = [
            "-s",
            "-m",
            "0.5",
            "-X",
            "PUT",
            "-H",
            "X-aws-ec2-metadata-token-ttl-seconds: 60",
        ];
        run(
            lab.pod(0),
            "curl",
            &[&token[..], &["http://169.254.169.254/latest/api/token"]].concat(),
        );
        let drop = observer.wait_for(|record| record["record"] == "drop");
        assert_eq!(
            drop["location"].is_null(),
            !withheld.is_empty() && !symbols_are_public(),
            "without {withheld:?}: {drop}"
        );
        observer.finish();
    }
}

#[test]
#[ignore = "live"]
fn a_kernel_that_has_landlock_confines_files() {
    let lab = lab(LabOptions::default());
    let mut observer = Observer::start(&mut stream(&lab, &["-i", UPLINK]));
    let start = observer.wait_for(|record| record["record"] == "start");
    observer.finish();
    // If securityfs isn't mounted, only the result of creating a ruleset shows whether Landlock is enabled.
    let listed = fs::read_to_string("/sys/kernel/security/lsm").is_ok_and(|lsm| lsm.contains("landlock"));
    println!("{} {listed}", start["confinement"]);
    if listed {
        assert!(start["confinement"]["landlock"].is_string(), "{start}");
    }
    assert!(Path::new("/proc/self").exists());
}
