//! `preflight`: would this change of the metadata options break a workload?

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, ValueEnum};
use serde::Serialize;

use super::help::{self, CHANGE};
#[cfg(live)]
use super::live::{self, Opened};
use super::observe::{ObserveArgs, Settings};
use super::offline::{InputSummary, Progress, open, period};
use super::{Cli, Status, print};
use crate::imds::{Selection, beyond_this_host};
use crate::pipeline;
use crate::preflight::{Break, Change, Circumstances, Condition, Judgement, Preflight, Verdict};
use crate::quantity::Span;
use crate::record::{Finding, LossCounts, Record, Summary, Time};
use crate::report::escape::{self, Escaped};
use crate::report::text::counted;
use crate::sinks::Sink;
use crate::sinks::collect::{Collected, Collector};
use crate::source::Source as _;
use crate::stop::Stop;

/// Check whether a change of the metadata options would break a workload
///
/// Observes this host, or reads traces and captures of one node or many. Exit status: 0 safe, 3 not safe, 4 inconclusive.
#[derive(Debug, Args)]
#[command(after_long_help = help::PREFLIGHT)]
pub(super) struct PreflightArgs {
    /// Traces of `stream` (NDJSON) or captures (pcap, pcapng), also .gz and .zst; without FILE, observe this host
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Check this change: require tokens (IMDSv2)
    #[arg(long, help_heading = CHANGE, value_name = "required")]
    http_tokens: Option<HttpTokens>,
    /// Check this change: set the hop limit of token responses
    #[arg(long, help_heading = CHANGE, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    hop_limit: Option<u8>,
    /// `disabled`: check this change, IMDS disabled. An address: observe IMDS at that address (repeatable)
    #[arg(long, help_heading = CHANGE, value_name = "disabled|ADDR", value_delimiter = ',')]
    endpoint: Vec<Endpoint>,
    /// Report `safe` only after observing at least this long
    #[arg(long, value_name = "SPAN", default_value = "24h", alias = "at-least")]
    min_duration: Span,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: PreflightFormat,
    #[command(flatten)]
    observe: ObserveArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum HttpTokens {
    Required,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PreflightFormat {
    Text,
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Endpoint {
    Disabled,
    At(Selection),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "disabled" {
            return Ok(Self::Disabled);
        }
        text.parse()
            .map(Self::At)
            .map_err(|_| "expected `disabled`, `imds` or an IP address".to_owned())
    }
}

/// As `analyze -o json`, with the verdict.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    input: InputSummary,
    from: Option<Time>,
    to: Option<Time>,
    summary: Option<&'a Record<Summary>>,
    findings: &'a [Record<Finding>],
    loss: Option<&'a Record<LossCounts>>,
    verdict: Verdict,
    reasons: &'a [String],
    /// Conditions of `safe` that are not proven.
    unproven: &'a [Condition],
    breaks: &'a [Break],
}

impl PreflightArgs {
    pub(super) fn run(&self) -> anyhow::Result<Status> {
        let changes = self.changes();
        let at_least = self.min_duration.0.as_nanos() as u64;
        let settings = self.observe.select.settings()?;
        let preflight = Preflight::new(changes, settings.config.limits.report.judged_workloads);
        let collector = Collector::new(settings.config.limits.report.findings);
        let sinks: Vec<Box<dyn Sink>> = vec![Box::new(collector.clone()), Box::new(preflight.clone())];
        let (input, judgement) = if self.files.is_empty() {
            self.live(&settings, sinks)?;
            let input = InputSummary {
                files: 0,
                records: 0,
                skipped: 0,
            };
            (
                input,
                preflight.judge(&Circumstances {
                    recorded: None,
                    at_least_ns: at_least,
                    unread: 0,
                }),
            )
        } else {
            let stop = Stop::on_signals()?;
            let mut source = Progress::new(open(&self.files, &settings, &self.addresses(&settings), &stop)?);
            let host = settings.host(source.start().host)?;
            let mut pipeline = settings.pipeline(host, None, None, None, sinks);
            pipeline::run(&mut source, &mut pipeline, None, &stop)?;
            source.clear();
            let counts = source.inner.counts();
            let judgement = preflight.judge(&Circumstances {
                recorded: Some(pipeline.recorded_hosts()),
                at_least_ns: at_least,
                unread: counts.broken,
            });
            (counts.into(), judgement)
        };
        let collected = collector.take();
        print(&match self.output {
            PreflightFormat::Text => text(&judgement),
            PreflightFormat::Json => json(input, &collected, &judgement)?,
        })?;
        Ok(match judgement.verdict {
            Verdict::Safe => Status::Done,
            Verdict::NotSafe => Status::Found,
            Verdict::CannotSay => Status::CannotSay,
        })
    }

    #[cfg(not(live))]
    #[expect(clippy::unused_self, reason = "as with `live`")]
    fn live(&self, _: &Settings, _: Vec<Box<dyn Sink>>) -> anyhow::Result<Status> {
        Err(super::not_live::not_live())
    }

    #[cfg(live)]
    fn live(&self, settings: &Settings, sinks: Vec<Box<dyn Sink>>) -> anyhow::Result<Status> {
        let endpoints = self.addresses(settings);
        live::observe(&self.observe, &endpoints, settings, None, |_| {
            Ok(Opened::new(|| Ok(sinks)))
        })
    }

    /// Addresses of IMDS only, because the metadata options don't affect agents.
    fn addresses(&self, settings: &Settings) -> Vec<IpAddr> {
        let given: Vec<Selection> = self
            .endpoint
            .iter()
            .filter_map(|endpoint| match endpoint {
                Endpoint::Disabled => None,
                Endpoint::At(selection) => Some(selection.clone()),
            })
            .collect();
        let addresses = beyond_this_host(&settings.endpoints(&Selection::addresses(&given)));
        if addresses.is_empty() {
            usage("a change of the metadata options concerns only IMDS (add --endpoint imds, or its address)");
        }
        addresses
    }

    /// The changes to check, applied together.
    fn changes(&self) -> Vec<Change> {
        let disabled = self
            .endpoint
            .contains(&Endpoint::Disabled)
            .then_some(Change::EndpointDisabled);
        let changes: Vec<Change> = [
            self.http_tokens.map(|HttpTokens::Required| Change::TokensRequired),
            self.hop_limit.map(Change::HopLimit),
            disabled,
        ]
        .into_iter()
        .flatten()
        .collect();
        if changes.is_empty() {
            usage("no change to check (add --http-tokens required, --hop-limit N or --endpoint disabled)");
        }
        changes
    }
}

fn usage(message: &str) -> ! {
    Cli::command().error(ErrorKind::ValueValidation, message).exit()
}

fn json(input: InputSummary, collected: &Collected, judgement: &Judgement) -> anyhow::Result<String> {
    let period = period(collected);
    let answer = Answer {
        input,
        from: period.map(|(from, _)| from),
        to: period.map(|(_, to)| to),
        summary: collected.summary.as_ref(),
        findings: &collected.findings,
        loss: collected.loss.as_ref(),
        verdict: judgement.verdict,
        reasons: &judgement.reasons,
        unproven: &judgement.unproven,
        breaks: &judgement.breaks,
    };
    Ok(escape::json(serde_json::to_string_pretty(&answer)?) + "\n")
}

fn text(judgement: &Judgement) -> String {
    let mut out = format!("{}\n", judgement.verdict.as_str());
    for reason in &judgement.reasons {
        let _ = writeln!(out, "  {}", Escaped(reason));
    }
    for Break {
        workload,
        count,
        last_seen,
        why,
    } in &judgement.breaks
    {
        let _ = writeln!(
            out,
            "\n{}: {}\n    {}, last {last_seen}",
            Escaped(workload),
            Escaped(why),
            counted(*count, "request")
        );
    }
    out
}
