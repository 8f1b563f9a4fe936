//! First process of a kernel under test: mounts, loads modules, runs the test programs once per set of rights, powers off.
//!
//! `cargo xtask test --kernel VERSION` packs it as `/init`. What it prints on the console is read by that verb: lines
//! that start with `@@`. It refuses to run as anything but process 1.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use imds_observer_lab::rights;
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
/// TCG runs some ten times slower than the machine does.
const PATIENCE: Duration = Duration::from_secs(600);

const MOUNTS: &[(&str, &str)] = &[
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
    ("tracefs", "/sys/kernel/tracing"),
];

/// Name, value of `IMDS_OBSERVER_TEST_RIGHTS`, `perf_event_paranoid`. Debian's own default is 3.
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
    let mut tests: Vec<PathBuf> = fs::read_dir(TESTS)?.flatten().map(|entry| entry.path()).collect();
    tests.sort();
    ensure!(!tests.is_empty(), "no test programs in {TESTS}");
    let skip = fs::read_to_string(SKIP)?;
    for (round, rights, paranoid) in ROUNDS {
        fs::write("/proc/sys/kernel/perf_event_paranoid", paranoid)?;
        println!("@@ round {round}");
        for test in &tests {
            run_test(test, rights, &skip)?;
        }
    }
    Ok(())
}

fn run_test(test: &Path, rights: &str, skip: &str) -> Result<()> {
    let name = test.file_name().unwrap_or_default().to_string_lossy().into_owned();
    println!("@@ test {name}");
    let begin = Instant::now();
    let child = Command::new(test)
        .args(["--test-threads", "1", "--nocapture", "--include-ignored"])
        .args(skip.lines().flat_map(|name| ["--skip", name]))
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/tmp")
        .env("CI", "true")
        .env("RUST_BACKTRACE", "0")
        .env("RUST_LOG", "imds_observer=debug")
        .env(rights::VARIABLE, rights)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("start {}", test.display()))?;
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
