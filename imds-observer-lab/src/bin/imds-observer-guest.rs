//! Init process of a kernel under test: mounts file systems, loads modules, runs each test program once per set of privileges, and powers
//! off.
//!
//! `cargo xtask test --kernel VERSION` packs it as `/init`, and reads the lines on the console that start with `@@`. It refuses to run as
//! any process but PID 1.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use imds_observer_lab::privileges;
use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        resource::{RLIM_INFINITY, Resource, setrlimit},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getpid},
};

/// List of module files, in loading order.
const MODULES: &str = "/guest/modules";
/// Directory of the test programs. They look for the lab's program one directory above, as in cargo's target directory.
const TESTS: &str = "/guest/target/deps";
/// Names of tests that a guest can't run, one a line.
const SKIP: &str = "/guest/skip";
/// List of test programs, one per line, each with the names of the tests to run (none: all tests). A line `wait SECONDS` waits until the
/// kernel has been up for that long.
const PLAN: &str = "/guest/plan";
/// `NAME=VALUE` lines for the tests.
const ENVIRONMENT: &str = "/guest/env";
/// Timeout of one test program. TCG is some ten times slower than the machine, and the table of all faults is long.
const PATIENCE: Duration = Duration::from_secs(3_000);

const MOUNTS: &[(&str, &str)] = &[
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
    ("tracefs", "/sys/kernel/tracing"),
];

/// Name of the round, value of `IMDS_OBSERVER_TEST_PRIVILEGES`, and `perf_event_paranoid`, whose default in Debian is 3.
const ROUNDS: &[(&str, &str, &str)] = &[("full", "full", "1"), ("daemonset", "daemonset", "3")];

fn main() -> ExitCode {
    if getpid().as_raw() != 1 {
        eprintln!("imds-observer-guest is the first process of a test kernel and does nothing else");
        return ExitCode::from(2);
    }
    if let Err(error) = run() {
        println!("@@ error {error:#}");
    }
    println!("@@ end");
    // Returns only if the kernel can't power off. The end of this process then causes a kernel panic, which ends the guest too.
    let _ = reboot(RebootMode::RB_POWER_OFF);
    ExitCode::FAILURE
}

fn run() -> Result<()> {
    for (kind, target) in MOUNTS {
        fs::create_dir_all(target)?;
        mount(Some(*kind), *target, Some(*kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount {kind} on {target}"))?;
    }
    println!("@@ kernel {}", fs::read_to_string("/proc/sys/kernel/osrelease")?.trim());
    for module in fs::read_to_string(MODULES)?.lines() {
        let file = fs::File::open(module).with_context(|| format!("open module {module}"))?;
        if let Err(error) = finit_module(&file, c"", ModuleInitFlags::empty()) {
            println!("@@ module {module}: {error}");
        }
    }
    // Container runtimes set the same limit. Another test covers a lower limit.
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)?;
    let plan = fs::read_to_string(PLAN)?;
    ensure!(!plan.trim().is_empty(), "no test programs in {PLAN}");
    let (skip, environment) = (fs::read_to_string(SKIP)?, fs::read_to_string(ENVIRONMENT)?);
    for line in plan.lines() {
        let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
        let [name, filters @ ..] = &words[..] else { continue };
        if *name == "wait" {
            wait_until_up_for(filters.concat().parse()?)?;
            continue;
        }
        for (round, privileges, paranoid) in ROUNDS {
            fs::write("/proc/sys/kernel/perf_event_paranoid", paranoid)?;
            println!("@@ round {round}");
            let mut command = Command::new(PathBuf::from(TESTS).join(name));
            command
                .args(["--test-threads", "1", "--nocapture", "--include-ignored"])
                .args(filters)
                .args(skip.lines().flat_map(|name| ["--skip", name]))
                .env_clear()
                .envs(environment.lines().filter_map(|line| line.split_once('=')))
                .env(privileges::VARIABLE, privileges);
            run_test(name, &mut command)?;
        }
    }
    Ok(())
}

/// Sleeps until the kernel has been up for this many seconds: detectors tolerate failures right after a boot.
fn wait_until_up_for(seconds: u64) -> Result<()> {
    let uptime = fs::read_to_string("/proc/uptime")?;
    let up: f64 = uptime.split(' ').next().unwrap_or_default().parse()?;
    std::thread::sleep(Duration::from_secs(seconds).saturating_sub(Duration::from_secs_f64(up)));
    Ok(())
}

fn run_test(name: &str, command: &mut Command) -> Result<()> {
    println!("@@ test {name}");
    let begin = Instant::now();
    let child = command
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/tmp")
        .env("CI", "true")
        .env("RUST_BACKTRACE", "0")
        .env("RUST_LOG", "imds_observer=debug")
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("start {name}"))?;
    let pid = Pid::from_raw(child.id() as i32);
    let status = loop {
        // Orphans of the tests become children of this process, so it must reap them too.
        match waitpid(None, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(who, code) if who == pid => break format!("exit {code}"),
            WaitStatus::Signaled(who, signal, _) if who == pid => break format!("signal {signal}"),
            WaitStatus::StillAlive if begin.elapsed() > PATIENCE => {
                kill(pid, Signal::SIGKILL)?;
                let status = std::process::ExitStatus::from_raw(9);
                break format!("timeout after {} s ({status})", PATIENCE.as_secs());
            }
            WaitStatus::StillAlive => std::thread::sleep(Duration::from_millis(20)),
            _ => {}
        }
    };
    println!("@@ result {name} {status} {} ms", begin.elapsed().as_millis());
    Ok(())
}
