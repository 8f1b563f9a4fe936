//! Runs the scenarios and reports precision and recall of the observer.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use flate2::{Compression, write::GzEncoder};
use imds_observer_lab::scenarios::neutral::{Neutral, build_of};
use imds_observer_lab::scenarios::scrub::scrub;
use imds_observer_lab::scenarios::{Client, Outcome, Prepared, Scenario, Score, Stage, Suite, Tools, score};

/// Plays scenarios in network namespaces without a route to the outside, and compares the observer's findings with the expected ones. Needs
/// root.
#[derive(Parser)]
struct Cli {
    /// The observer's program
    #[arg(long)]
    observer: PathBuf,
    /// Directory that `cargo xtask setup --for scenarios` created
    #[arg(long)]
    tools: PathBuf,
    /// Directory of our small client programs around libraries: imds-observer-lab/clients
    #[arg(long)]
    clients: PathBuf,
    /// Only scenarios whose name contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// Keep trace and capture of each in this directory
    #[arg(long)]
    record: Option<PathBuf>,
    /// Update the rows of successful scenarios in the table between the marks in this file
    #[arg(long)]
    write_table: Option<PathBuf>,
    /// Keep trace and capture, unscrubbed, in this directory, for debugging
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// Size above which recordings are compressed, because every clone of the repository downloads them.
const PLAIN_BYTES: usize = 32 * 1024;
const BEGIN: &str = "<!-- table: cargo xtask scenarios --record -->";
const END: &str = "<!-- end of table -->";

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("imds-observer-scenarios: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A row of the table.
struct Row<'a> {
    scenario: &'a Scenario,
    found: Vec<String>,
    score: Score,
    printed: String,
    failure: Option<String>,
    seconds: f64,
}

fn run(cli: &Cli) -> Result<bool> {
    let lab = std::env::current_exe()?.with_file_name("imds-observer-lab");
    ensure!(
        lab.exists(),
        "{} is missing: run `cargo build -p imds-observer-lab`",
        lab.display()
    );
    let stage = Stage {
        suite: Suite::load()?,
        tools: Tools {
            tools: cli.tools.clone(),
            clients: cli.clients.clone(),
            lab,
            observer: cli.observer.clone(),
        },
    };
    let chosen: Vec<&Scenario> = stage
        .suite
        .scenarios
        .iter()
        .filter(|scenario| scenario.name.contains(&cli.filter))
        .collect();
    ensure!(!chosen.is_empty(), "no scenario's name contains {}", cli.filter);

    // Clients that must reach a certain age are started first, and their scenarios are played last.
    let mut ageing: Vec<Prepared<'_>> = Vec::new();
    for scenario in chosen.iter().filter(|scenario| scenario.age_s.is_some()) {
        ageing.push(stage.prepare(scenario)?);
    }
    let young = chosen.iter().filter(|scenario| scenario.age_s.is_none());
    let plays = young
        .map(|scenario| (*scenario, None))
        .chain(ageing.into_iter().map(|prepared| (prepared.scenario(), Some(prepared))));
    let mut rows = Vec::new();
    for (scenario, prepared) in plays {
        let begin = Instant::now();
        let outcome = match prepared {
            Some(prepared) => prepared.play(),
            None => stage.prepare(scenario).and_then(Prepared::play),
        };
        let row = match &outcome {
            Ok(outcome) => Row {
                scenario,
                score: outcome.score,
                printed: counted(&outcome.reported),
                failure: outcome.failure.clone(),
                seconds: outcome.took.as_secs_f64(),
                found: outcome.found.clone(),
            },
            // A scenario that can't be played counts as wrong. The others are still played.
            Err(error) => Row {
                scenario,
                score: score(&scenario.expect, &[]),
                printed: String::new(),
                failure: Some(format!("play it: {error:#}")),
                seconds: begin.elapsed().as_secs_f64(),
                found: Vec::new(),
            },
        };
        eprintln!(
            "{} {:<40} {:>5.1} s  {}",
            if row.is_right() { "ok  " } else { "FAIL" },
            scenario.name,
            row.seconds,
            row.printed
        );
        if !row.is_right() {
            eprintln!(
                "     expected: {}\n     found:    {}",
                list(&scenario.expect),
                list(&row.found)
            );
            if let Some(failure) = &row.failure {
                eprintln!("     {failure}");
            }
        }
        let outcome = outcome.as_ref().ok();
        if let (Some(directory), Some(outcome)) = (&cli.keep, outcome) {
            fs::create_dir_all(directory)?;
            fs::write(
                directory.join(format!("{}.ndjson", scenario.name)),
                outcome.trace.join("\n") + "\n",
            )?;
            fs::write(directory.join(format!("{}.pcap", scenario.name)), &outcome.capture)?;
        }
        if let (Some(directory), Some(outcome)) = (&cli.record, outcome)
            && row.is_right()
        {
            record(directory, scenario, outcome, &stage.tools)?;
        }
        rows.push(row);
    }
    let printed: Vec<Cells> = rows.iter().map(|row| cells(&stage.suite, row)).collect();
    print!("{}", table(&printed));
    if let Some(path) = &cli.write_table {
        let right = rows.iter().zip(&printed).filter(|(row, _)| row.is_right());
        let right: Vec<Cells> = right.map(|(_, cells)| cells.clone()).collect();
        write_table(path, &stage.suite, &right)?;
    }
    Ok(rows.iter().all(Row::is_right))
}

impl Row<'_> {
    fn is_right(&self) -> bool {
        self.failure.is_none() && self.score.is_perfect()
    }
}

fn record(directory: &Path, scenario: &Scenario, outcome: &Outcome, tools: &Tools) -> Result<()> {
    fs::create_dir_all(directory)?;
    let kernel = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let comm = fs::read_to_string("/proc/self/comm").context("read this process's name")?;
    let bin = tools.lab.parent().unwrap_or(&tools.lab);
    let neutral = Neutral::new(
        &[
            (&tools.tools, "tools"),
            (&tools.clients, "programs"),
            (bin, "bin"),
            (&outcome.scratch, "scratch"),
        ],
        (std::process::id(), comm.trim_end()),
        &kernel,
    );
    let mut trace = String::new();
    for line in &outcome.trace {
        trace.push_str(&neutral.line(line));
        trace.push('\n');
    }
    let capture = scrub(&outcome.capture, build_of(&kernel)).context("scrub the capture")?;
    for (kind, bytes) in [("ndjson", trace.into_bytes()), ("pcap", capture)] {
        let plain = directory.join(format!("{}.{kind}", scenario.name));
        let packed = directory.join(format!("{}.{kind}.gz", scenario.name));
        for old in [&plain, &packed] {
            if old.exists() {
                fs::remove_file(old)?;
            }
        }
        let (path, bytes) = if bytes.len() > PLAIN_BYTES {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(&bytes)?;
            (packed, encoder.finish()?)
        } else {
            (plain, bytes)
        };
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Lists equal consecutive entries once, with their number.
fn counted(printed: &[String]) -> String {
    let parts: Vec<String> = printed
        .chunk_by(|a, b| a == b)
        .map(|equal| {
            if equal.len() == 1 {
                equal[0].clone()
            } else {
                format!("{} ×{}", equal[0], equal.len())
            }
        })
        .collect();
    if parts.len() > 8 {
        let mut kinds: Vec<(&String, usize)> = Vec::new();
        for one in printed {
            match kinds.iter_mut().find(|(kind, _)| *kind == one) {
                Some((_, count)) => *count += 1,
                None => kinds.push((one, 1)),
            }
        }
        let parts: Vec<String> = kinds.iter().map(|(kind, count)| format!("{kind} ×{count}")).collect();
        return parts.join(", ");
    }
    parts.join(", ")
}

const NONE: &str = "-";

fn list(findings: &[String]) -> String {
    if findings.is_empty() {
        NONE.to_owned()
    } else {
        findings.join(", ")
    }
}

fn listed(cell: &str) -> Vec<String> {
    let parts = cell.split(", ").filter(|part| *part != NONE);
    parts.map(str::to_owned).collect()
}

/// A row of the table: scenario, clients, sent, expected, found, verdict.
type Cells = [String; 6];

const HEAD: &str = "| scenario | clients | sent | expected | found | |\n|---|---|---|---|---|---|\n";

fn cells(suite: &Suite, row: &Row<'_>) -> Cells {
    let mut clients: Vec<String> = Vec::new();
    for name in row.scenario.clients() {
        let scripted = suite.client(name).is_ok_and(Client::is_scripted);
        let name = if scripted {
            format!("{name} (scripted)")
        } else {
            name.to_owned()
        };
        if !clients.contains(&name) {
            clients.push(name);
        }
    }
    [
        row.scenario.name.clone(),
        clients.join(", "),
        row.printed.clone(),
        list(&row.scenario.expect),
        list(&row.found),
        if row.is_right() { "ok" } else { "**wrong**" }.to_owned(),
    ]
}

/// Formats the rows as Markdown, which is readable in a terminal too.
fn table(rows: &[Cells]) -> String {
    let mut total = Score::default();
    let mut text = String::from(HEAD);
    for row in rows {
        total += score(&listed(&row[3]), &listed(&row[4]));
        text.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    let healthy = rows.iter().filter(|row| row[3] == NONE).count();
    text.push_str(&format!(
        "\n{} scenarios, {healthy} of them healthy: {} findings expected, {} of them reported, {} others. Precision {:.3}, recall {:.3}.\n",
        rows.len(),
        total.right + total.missed,
        total.right,
        total.false_alarms,
        total.precision(),
        total.recall(),
    ));
    text
}

/// Writes rows into the table of a page. Rows of scenarios that were not played stay unchanged.
fn write_table(path: &Path, suite: &Suite, played: &[Cells]) -> Result<()> {
    let page = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let (Some(begin), Some(end)) = (page.find(BEGIN), page.find(END)) else {
        bail!("{} has no marks `{BEGIN}` and `{END}`", path.display());
    };
    let before: Vec<Cells> = page[begin..end].lines().filter_map(row_of).collect();
    let rows: Vec<Cells> = suite
        .scenarios
        .iter()
        .filter_map(|scenario| {
            let named = |row: &&Cells| row[0] == scenario.name;
            played.iter().find(named).or_else(|| before.iter().find(named)).cloned()
        })
        .collect();
    let page = format!("{}{BEGIN}\n\n{}\n{}", &page[..begin], table(&rows), &page[end..]);
    fs::write(path, page).with_context(|| format!("write {}", path.display()))
}

fn row_of(line: &str) -> Option<Cells> {
    let cells: Vec<String> = line
        .strip_prefix("| ")?
        .strip_suffix(" |")?
        .split(" | ")
        .map(str::to_owned)
        .collect();
    cells.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_renewed_row_by_row() {
        let suite = Suite::load().unwrap();
        let row = |name: &str, found: &str| [name, "c", "sent", "a high", found, "ok"].map(str::to_owned);
        let names: Vec<&str> = suite
            .scenarios
            .iter()
            .take(3)
            .map(|scenario| scenario.name.as_str())
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), format!("before\n{BEGIN}\n{END}\nafter\n")).unwrap();
        write_table(file.path(), &suite, &[row(names[2], "-"), row(names[0], "a high")]).unwrap();
        write_table(
            file.path(),
            &suite,
            &[row(names[1], "a high"), row(names[2], "a high, b info")],
        )
        .unwrap();
        let page = fs::read_to_string(file.path()).unwrap();
        let printed: Vec<Cells> = page.lines().filter_map(row_of).collect();
        assert_eq!(printed.iter().map(|row| row[0].as_str()).collect::<Vec<_>>(), names);
        assert!(
            page.contains("3 findings expected, 3 of them reported, 1 others. Precision 0.750, recall 1.000."),
            "{page}"
        );
        assert!(page.starts_with("before\n") && page.ends_with("after\n"));
    }
}
