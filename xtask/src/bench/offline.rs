//! `bench offline`: `analyze` against tshark on one pcap, against jq and DuckDB on one NDJSON file.
//!
//! Wall time counts, and is worth what the machine was worth at that moment: CPU time stands beside it, and the load.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args as ClapArgs;

use super::trace::{self, Callers};
use crate::build;
use crate::run::{python, root};
use crate::setup::{self, Group};

/// The problem report's fields, as tshark gives them.
const TSHARK_FIELDS: [&str; 6] = [
    "frame.time_epoch",
    "ip.src",
    "ip.ttl",
    "http.request.method",
    "http.request.uri",
    "http.response.code",
];
const JQ: &str = r#"reduce (inputs | select(.record == "exchange")) as $e ({}; .[($e.process.comm) + " " + ($e.request.imds_version // "?")] += 1)"#;
const DUCKDB: &str = r#"
import duckdb, sys
print(duckdb.sql("SELECT json->>'$.process.comm' AS comm, json->>'$.request.imds_version' AS version, count(*) FROM read_ndjson_objects('%s') WHERE json->>'$.record' = 'exchange' GROUP BY ALL" % sys.argv[1]).fetchall())
"#;

/// `analyze` against tshark, jq and DuckDB, in one run on the same files.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Size of the NDJSON file
    #[arg(long, default_value_t = 100)]
    megabytes: u64,
    /// Size of another one, which only `analyze` reads: its memory must not have grown. Deleted afterwards; 0: none
    #[arg(long, default_value_t = 2048)]
    large_megabytes: u64,
    /// Connections in the pcap, of ten packets each
    #[arg(long, default_value_t = 20_000)]
    connections: u64,
    /// Times that each program runs; the fastest counts, since what else the machine does only ever adds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Measure this program instead of building one
    #[arg(long)]
    program: Option<String>,
}

#[derive(Clone, Copy)]
struct Measured {
    wall_s: f64,
    cpu_s: f64,
    peak_kib: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    setup::ensure(&[Group::Bench])?;
    let program = if let Some(program) = &args.program {
        program.clone()
    } else {
        build::release()?;
        let built = root().join("target/release/imds-observer");
        built.to_string_lossy().into_owned()
    };
    let directory = root().join("target/bench");
    fs::create_dir_all(&directory).context("make target/bench")?;
    let (ndjson, pcap) = (directory.join("trace.ndjson"), directory.join("trace.pcap"));
    let healthy = directory.join("healthy.ndjson");
    let exchanges = write(&ndjson, |out| trace::ndjson(out, args.megabytes << 20, Callers::Bad))?;
    let healthy_exchanges = write(&healthy, |out| {
        trace::ndjson(out, args.megabytes << 20, Callers::Healthy)
    })?;
    write(&pcap, |out| trace::pcap(out, args.connections))?;
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{processors} processors, load before: {}", load.trim());
    let analyze = |file: &Path| command(&program, &["analyze"], file);

    println!(
        "\n{} MB of NDJSON, {healthy_exchanges} exchanges of healthy callers",
        args.megabytes
    );
    let own = show("analyze", healthy_exchanges, args.runs, || analyze(&healthy))?;
    let jq = show("jq", healthy_exchanges, args.runs, || {
        command("jq", &["-n", JQ], &healthy)
    })?;
    compare("jq", &own, &jq);

    println!(
        "\n{} MB of NDJSON, {exchanges} exchanges of bad callers, all with findings",
        args.megabytes
    );
    let own = show("analyze", exchanges, args.runs, || analyze(&ndjson))?;
    let jq = show("jq", exchanges, args.runs, || command("jq", &["-n", JQ], &ndjson))?;
    compare("jq", &own, &jq);
    let python = python();
    let python = python.to_string_lossy();
    let duckdb = show("duckdb", exchanges, args.runs, || {
        command(&python, &["-c", DUCKDB], &ndjson)
    })?;
    compare("duckdb", &own, &duckdb);
    // As fast as anything can be that looks at each byte once, on one processor.
    let lines = show("wc -l", exchanges, args.runs, || command("wc", &["-l"], &ndjson))?;
    compare("wc -l", &own, &lines);

    println!("\npcap, {} connections of ten packets", args.connections);
    let own = show("analyze", args.connections, args.runs, || analyze(&pcap))?;
    let tshark = show("tshark", args.connections, args.runs, || {
        let fields = TSHARK_FIELDS.iter().flat_map(|field| ["-e", field]);
        let arguments: Vec<&str> = ["-T", "fields"].into_iter().chain(fields).chain(["-r"]).collect();
        command("tshark", &arguments, &pcap)
    })?;
    compare("tshark", &own, &tshark);

    if args.large_megabytes > 0 {
        let large = directory.join("large.ndjson");
        let exchanges = write(&large, |out| {
            trace::ndjson(out, args.large_megabytes << 20, Callers::Bad)
        })?;
        println!(
            "\n{} MB of NDJSON, {exchanges} exchanges of bad callers",
            args.large_megabytes
        );
        let shown = show("analyze", exchanges, args.runs, || analyze(&large));
        fs::remove_file(&large).context("delete the large trace")?;
        shown?;
    }
    Ok(())
}

fn write<T>(path: &Path, trace: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>) -> anyhow::Result<T> {
    let mut out = BufWriter::new(File::create(path).with_context(|| format!("create {}", path.display()))?);
    let made = trace(&mut out).and_then(|made| out.flush().map(|()| made));
    made.with_context(|| format!("write {}", path.display()))
}

fn command(program: &str, arguments: &[&str], file: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).arg(file);
    command
}

/// Measures and prints a line.
fn show(name: &str, exchanges: u64, runs: u32, command: impl Fn() -> Command) -> anyhow::Result<Measured> {
    let mut best: Option<Measured> = None;
    for _ in 0..runs {
        let measured = measure(&command()).with_context(|| format!("measure {name}"))?;
        let before = best.unwrap_or(measured);
        best = Some(Measured {
            wall_s: before.wall_s.min(measured.wall_s),
            cpu_s: before.cpu_s.min(measured.cpu_s),
            peak_kib: before.peak_kib.max(measured.peak_kib),
        });
    }
    let measured = best.context("no run")?;
    println!(
        "  {name:8} {:8.2} s wall {:8.2} s CPU {:10.0} exchanges/s {:10.0} per CPU second {:8} KiB at most",
        measured.wall_s,
        measured.cpu_s,
        exchanges as f64 / measured.wall_s,
        exchanges as f64 / measured.cpu_s,
        measured.peak_kib
    );
    Ok(measured)
}

fn compare(name: &str, own: &Measured, other: &Measured) {
    println!(
        "  {:.1} times as fast as {name} by the clock, {:.1} times by CPU time",
        other.wall_s / own.wall_s,
        other.cpu_s / own.cpu_s
    );
}

/// Runs a command to its end and says what it took; a child's own peak of memory comes from GNU time.
fn measure(command: &Command) -> anyhow::Result<Measured> {
    let time = Path::new("/usr/bin/time");
    if !time.exists() {
        bail!("no /usr/bin/time (Debian: time)");
    }
    let mut timed = Command::new(time);
    timed
        .args(["-f", "%U %S %M", "-o", "/dev/stderr"])
        .arg(command.get_program())
        .args(command.get_args());
    let begin = Instant::now();
    let output = timed.stdout(Stdio::null()).stderr(Stdio::piped()).output()?;
    let wall_s = begin.elapsed().as_secs_f64();
    let told = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!(
            "ended with {:?}, signal {:?}: {}",
            output.status.code(),
            output.status.signal(),
            told.trim()
        );
    }
    let last = told.lines().last().unwrap_or_default();
    let numbers: Vec<f64> = last.split(' ').filter_map(|number| number.parse().ok()).collect();
    let [user, system, peak] = numbers[..] else {
        bail!("time told {last:?}");
    };
    Ok(Measured {
        wall_s,
        cpu_s: user + system,
        peak_kib: peak as u64,
    })
}
