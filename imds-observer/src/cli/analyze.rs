//! `analyze`: runs the pipeline over recorded traces and captures.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::observe::{EndpointArgs, INTERVAL, SelectArgs};
use super::offline::{InputSummary, Progress, open, period};
use super::{Status, help, print, values};
use crate::pipeline;
use crate::record::{Finding, LossCounts, Record, Severity, Summary, Time};
use crate::report::escape;
use crate::report::groups::{Group, GroupObject, groups};
use crate::report::history::History;
use crate::report::html;
use crate::report::text::{self, Colour, counted};
use crate::sinks::collect::{Collected, Collector};
use crate::sinks::destination::Destination;
use crate::sinks::ndjson::NdjsonOutput;
use crate::sinks::{Direct, Sink};
use crate::source::Source as _;
use crate::source::traces::InputCounts;
use crate::stop::Stop;

/// Analyze recorded traces and packet captures
///
/// Runs the same detectors as `watch` and `stream`. Needs no privileges.
#[derive(Debug, Args)]
#[command(after_long_help = help::ANALYZE)]
pub(super) struct AnalyzeArgs {
    /// Traces of `stream` (NDJSON) or captures (pcap, pcapng), also .gz and .zst; - is stdin
    ///
    /// Several files are merged by time.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
    /// Write to this file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Exit with status 3 if a finding has this severity or a higher one
    #[arg(long, value_name = "SEVERITY", value_parser = values::severity())]
    fail_on: Option<Severity>,
    #[command(flatten)]
    select: SelectArgs,
    #[command(flatten)]
    endpoints: EndpointArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    /// Report as text
    Text,
    /// One JSON object: input, summary, findings, groups, loss
    Json,
    /// Records, in the format of `stream`
    Ndjson,
    /// Self-contained page with charts
    Html,
}

/// The object that `-o json` writes; `preflight` writes the same and fills the verdict.
#[derive(Debug, Serialize)]
struct Analysis<'a> {
    input: InputSummary,
    from: Option<Time>,
    to: Option<Time>,
    summary: Option<&'a Record<Summary>>,
    findings: &'a [Record<Finding>],
    groups: Vec<GroupObject<'a>>,
    loss: Option<&'a Record<LossCounts>>,
    verdict: Option<()>,
}

/// Resolution of the packet quota chart.
const HISTORY_STEP: Duration = Duration::from_secs(1);

impl AnalyzeArgs {
    pub(super) fn run(&self) -> anyhow::Result<Status> {
        let settings = self.select.settings()?;
        let stop = Stop::on_signals()?;
        let mut source = Progress::new(open(&self.files, &settings, &self.endpoints.addresses(), &stop)?);
        let host = settings.host(source.start().host)?;
        let collector = Collector::new(settings.config.limits.report.findings);
        let mut sinks: Vec<Box<dyn Sink>> = vec![Box::new(collector.clone())];
        let mut interval = None;
        if self.output == OutputFormat::Ndjson {
            let destination = match &self.write {
                Some(path) => Destination::file(path, None)?,
                None => Destination::stdout(),
            };
            sinks.push(Box::new(Direct::new(
                NdjsonOutput::new(destination, settings.config.limits.held_bytes),
                settings.kinds,
            )));
            interval = Some(settings.interval.unwrap_or(INTERVAL));
        }
        let history = History::new(settings.config.limits.report);
        if self.output == OutputFormat::Html {
            sinks.push(Box::new(history.clone()));
            interval = Some(settings.interval.unwrap_or(HISTORY_STEP));
        }
        let mut missing: Vec<String> = source
            .start()
            .missing
            .iter()
            .map(|missing| format!("{}: {} ({})", missing.capability, missing.blinds, missing.why))
            .collect();
        let mut pipeline = settings.pipeline(host.clone(), None, interval, None, sinks);
        pipeline::run(&mut source, &mut pipeline, None, &stop)?;
        source.clear();

        let counts = source.inner.counts();
        let collected = collector.take();
        match self.output {
            OutputFormat::Text => self.write(&report(&counts, &collected, self.colour()))?,
            OutputFormat::Json => self.write(&json(&counts, &collected)?)?,
            OutputFormat::Ndjson => {}
            OutputFormat::Html => {
                let recorded = pipeline.recorded_hosts();
                missing.extend(recorded.missing().map(str::to_owned));
                if recorded.restarts_seen() > 0 {
                    missing.push(format!(
                        "the observer restarted {}: traffic between the runs is not in the records",
                        counted(recorded.restarts_seen(), "time")
                    ));
                }
                let page = html::page(&html::Input {
                    host: &host,
                    files: counts.files,
                    records: counts.records,
                    skipped: counts.skipped,
                    period: period(&collected),
                    summary: collected.summary.as_ref(),
                    findings: &collected.findings,
                    loss: pipeline.loss(),
                    missing,
                    picture: &history.take(),
                })?;
                self.write(&page)?;
            }
        }
        let found = |least| collected.findings.iter().any(|finding| finding.severity >= least);
        Ok(match self.fail_on {
            Some(least) if found(least) => Status::Found,
            _ if counts.broken > 0 => Status::Partial,
            _ => Status::Done,
        })
    }

    fn colour(&self) -> Colour {
        Colour::on(self.write.is_none() && io::stdout().is_terminal())
    }

    fn write(&self, text: &str) -> anyhow::Result<()> {
        match &self.write {
            Some(path) => std::fs::write(path, text).with_context(|| format!("write {}", path.display())),
            None => print(text),
        }
    }
}

fn json(counts: &InputCounts, collected: &Collected) -> anyhow::Result<String> {
    let period = period(collected);
    let analysis = Analysis {
        input: (*counts).into(),
        from: period.map(|(from, _)| from),
        to: period.map(|(_, to)| to),
        summary: collected.summary.as_ref(),
        findings: &collected.findings,
        groups: groups(&collected.findings).iter().map(Group::object).collect(),
        loss: collected.loss.as_ref(),
        verdict: None,
    };
    let mut text = escape::json(serde_json::to_string_pretty(&analysis)?);
    text.push('\n');
    Ok(text)
}

fn report(counts: &InputCounts, collected: &Collected, colour: Colour) -> String {
    let InputCounts {
        files,
        records,
        skipped,
        ..
    } = counts;
    let mut out = format!("{}, {}", counted(*files, "file"), counted(*records, "record"));
    if *skipped > 0 {
        let _ = write!(out, ", {skipped} skipped");
    }
    if let Some((from, to)) = period(collected) {
        let _ = write!(out, ", {from} to {to} ({})", text::span(to.since(from)));
    }
    out.push_str("\n\n");
    if let Some(summary) = &collected.summary {
        let unread = collected
            .loss
            .as_ref()
            .map_or(0, |loss| loss.ring_buffer.saturating_add(loss.unparsed));
        out.push_str(&text::summary(summary, unread, colour));
    }
    if collected.findings.is_empty() {
        out.push_str("\nno findings\n");
    }
    for group in groups(&collected.findings) {
        out.push('\n');
        out.push_str(&text::group(&group, colour));
    }
    if let Some(loss) = &collected.loss {
        let lost = text::loss(loss);
        if !lost.is_empty() {
            out.push('\n');
            out.push_str(&lost);
        }
    }
    out
}
