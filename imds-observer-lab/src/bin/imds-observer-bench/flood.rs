//! Measures under overload whether the observer loses events, whether it counts the losses, and how its cost grows.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use imds_observer_lab::topology::{Lab, LabOptions};
use nix::sys::signal::Signal;

use crate::load::{Kind, Load, Made};
use crate::numbers::{Table, verdict};
use crate::observer::{Observer, Used, Written};

/// Packets per second of the flood: twenty times the number that an interface may send to link-local services.
const FLOOD_PACKETS: u64 = 20 * 1024;
/// Number of events per exchange on a persistent connection: request and response, each at the socket and at the uplink.
const EVENTS_KEPT: u64 = 4;
/// Tolerated deviation from that number: connections also open and close, and exchanges are incomplete at the edges of a gap.
const EDGES: u64 = 64;

struct Bench<'a> {
    lab: Lab,
    program: &'a Path,
}

/// One load and the records that the observer wrote during it.
struct Step {
    made: Made,
    written: Written,
    cpu_percent: f64,
    cpu_us: f64,
    peak_mib: f64,
    load_pid: u64,
}

impl Step {
    fn missing(&self) -> u64 {
        self.made.done.saturating_sub(self.written.exchanges.len() as u64)
    }

    /// A slow machine may lose events, but the observer must report the loss. Without a loss, all exchanges must be recorded.
    fn ensure_reported(&self, name: &str) -> Result<()> {
        let (missing, foreign) = (self.missing(), self.foreign());
        let lost = self.written.lost("ring_buffer");
        ensure!(
            missing <= lost && (foreign == 0 || lost > 0),
            "{name}: of {} exchanges {missing} are missing, {foreign} are not of the load, and the loss record counts {lost} events",
            self.made.done,
        );
        Ok(())
    }

    /// Number of exchanges that were attributed to processes outside the load.
    fn foreign(&self) -> usize {
        let own: HashSet<u64> = self.made.pids.iter().copied().chain([self.load_pid]).collect();
        self.written
            .exchanges
            .iter()
            .filter(|(pid, _)| !own.contains(pid))
            .count()
    }
}

pub(crate) fn run(program: &Path, short: bool, seconds: u64) -> Result<()> {
    let seconds = if short { 2 } else { seconds };
    let part = |whole: u64| if short { whole / 20 } else { whole };
    let bench = Bench {
        lab: Lab::new(LabOptions {
            pods: Vec::new(),
            ..LabOptions::default()
        })?,
        program,
    };
    let probe = bench.step(&Load::new(Kind::Exchanges, Duration::from_secs(1)).rate(200), &[])?;
    let packets = probe.written.packets as f64 / probe.made.done as f64;
    let rate = (FLOOD_PACKETS as f64 / packets).ceil() as u64;

    println!("An exchange on a connection of its own is {packets:.1} packets at the uplink, both ways.\n");
    let mut table = Table::new(&[
        "load",
        "exchanges",
        "per second",
        "seen",
        "attributed wrongly or not",
        "events lost",
        "CPU, % of a core",
        "us each",
        "memory at most, MiB",
        "nothing lost, all attributed",
    ]);
    let steps = [
        (
            format!("20 x the quota for {seconds} s"),
            Load::new(Kind::Exchanges, Duration::from_secs(seconds)).rate(rate),
        ),
        (
            "a burst".to_owned(),
            Load::new(Kind::Exchanges, Duration::ZERO)
                .count(part(100_000))
                .width(64),
        ),
        (
            format!("{} connections at once", part(10_000)),
            Load::new(Kind::Crowd, Duration::ZERO).count(part(10_000)),
        ),
        (
            "1,000 processes a second that live 5 ms".to_owned(),
            Load::new(Kind::Processes, Duration::from_secs(if short { 1 } else { 10 })).rate(1000),
        ),
    ];
    for (name, load) in &steps {
        let step = bench.step(load, &[])?;
        row(&mut table, name, &step);
        if short {
            step.ensure_reported(name)?;
        }
    }
    bench.lab.server().update(|behaviour| behaviour.keep_alive = true);
    for width in [1, 16, 256] {
        let load = Load::new(Kind::Kept, Duration::from_secs(if short { 1 } else { 5 })).width(width);
        let step = bench.step(&load, &[])?;
        row(&mut table, &format!("as many as go, {width} kept connections"), &step);
    }
    table.print();
    stalled(&bench, part(40_000))?;
    bench.lab.server().update(|behaviour| behaviour.keep_alive = false);
    growth(&bench, short)
}

fn row(table: &mut Table, name: &str, step: &Step) {
    let (seen, foreign, lost) = (
        step.written.exchanges.len(),
        step.foreign(),
        step.written.lost("ring_buffer"),
    );
    let whole = step.missing() == 0 && foreign == 0 && lost == 0 && step.made.failed == 0;
    table.row(&[
        name.to_owned(),
        step.made.done.to_string(),
        format!("{:.0}", step.made.done as f64 / step.made.seconds),
        seen.to_string(),
        foreign.to_string(),
        lost.to_string(),
        format!("{:.1}", step.cpu_percent),
        format!("{:.1}", step.cpu_us / step.made.done.max(1) as f64),
        format!("{:.1}", step.peak_mib),
        verdict(whole),
    ]);
}

/// Checks that the `loss` record counts the events that the ring buffer can't hold while its reader is stopped.
fn stalled(bench: &Bench<'_>, count: u64) -> Result<()> {
    let mut table = Table::new(&[
        "reader stopped while",
        "seen",
        "events missing, from that",
        "events lost, by the `loss` record",
        "equal",
    ]);
    for count in [count / 20, count / 2, count] {
        let observer = Observer::start(&bench.lab, bench.program, bench.lab.cgroup_directory(), &[])?;
        observer.signal(Signal::SIGSTOP)?;
        let made = Load::new(Kind::Kept, Duration::ZERO)
            .count(count)
            .run(bench.lab.node())?;
        observer.signal(Signal::SIGCONT)?;
        let written = observer.finish()?;
        let missing = EVENTS_KEPT * made.done.saturating_sub(written.exchanges.len() as u64);
        let lost = written.lost("ring_buffer");
        let equal = missing.abs_diff(lost) <= EDGES;
        ensure!(equal, "{missing} events are missing, the loss record has {lost}");
        table.row(&[
            format!("{} exchanges on one connection", made.done),
            written.exchanges.len().to_string(),
            missing.to_string(),
            lost.to_string(),
            format!("within {}", missing.abs_diff(lost)),
        ]);
    }
    table.print();
    Ok(())
}

fn growth(bench: &Bench<'_>, short: bool) -> Result<()> {
    let span = Duration::from_secs(if short { 1 } else { 6 });
    let mut table = Table::new(&[
        "growth with",
        "number",
        "exchanges",
        "us of CPU each",
        "memory at most, MiB",
    ]);
    let mut report = |what: &str, number: &str, step: &Step| {
        let exchanges = step.written.exchanges.len();
        table.row(&[
            what.to_owned(),
            number.to_owned(),
            exchanges.to_string(),
            format!("{:.1}", step.cpu_us / exchanges.max(1) as f64),
            format!("{:.1}", step.peak_mib),
        ]);
    };
    let home = bench.lab.node().cgroup().directory();
    for width in if short { vec![1, 10] } else { vec![1, 10, 100, 1000] } {
        let load = Load::new(Kind::Workers, span).rate(500).width(width).cgroup(home);
        report(
            "workloads, a process and a cgroup each, 500 exchanges/s in all",
            &width.to_string(),
            &bench.step(&load, &[])?,
        );
    }
    for rate in if short { vec![100] } else { vec![10, 100, 500, 1000] } {
        let load = Load::new(Kind::Processes, span).rate(rate);
        report(
            "new processes a second, an exchange each",
            &rate.to_string(),
            &bench.step(&load, &[])?,
        );
    }
    for size in if short { vec![100] } else { vec![100, 1000, 10_000] } {
        let load = Load::new(Kind::Crowd, Duration::ZERO).count(size);
        report("connections at once", &size.to_string(), &bench.step(&load, &[])?);
    }
    let load = Load::new(Kind::Exchanges, span).rate(if short { 100 } else { 1000 });
    let none = Configured::write(&format!("[detectors]\ndisabled = {:?}\n", detectors(bench.program)?))?;
    report("detectors", "all", &bench.step(&load, &[])?);
    report("detectors", "none", &bench.step(&load, &["--config", none.path()?])?);
    table.print();
    Ok(())
}

/// Codes of all detectors.
fn detectors(program: &Path) -> Result<Vec<String>> {
    let output = std::process::Command::new(program)
        .args(["detectors", "list"])
        .output()
        .context("list the detectors")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let codes: Vec<String> = text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|code| code.contains('-'))
        .map(str::to_owned)
        .collect();
    ensure!(!codes.is_empty(), "no detector is listed: {text}");
    Ok(codes)
}

/// A configuration file that is deleted on drop.
struct Configured(PathBuf);

impl Configured {
    fn write(text: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("imds-observer-bench-{}.toml", std::process::id()));
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(Self(path))
    }

    fn path(&self) -> Result<&str> {
        self.0.to_str().context("name a configuration file")
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Bench<'_> {
    fn step(&self, load: &Load, more: &[&str]) -> Result<Step> {
        let observer = Observer::start(&self.lab, self.program, self.lab.cgroup_directory(), more)?;
        // Memory that was used only during start-up doesn't belong to this load.
        observer.forget_peak()?;
        let before = Used::of(observer.pid())?;
        let running = load.start(self.lab.node())?;
        let load_pid = u64::from(running.pid());
        let mut made = running.wait()?;
        let after = Used::of(observer.pid())?;
        let written = observer.finish()?;
        if made.done == 0 && made.failed == 0 {
            // These processes don't report their requests: the observed ones are the reference.
            made.done = written.exchanges.len() as u64;
        }
        Ok(Step {
            cpu_percent: after.cpu_percent(&before),
            cpu_us: after.cpu_us(&before),
            peak_mib: after.peak_kib as f64 / 1024.0,
            made,
            written,
            load_pid,
        })
    }
}
