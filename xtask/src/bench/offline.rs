//! `bench offline`: `analyze` against tshark on one pcap, against jq and DuckDB on one NDJSON file.
//!
//! Wall time decides, but depends on what else the machine does at that moment. CPU time and load are therefore listed too.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args as ClapArgs;

use super::lab;
use super::trace::{self, Callers};
use crate::build;
use crate::run::{python, root, step};
use crate::setup::{self, Group};

/// The fields of the problem report, with tshark's names.
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
// By default, clap would give this group the same name as the group that is flattened into it.
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    common: lab::Args,
    /// Size of each NDJSON file
    #[arg(long, default_value_t = MEGABYTES)]
    megabytes: u64,
    /// Size of two more files, which only `analyze` reads, to check that its memory doesn't grow. Deleted afterwards; 0: none
    #[arg(long, default_value_t = LARGE_MEGABYTES)]
    large_megabytes: u64,
    /// Connections in the pcap, of ten packets each
    #[arg(long, default_value_t = CONNECTIONS)]
    connections: u64,
    /// Number of runs of each program. The fastest one counts, because other load on the machine only ever adds time
    #[arg(long, default_value_t = RUNS, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
}

const MEGABYTES: u64 = 100;
const LARGE_MEGABYTES: u64 = 2048;
const CONNECTIONS: u64 = 20_000;
const RUNS: u32 = 5;

/// Targets: speed relative to the other program, and exchanges per second.
const JQ_AIM: f64 = 20.0;
const TSHARK_AIM: f64 = 30.0;
const RATE_AIM: f64 = 1_000_000.0;

impl Args {
    /// Arguments with which `bench all` runs it.
    pub(super) fn whole(common: lab::Args) -> Self {
        Self {
            common,
            megabytes: MEGABYTES,
            large_megabytes: LARGE_MEGABYTES,
            connections: CONNECTIONS,
            runs: RUNS,
        }
    }

    fn shortened(&self) -> Self {
        Self {
            common: self.common.clone(),
            megabytes: 2,
            large_megabytes: 4,
            connections: 200,
            runs: 1,
        }
    }
}

#[derive(Clone, Copy)]
struct Measured {
    wall_s: f64,
    cpu_s: f64,
    peak_kib: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.common.short {
        measure_all(&args.shortened())
    } else {
        measure_all(args)
    }
}

fn measure_all(args: &Args) -> anyhow::Result<()> {
    setup::ensure(&[Group::Bench])?;
    let program = if let Some(program) = &args.common.program {
        program.clone()
    } else {
        step("build", build::release)?;
        let built = root().join("target/release/imds-observer");
        built.to_string_lossy().into_owned()
    };
    let directory = root().join("target/bench");
    fs::create_dir_all(&directory).context("make target/bench")?;
    let (bad, pcap) = (directory.join("trace.ndjson"), directory.join("trace.pcap"));
    let healthy = directory.join("healthy.ndjson");
    let short = directory.join("short-lived.ndjson");
    let bytes = args.megabytes << 20;
    let bad_exchanges = write(&bad, |out| trace::ndjson(out, bytes, Callers::Bad))?;
    let healthy_exchanges = write(&healthy, |out| trace::ndjson(out, bytes, Callers::Healthy))?;
    let short_exchanges = write(&short, |out| trace::ndjson(out, bytes, Callers::ShortLived))?;
    write(&pcap, |out| trace::pcap(out, args.connections))?;
    let machine = lab::machine()?;
    let analyze = |file: &Path| command(&program, &["analyze"], file);
    let python = python();
    let python = python.to_string_lossy();

    let mut table = Table::default();
    let of = |what: &str| format!("{} MB of NDJSON, {what}", args.megabytes);
    table.file(
        &format!(
            "{}, {short_exchanges} exchanges",
            of("a process for each request, keys in another order")
        ),
        short_exchanges,
        args.runs,
        &[
            ("`analyze`", &|| analyze(&short), None),
            ("jq", &|| command("jq", &["-n", JQ], &short), Some(JQ_AIM)),
            ("DuckDB", &|| command(&python, &["-c", DUCKDB], &short), None),
        ],
    )?;
    table.file(
        &format!("{}, {healthy_exchanges} exchanges", of("healthy callers")),
        healthy_exchanges,
        args.runs,
        &[
            ("`analyze`", &|| analyze(&healthy), None),
            ("jq", &|| command("jq", &["-n", JQ], &healthy), Some(JQ_AIM)),
        ],
    )?;
    table.file(
        &format!("{}, {bad_exchanges} exchanges", of("bad callers")),
        bad_exchanges,
        args.runs,
        &[
            ("`analyze`", &|| analyze(&bad), None),
            ("jq", &|| command("jq", &["-n", JQ], &bad), Some(JQ_AIM)),
            ("DuckDB", &|| command(&python, &["-c", DUCKDB], &bad), None),
            // Lower limit for any program that reads each byte once, on one processor.
            ("`wc -l`", &|| command("wc", &["-l"], &bad), None),
        ],
    )?;
    let tshark = || {
        let fields = TSHARK_FIELDS.iter().flat_map(|field| ["-e", field]);
        let arguments: Vec<&str> = ["-T", "fields"].into_iter().chain(fields).chain(["-r"]).collect();
        command("tshark", &arguments, &pcap)
    };
    table.file(
        &format!("pcap, {} connections of ten packets", args.connections),
        args.connections,
        args.runs,
        &[
            ("`analyze`", &|| analyze(&pcap), None),
            ("tshark", &tshark, Some(TSHARK_AIM)),
        ],
    )?;
    for (what, callers) in [("healthy callers", Callers::Healthy), ("bad callers", Callers::Bad)] {
        if args.large_megabytes == 0 {
            continue;
        }
        let large = directory.join("large.ndjson");
        let exchanges = write(&large, |out| trace::ndjson(out, args.large_megabytes << 20, callers))?;
        let measured = table.file(
            &format!("{} MB of NDJSON, {what}, {exchanges} exchanges", args.large_megabytes),
            exchanges,
            args.runs,
            &[("`analyze`", &|| analyze(&large), None)],
        );
        fs::remove_file(&large).context("delete the large trace")?;
        table.rate(what, exchanges as f64 / measured?.wall_s);
    }
    let text = table.text(args.runs);
    println!("{text}");
    if !args.common.short && !args.common.no_write {
        lab::write("offline", &format!("`cargo xtask bench offline`, {machine}.\n\n{text}"))?;
    }
    Ok(())
}

/// A program that reads a file: its name, its command, and the target for `analyze`'s speed relative to it.
type Contestant<'a> = (&'a str, &'a dyn Fn() -> Command, Option<f64>);

#[derive(Default)]
struct Table {
    rows: Vec<String>,
    notes: Vec<String>,
}

impl Table {
    /// Runs all programs over one file, in alternating rounds. The first program is ours, and its result is returned.
    fn file(
        &mut self,
        file: &str,
        exchanges: u64,
        runs: u32,
        contestants: &[Contestant<'_>],
    ) -> anyhow::Result<Measured> {
        let mut best: Vec<Option<Measured>> = vec![None; contestants.len()];
        for _ in 0..runs {
            for ((name, command, _), best) in contestants.iter().zip(&mut best) {
                let measured = measure(&command()).with_context(|| format!("measure {name}"))?;
                let before = best.unwrap_or(measured);
                *best = Some(Measured {
                    wall_s: before.wall_s.min(measured.wall_s),
                    cpu_s: before.cpu_s.min(measured.cpu_s),
                    peak_kib: before.peak_kib.max(measured.peak_kib),
                });
            }
        }
        let own = best.first().copied().flatten().context("no run")?;
        for (index, ((name, _, aim), measured)) in contestants.iter().zip(best).enumerate() {
            let Measured {
                wall_s,
                cpu_s,
                peak_kib,
            } = measured.context("no run")?;
            let (faster, by_cpu) = (wall_s / own.wall_s, cpu_s / own.cpu_s);
            let ratios = match (index, aim) {
                (0, _) => "- | -".to_owned(),
                (_, None) => format!("{faster:.1} | {by_cpu:.1}"),
                (_, Some(aim)) => format!("{faster:.1} ({aim}: {}) | {by_cpu:.1}", met(faster >= *aim)),
            };
            self.rows.push(format!(
                "| {} | {name} | {wall_s:.2} | {cpu_s:.2} | {:.0} | {:.0} | {ratios} |",
                if index == 0 { file } else { "" },
                exchanges as f64 / wall_s,
                peak_kib as f64 / 1024.0,
            ));
        }
        Ok(own)
    }

    fn rate(&mut self, of: &str, exchanges_per_s: f64) {
        self.notes.push(format!(
            "{exchanges_per_s:.0} exchanges a second on the large trace of {of} ({RATE_AIM:.0}: {}).",
            met(exchanges_per_s >= RATE_AIM)
        ));
    }

    fn text(&self, runs: u32) -> String {
        let mut text = format!(
            "The fastest of {runs} alternating runs; memory is the highest of them. The last two columns are how many times as fast `analyze` is.\n\n\
             | trace | program | on the clock, s | CPU, s | exchanges/s | peak memory, MiB | by the clock (aim) | by CPU time |\n\
             |---|---|---|---|---|---|---|---|\n"
        );
        for row in &self.rows {
            text.push_str(row);
            text.push('\n');
        }
        for note in &self.notes {
            text.push('\n');
            text.push_str(note);
            text.push('\n');
        }
        text.trim_end().to_owned()
    }
}

fn met(met: bool) -> &'static str {
    if met { "met" } else { "**not met**" }
}

fn write<T>(path: &Path, trace: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>) -> anyhow::Result<T> {
    let mut out = BufWriter::new(File::create(path).with_context(|| format!("create {}", path.display()))?);
    // Wait until the file is on the disk. Otherwise the kernel would still write while programs read the file.
    let made = trace(&mut out).and_then(|made| {
        out.flush()?;
        out.get_ref().sync_all().map(|()| made)
    });
    made.with_context(|| format!("write {}", path.display()))
}

fn command(program: &str, arguments: &[&str], file: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).arg(file);
    command
}

/// Runs a command to its end and returns its cost. The peak of a child's memory comes from GNU time.
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
    let reported = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!(
            "ended with {:?}, signal {:?}: {}",
            output.status.code(),
            output.status.signal(),
            reported.trim()
        );
    }
    let last = reported.lines().last().unwrap_or_default();
    let numbers: Vec<f64> = last.split(' ').filter_map(|number| number.parse().ok()).collect();
    let [user, system, peak] = numbers[..] else {
        bail!("unexpected output of time: {last:?}");
    };
    Ok(Measured {
        wall_s,
        cpu_s: user + system,
        peak_kib: peak as u64,
    })
}
