//! Measures the time from the packet that completes an exchange to its line on standard output.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use imds_observer_lab::topology::{Lab, LabOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::load::{Kind, Load};
use crate::numbers::{Rounds, Table, verdict};
use crate::observer::{Used, stream, until};

const ROUNDS: usize = 3;
const TARGET_P50_MS: f64 = 2.0;
const TARGET_P99_MS: f64 = 10.0;
/// Target for CPU time in user space at the measured rate, in percent of a core.
const TARGET_USER_PERCENT: f64 = 5.0;

pub(crate) fn run(program: &Path, short: bool, rate: u32, seconds: u64) -> Result<()> {
    let (rounds, span) = if short {
        (1, Duration::from_secs(2))
    } else {
        (ROUNDS, Duration::from_secs(seconds.div_ceil(ROUNDS as u64)))
    };
    let lab = Lab::new(LabOptions {
        pods: Vec::new(),
        ..LabOptions::default()
    })?;
    let mut observer = Reader::start(&lab, program)?;
    let (mut p50, mut p90, mut p99, mut most) = Default::default();
    let (mut cpu, mut user, mut reached) = (Rounds::default(), Rounds::default(), Rounds::default());
    for _ in 0..rounds {
        let before = Used::of(observer.child.id())?;
        let made = Load::new(Kind::Exchanges, span).rate(u64::from(rate)).run(lab.node())?;
        ensure!(made.failed == 0, "{} exchanges failed", made.failed);
        let after = Used::of(observer.child.id())?;
        cpu.push(after.cpu_percent(&before));
        user.push(after.user_percent(&before));
        reached.push(made.done as f64 / made.seconds);
        let latencies = observer.take(made.done as usize)?;
        for (rounds, share) in [(&mut p50, 0.5), (&mut p90, 0.9), (&mut p99, 0.99), (&mut most, 1.0)] {
            let rounds: &mut Rounds = rounds;
            rounds.push(latencies.quantile(share));
        }
    }
    kill(Pid::from_raw(observer.child.id() as i32), Signal::SIGINT)?;
    ensure!(observer.child.wait()?.success(), "the observer failed");
    println!(
        "{} rounds of {} s, median round (least to most). CPU of the observer, its output taken by a pipe.\n",
        rounds,
        span.as_secs()
    );
    let mut table = Table::new(&[
        "exchanges/s",
        "p50, ms",
        "p90, ms",
        "p99, ms",
        "longest, ms",
        "CPU, % of a core",
        "of it outside the kernel",
        "targets: 2 ms, 10 ms, 5 %",
    ]);
    let met = p50.median() < TARGET_P50_MS && p99.median() < TARGET_P99_MS && user.median() < TARGET_USER_PERCENT;
    table.row(&[
        format!("{:.0}", reached.median()),
        p50.show(2),
        p90.show(2),
        p99.show(2),
        most.show(1),
        cpu.show(1),
        user.show(1),
        verdict(met),
    ]);
    table.print();
    Ok(())
}

/// `stream` with its output on a pipe, and a thread that records the arrival time of each line.
struct Reader {
    child: Child,
    lines: std::sync::mpsc::Receiver<(u64, Vec<u8>)>,
}

impl Reader {
    fn start(lab: &Lab, program: &Path) -> Result<Self> {
        let mut child = stream(lab, program, lab.cgroup_directory())?
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let mut stdout = child.stdout.take().context("take the observer's output")?;
        let (sender, lines) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let (mut bytes, mut line) = (vec![0; 1 << 20], Vec::new());
            while let Ok(length) = stdout.read(&mut bytes) {
                if length == 0 {
                    break;
                }
                let now = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |now| now.as_nanos() as u64);
                for part in bytes[..length].split_inclusive(|byte| *byte == b'\n') {
                    line.extend_from_slice(part);
                    if part.ends_with(b"\n") && sender.send((now, std::mem::take(&mut line))).is_err() {
                        return;
                    }
                }
            }
        });
        let reader = Self { child, lines };
        let first = reader
            .lines
            .recv_timeout(Duration::from_secs(30))
            .context("wait for the observer's first line")?;
        ensure!(
            first.1.starts_with(br#"{"record":"start""#),
            "the first record is no start"
        );
        Ok(reader)
    }

    /// Returns the latencies of this many exchanges, in milliseconds.
    fn take(&mut self, count: usize) -> Result<Rounds> {
        let mut latencies = Rounds::default();
        let mut seen = 0;
        until("all exchanges to be written", || {
            while let Ok((came_ns, line)) = self.lines.try_recv() {
                if !line.starts_with(br#"{"record":"exchange""#) {
                    continue;
                }
                let record: Value = serde_json::from_slice(&line).context("read a record")?;
                let time = record["time"].as_str().context("read a record's time")?;
                let sent: jiff::Timestamp = time.parse().context("read a record's time")?;
                let answered_ns = sent.as_nanosecond() as u64
                    + record["latency_ns"].as_u64().context("an exchange without answer")?;
                latencies.push(came_ns.saturating_sub(answered_ns) as f64 / 1e6);
                seen += 1;
            }
            Ok(seen >= count)
        })?;
        Ok(latencies)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Both fail if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
