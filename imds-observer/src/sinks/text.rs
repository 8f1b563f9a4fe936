//! The plain live view: a table of processes at each interval, then the findings with their remedies.
//!
//! On a terminal the view is drawn over; on a pipe, tables are appended and findings come as lines when they open, and when they end.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use super::Output;
use super::destination::Destination;
use crate::record::{Body, Finding, FindingState, LossCounts, Of, Record, Start, Summary};
use crate::report::groups::{groups, have_one_cause};
use crate::report::text::{self, Colour};

/// Causes of open findings that are shown at once.
const MAX_SHOWN: usize = 20;

/// See the module.
pub struct TextOutput {
    destination: Destination,
    colour: Colour,
    redraw: bool,
    open: Vec<Record<Finding>>,
    max_open: usize,
    loss: LossCounts,
    headline: String,
}

impl TextOutput {
    /// `max_open`: open findings that are remembered.
    pub fn new(destination: Destination, colour: Colour, redraw: bool, max_open: usize) -> Self {
        Self {
            destination,
            colour,
            redraw,
            open: Vec::new(),
            max_open,
            loss: LossCounts::default(),
            headline: String::new(),
        }
    }

    fn lines(&mut self, record: &Record, out: &mut String) {
        match &record.body {
            Body::Start(start) => {
                self.headline = headline(record.with(start));
                out.push_str(&self.headline);
            }
            Body::Finding(finding) => self.finding(record.with(finding), out),
            Body::Loss(loss) => self.loss = *loss,
            Body::Summary(summary) => self.summary(summary, out),
            Body::Exchange(_) | Body::Connect(_) | Body::Drop(_) => {}
        }
    }

    fn finding(&mut self, finding: Of<'_, Finding>, out: &mut String) {
        let known = self.open.iter().position(|open| {
            open.code == finding.code && open.subject.key == finding.subject.key && open.host == *finding.host
        });
        match (known, finding.state) {
            (Some(at), FindingState::Resolved) => {
                self.open.remove(at);
            }
            (Some(at), _) => {
                let worse = finding.severity > self.open[at].severity;
                self.open[at] = finding.cloned();
                if !worse {
                    return;
                }
            }
            (None, FindingState::Open | FindingState::Update) => {
                let shown = self.open.iter().find(|open| have_one_cause(open, &finding));
                if let Some(shown) = shown.filter(|_| !self.redraw) {
                    out.push_str(&text::one_more(&finding, shown, self.colour));
                }
                let again = shown.is_some();
                if self.open.len() < self.max_open {
                    self.open.push(finding.cloned());
                }
                if again {
                    return;
                }
            }
            (None, FindingState::Resolved) => {}
        }
        if !self.redraw {
            out.push_str(&text::finding(&finding, self.colour));
        }
    }

    fn summary(&mut self, summary: &Summary, out: &mut String) {
        if self.redraw {
            // Clear the screen: its content is superseded.
            out.clear();
            out.push_str("\x1b[H\x1b[2J");
            out.push_str(&self.headline);
        }
        let seconds = summary.interval_ns as f64 / 1e9;
        let what = if summary.total { "in all" } else { "in the last" };
        let _ = writeln!(out, "\n{} ({what} {seconds:.1} s)", summary.to);
        out.push_str(&text::summary(summary, 0, self.colour));
        if self.redraw {
            let groups = groups(&self.open);
            for group in groups.iter().take(MAX_SHOWN) {
                out.push('\n');
                out.push_str(&text::group(group, self.colour));
            }
            let hidden: usize = groups.iter().skip(MAX_SHOWN).map(|group| group.findings.len()).sum();
            if hidden > 0 {
                let _ = writeln!(out, "and {hidden} more finding{}", if hidden == 1 { "" } else { "s" });
            }
        } else if summary.total && !self.open.is_empty() {
            let open = self.open.len();
            let _ = writeln!(
                out,
                "{} {} open",
                text::counted(open as u64, "finding"),
                if open == 1 { "is" } else { "are" }
            );
        }
        out.push_str(&text::loss(&self.loss));
    }
}

fn headline(start: Of<'_, Start>) -> String {
    let join = |names: &[String]| {
        if names.is_empty() {
            "-".to_owned()
        } else {
            names.join(", ")
        }
    };
    let mut text = format!(
        "imds-observer {} on {}: {} at {}\n",
        start.version,
        crate::report::escape::Escaped(start.host),
        join(&start.endpoints),
        join(&start.interfaces)
    );
    for missing in &start.missing {
        let _ = writeln!(
            text,
            "missing {}: {}; not visible: {}",
            missing.capability, missing.why, missing.blinds
        );
    }
    text
}

impl Output for TextOutput {
    type Item = Arc<Record>;

    fn write(&mut self, records: &[Arc<Record>]) -> io::Result<u64> {
        let mut out = String::new();
        for record in records {
            self.lines(record, &mut out);
        }
        if out.is_empty() {
            return Ok(0);
        }
        let written = self.destination.write_lines(out.as_bytes())?;
        let given_up = memchr::memchr_iter(b'\n', &out.as_bytes()[written..]).count() as u64;
        self.destination.gave_up(given_up);
        Ok(given_up)
    }

    fn idle(&mut self) -> io::Result<()> {
        self.destination.check()
    }

    fn close(&mut self) -> io::Result<()> {
        self.destination.close()
    }
}
