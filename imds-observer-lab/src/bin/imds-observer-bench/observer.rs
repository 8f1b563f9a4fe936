//! The measured observer, and the kernel's counters of its process.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use imds_observer_lab::topology::Lab;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};
use serde_json::Value;

/// The node's first interface to the service.
pub(crate) const UPLINK: &str = "eth0";
const PATIENCE: Duration = Duration::from_secs(30);

/// Polls until the condition holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        ensure!(Instant::now() < deadline, "timed out waiting for {what}");
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// `stream` on the lab's node, but outside the lab's cgroup, so that it doesn't observe itself.
pub(crate) fn stream(lab: &Lab, program: &Path, cgroup: &Path) -> Result<Command> {
    let mut command = lab.node().command_beside(program)?;
    command
        .args(["stream", "-i", UPLINK, "--host", "node-1", "--cgroup"])
        .arg(cgroup)
        .stdin(Stdio::null());
    Ok(command)
}

/// A running `stream -w FILE`. The file is deleted on drop.
pub(crate) struct Observer {
    child: Child,
    file: PathBuf,
}

impl Observer {
    /// Starts the observer, and returns when it observes.
    pub(crate) fn start(lab: &Lab, program: &Path, cgroup: &Path, more: &[&str]) -> Result<Self> {
        // A file in memory, so that the speed of the disk doesn't matter.
        let file = Path::new("/dev/shm").join(format!("imdslab-{}-bench.ndjson", lab.id()));
        let _ = fs::remove_file(&file);
        let child = stream(lab, program, cgroup)?
            .arg("-w")
            .arg(&file)
            .args(more)
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let mut observer = Self { child, file };
        until("the observer's first record", || {
            if let Some(status) = observer.child.try_wait()? {
                bail!("the observer ended with {status}");
            }
            Ok(fs::metadata(&observer.file).is_ok_and(|file| file.size() > 0))
        })?;
        Ok(observer)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resets the kernel's peak memory counter.
    pub(crate) fn forget_peak(&self) -> Result<()> {
        let path = format!("/proc/{}/clear_refs", self.pid());
        fs::write(&path, "5").with_context(|| format!("write to {path}"))
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), signal).with_context(|| format!("send {signal} to the observer"))
    }

    /// Stops the observer with SIGINT and returns its records.
    pub(crate) fn finish(mut self) -> Result<Written> {
        self.signal(Signal::SIGINT)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the observer ended with {status}");
        Written::read(&self.file)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        // Both fail if the observer has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.file);
    }
}

/// The parts of the observer's records that the benches need.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// For each exchange, the caller's PID (0: unknown) and whether it was answered.
    pub(crate) exchanges: Vec<(u64, bool)>,
    pub(crate) loss: Value,
    /// Number of packets at the uplink, in both directions.
    pub(crate) packets: u64,
}

impl Written {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let mut written = Self::default();
        for line in text.lines() {
            // The record kind is the first member.
            if line.starts_with(r#"{"record":"exchange""#) {
                let record: Value = serde_json::from_str(line).context("read a record")?;
                let pid = record["process"]["pid"].as_u64().unwrap_or(0);
                written.exchanges.push((pid, record["outcome"] == "answered"));
            } else if line.starts_with(r#"{"record":"loss""#) {
                written.loss = serde_json::from_str(line).context("read a record")?;
            } else if line.starts_with(r#"{"record":"summary""#) {
                let record: Value = serde_json::from_str(line).context("read a record")?;
                if record["total"] == true {
                    written.packets = record["interfaces"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(|interface| {
                            Some(interface["egress_packets"].as_u64()? + interface["ingress_packets"].as_u64()?)
                        })
                        .sum();
                }
            }
        }
        Ok(written)
    }

    pub(crate) fn lost(&self, what: &str) -> u64 {
        self.loss[what].as_u64().unwrap_or(0)
    }
}

/// Resources that a process has used so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    at: Instant,
    cpu_ns: u64,
    /// CPU time outside the kernel, with the resolution of the clock tick.
    user_ns: u64,
    /// Number of times that a thread of the process was scheduled on a core.
    switches: u64,
    pub(crate) resident_kib: u64,
    pub(crate) peak_kib: u64,
}

impl Used {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let (mut cpu_ns, mut switches) = (0, 0);
        let tasks = format!("/proc/{pid}/task");
        for task in fs::read_dir(&tasks).with_context(|| format!("read {tasks}"))? {
            // Reading fails if the thread has ended.
            let Ok(times) = fs::read_to_string(task?.path().join("schedstat")) else {
                continue;
            };
            let mut numbers = times.split_whitespace().map(|number| number.parse().unwrap_or(0_u64));
            cpu_ns += numbers.next().unwrap_or(0);
            switches += numbers.nth(1).unwrap_or(0);
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read a process's status")?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
                .unwrap_or(0)
        };
        Ok(Self {
            at: Instant::now(),
            cpu_ns,
            user_ns: user_ns(pid)?,
            switches,
            resident_kib: field("VmRSS:"),
            peak_kib: field("VmHWM:"),
        })
    }

    /// Percent of a core that the process used since `before`.
    pub(crate) fn cpu_percent(&self, before: &Self) -> f64 {
        self.cpu_us(before) / self.seconds(before) / 1e4
    }

    /// Percent of a core that the process used in user space since `before`.
    pub(crate) fn user_percent(&self, before: &Self) -> f64 {
        self.user_ns.saturating_sub(before.user_ns) as f64 / self.seconds(before) / 1e7
    }

    pub(crate) fn cpu_us(&self, before: &Self) -> f64 {
        self.cpu_ns.saturating_sub(before.cpu_ns) as f64 / 1e3
    }

    pub(crate) fn seconds(&self, before: &Self) -> f64 {
        self.at.duration_since(before.at).as_secs_f64()
    }

    pub(crate) fn wakeups_per_s(&self, before: &Self) -> f64 {
        self.switches.saturating_sub(before.switches) as f64 / self.seconds(before)
    }
}

/// CPU time of a process in user space. It is the 14th field of `stat`, the 12th after the name, which may contain spaces and parentheses.
fn user_ns(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = behind_name
        .split_whitespace()
        .nth(11)
        .and_then(|ticks| ticks.parse().ok());
    let ticks: u64 = ticks.with_context(|| format!("find the user time in {path}"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("ask for the clock's ticks")?;
    Ok(ticks * 1_000_000_000 / per_second as u64)
}
