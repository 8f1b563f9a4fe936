//! First process of a kernel under test: mounts, loads modules, runs each test program once per set of privileges, powers off.
//!
//! `cargo xtask test --kernel VERSION` packs it as `/init`. What it prints on the console is read by that verb: lines
//! that start with `@@`. It refuses to run as anything but process 1.

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

/// Module files, in the order in which they go in.
const MODULES: &str = "/guest/modules";
/// Where tests find the lab's own program: one directory up, as below cargo's target directory.
const TESTS: &str = "/guest/target/deps";
/// Names of tests that a guest can't run, one a line.
const SKIP: &str = "/guest/skip";
/// Test programs, and of each the tests to run by name (none: all), one program a line. `wait SECONDS`: not before the kernel
/// has been up for so long.
const PLAN: &str = "/guest/plan";
/// `NAME=VALUE` lines for the tests.
const ENVIRONMENT: &str = "/guest/env";
/// For one program. TCG runs some ten times slower than the machine does, and the whole table of faults is long.
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

/// Name, value of `IMDS_OBSERVER_TEST_PRIVILEGES`, `perf_event_paranoid`. Debian's own default is 3.
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
    // Comes back only if the kernel can't; then it panics, which ends the guest too.
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
    // As container runtimes set it; what becomes of a lower limit is a test of its own.
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

/// Sleeps until the kernel has been up for so many seconds: detectors forgive what happens right after a boot.
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
        // Orphans of the tests are ours to reap too.
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
