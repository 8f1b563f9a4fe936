//! Measures the observer's resources with almost no traffic, and the time to its first record.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use imds_observer_lab::topology::{Lab, LabOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::load::{Kind, Load};
use crate::numbers::{Rounds, Table, verdict};
use crate::observer::{Observer, Used, stream};

const STARTS: usize = 9;
const TARGET_CPU_PERCENT: f64 = 0.2;
const TARGET_RESIDENT_MIB: f64 = 20.0;
const TARGET_START_MS: f64 = 300.0;

pub(crate) fn run(program: &Path, short: bool, seconds: u64) -> Result<()> {
    let (starts, seconds) = if short { (2, 2) } else { (STARTS, seconds) };
    let lab = Lab::new(LabOptions {
        pods: Vec::new(),
        ..LabOptions::default()
    })?;
    let mut first = Rounds::default();
    for _ in 0..starts {
        first.push(first_record(&lab, program)?.as_secs_f64() * 1e3);
    }

    let observer = Observer::start(&lab, program, lab.cgroup_directory(), &[])?;
    let span = Duration::from_secs(seconds);
    let load = Load::new(Kind::Exchanges, span).rate(1).start(lab.node())?;
    // Work left over from start-up doesn't count as idle.
    std::thread::sleep(Duration::from_secs(1));
    let before = Used::of(observer.pid())?;
    let made = load.wait()?;
    let after = Used::of(observer.pid())?;
    let written = observer.finish()?;
    ensure!(
        written.exchanges.len() as u64 == made.done,
        "{} of {} exchanges were seen",
        written.exchanges.len(),
        made.done
    );
    let bytes = fs::metadata(program).context("look at the program's size")?.len();
    let cpu = after.cpu_percent(&before);
    let resident = after.resident_kib as f64 / 1024.0;
    println!("One exchange a second for {seconds} s; {starts} starts, median (least to most).\n");
    let mut table = Table::new(&["what", "measured", "target"]);
    let mut row = |what: &str, measured: String, target: String| table.row(&[what.to_owned(), measured, target]);
    row(
        "CPU",
        format!("{cpu:.3} % of a core"),
        format!("0.2 %: {}", verdict(cpu < TARGET_CPU_PERCENT)),
    );
    row(
        "resident memory",
        format!(
            "{resident:.1} MiB (peak while starting {:.1} MiB)",
            after.peak_kib as f64 / 1024.0
        ),
        format!("20 MiB: {}", verdict(resident < TARGET_RESIDENT_MIB)),
    );
    row(
        "wake-ups, all threads",
        format!("{:.1}/s", after.wakeups_per_s(&before)),
        "-".to_owned(),
    );
    row(
        "exec to first record",
        format!("{} ms", first.show(0)),
        format!("300 ms: {}", verdict(first.median() < TARGET_START_MS)),
    );
    row(
        "the program's file",
        format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        "-".to_owned(),
    );
    table.print();
    Ok(())
}

fn first_record(lab: &Lab, program: &Path) -> Result<Duration> {
    let mut command = stream(lab, program, lab.cgroup_directory())?;
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn().context("start the observer")?;
    let mut line = String::new();
    let read = BufReader::new(child.stdout.take().context("take the observer's output")?).read_line(&mut line);
    let took = begun.elapsed();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT)?;
    let status = child.wait()?;
    read.context("read the observer's first line")?;
    ensure!(
        status.success() && line.starts_with(r#"{"record":"start""#),
        "no start record: {status} {line}"
    );
    Ok(took)
}
