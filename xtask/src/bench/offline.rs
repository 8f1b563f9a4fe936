//! `bench offline`: `analyze` against tshark on one pcap, against jq and DuckDB on one NDJSON file.
//!
//! Wall time counts, and is worth what the machine was worth at that moment: CPU time stands beside it, and the load.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args as ClapArgs;

use super::trace;
use crate::build;
use crate::run::{python, root};

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
    /// Connections in the pcap, of ten packets each
    #[arg(long, default_value_t = 20_000)]
    connections: u64,
    /// Measure this program instead of building one
    #[arg(long)]
    program: Option<String>,
}

struct Measured {
    wall_s: f64,
    cpu_s: f64,
    peak_kib: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
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
    let mut out = BufWriter::new(File::create(&ndjson).context("create the NDJSON trace")?);
    let exchanges = trace::ndjson(&mut out, args.megabytes << 20)?;
    out.flush()?;
    let mut out = BufWriter::new(File::create(&pcap).context("create the pcap")?);
    trace::pcap(&mut out, args.connections)?;
    out.flush()?;
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load before: {}", load.trim());

    println!("\n{} MB of NDJSON, {exchanges} exchanges", args.megabytes);
    let own = show(
        "analyze",
        exchanges,
        measure(Command::new(&program).arg("analyze").arg(&ndjson)),
    )?;
    if has("jq") {
        let jq = show(
            "jq",
            exchanges,
            measure(Command::new("jq").args(["-n", JQ]).arg(&ndjson)),
        )?;
        compare("jq", &own, &jq);
    }
    if python().exists() || has("python3") {
        let python = if python().exists() { python() } else { "python3".into() };
        if let Ok(duckdb) = measure(Command::new(python).args(["-c", DUCKDB]).arg(&ndjson)) {
            let duckdb = show("duckdb", exchanges, Ok(duckdb))?;
            compare("duckdb", &own, &duckdb);
        } else {
            println!("  duckdb: not installed (pip install -r deploy/sql/requirements.txt)");
        }
    }

    println!("\npcap, {} connections of ten packets", args.connections);
    let own = show(
        "analyze",
        args.connections,
        measure(Command::new(&program).arg("analyze").arg(&pcap)),
    )?;
    if has("tshark") {
        let mut command = Command::new("tshark");
        command.args(["-T", "fields", "-r"]).arg(&pcap);
        for field in TSHARK_FIELDS {
            command.args(["-e", field]);
        }
        let tshark = show("tshark", args.connections, measure(&mut command))?;
        compare("tshark", &own, &tshark);
    }
    Ok(())
}

fn has(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(program).exists()));
    if !found {
        println!("  {program}: not installed");
    }
    found
}

fn show(name: &str, exchanges: u64, measured: anyhow::Result<Measured>) -> anyhow::Result<Measured> {
    let measured = measured.with_context(|| format!("measure {name}"))?;
    println!(
        "  {name:8} {:8.2} s wall {:8.2} s CPU {:10.0} exchanges/s {:8} KiB at most",
        measured.wall_s,
        measured.cpu_s,
        exchanges as f64 / measured.wall_s,
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
fn measure(command: &mut Command) -> anyhow::Result<Measured> {
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
