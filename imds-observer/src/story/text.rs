//! A story as text.

use std::fmt::Write as _;

use super::assertion::Checked;
use super::{Exit, Story};
use crate::record::{Body, Exchange, ExchangeOutcome, Process, Record};
use crate::report::escape::Escaped;
use crate::report::groups::groups;
use crate::report::text::{self, Colour, counted, span};

/// Lines of the time line; what is between its beginning and its end is one line.
const MAX_LINES: usize = 60;
/// Lines at its beginning, if it is cut.
const FIRST_LINES: usize = 40;
/// Characters of a path.
const MAX_PATH: usize = 64;

const HEADER: [&str; 6] = ["TIME", "CALLER", "REQUEST", "VERSION", "RESULT", "WAITED"];

impl Story {
    pub fn text(&self, assertions: &[Checked], colour: Colour) -> String {
        let mut out = self.title();
        self.timeline(colour, &mut out);
        self.totals(&mut out);
        for group in groups(&self.collected.findings) {
            out.push('\n');
            out.push_str(&text::group(&group, colour));
        }
        if self.collected.findings.is_empty() {
            out.push_str("\nno findings\n");
        }
        if !assertions.is_empty() {
            out.push('\n');
        }
        for verdict in assertions {
            let result = if verdict.holds {
                "holds ".to_owned()
            } else {
                colour.bold("FAILED")
            };
            let _ = writeln!(
                out,
                "{result} {} (actual: {})",
                Escaped(&verdict.assertion),
                verdict.actual
            );
        }
        if !self.missing.is_empty() {
            out.push_str("\nnot visible:\n");
        }
        for missing in &self.missing {
            let _ = writeln!(out, "  {}", Escaped(missing));
        }
        if let Some(loss) = &self.collected.loss {
            out.push_str(&text::loss(loss));
        }
        out
    }

    fn title(&self) -> String {
        let end = match self.end {
            Exit::Status(status) => format!("exited with status {status}"),
            Exit::Signal(signal) => format!("was ended by signal {signal}"),
        };
        let mut out = format!(
            "{} {end} after {}\n",
            Escaped(&self.command.join(" ")),
            span(self.ended.since(self.began))
        );
        if let Some(against) = &self.against {
            let _ = writeln!(out, "against a stand-in: {}", Escaped(against));
        }
        out.push('\n');
        out
    }

    fn timeline(&self, colour: Colour, out: &mut String) {
        let shown: Vec<[String; 6]> = self.records.iter().filter_map(|record| self.row(record)).collect();
        if shown.is_empty() {
            out.push_str("no requests to IMDS observed\n");
            return;
        }
        let hidden = shown.len().saturating_sub(MAX_LINES);
        let (first, last) = if hidden > 0 {
            (FIRST_LINES, shown.len() - (MAX_LINES - FIRST_LINES))
        } else {
            (shown.len(), shown.len())
        };
        let mut rows = vec![HEADER.map(str::to_owned)];
        rows.extend(shown[..first].iter().cloned());
        rows.extend(shown[last..].iter().cloned());
        let mut widths = [0; 6];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for (index, row) in rows.iter().enumerate() {
            if hidden > 0 && index == first + 1 {
                let _ = writeln!(out, "... {} not shown ...", counted(hidden as u64, "line"));
            }
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                let _ = if column == 0 || column == 5 {
                    write!(line, "{gap}{cell:>width$}")
                } else {
                    write!(line, "{gap}{cell:<width$}")
                };
            }
            let line = line.trim_end();
            out.push_str(&if index == 0 { colour.bold(line) } else { line.to_owned() });
            out.push('\n');
        }
        if self.omitted > 0 {
            let _ = writeln!(out, "and {} that were not kept", counted(self.omitted, "record"));
        }
    }

    fn row(&self, record: &Record) -> Option<[String; 6]> {
        let time = format!("+{:.3} s", record.time.since(self.began) as f64 / 1e9);
        let waited = self.cost(record).map(span).unwrap_or_default();
        match &record.body {
            Body::Exchange(exchange) => {
                let request = &exchange.request;
                let method = request.method.as_deref().unwrap_or("?");
                let path = request.path.as_deref().unwrap_or("(unreadable)");
                Some([
                    time,
                    caller(exchange.process.as_deref()),
                    format!("{} {}", Escaped(method), shortened(path)),
                    request
                        .imds_version
                        .map_or("unknown", |version| version.as_str())
                        .to_owned(),
                    result(exchange),
                    waited,
                ])
            }
            Body::Connect(connect) => Some([
                time,
                caller(connect.process.as_deref()),
                format!("connect to {}", Escaped(&connect.connection.remote)),
                "-".to_owned(),
                connect.outcome.as_str().to_owned(),
                waited,
            ]),
            _ => None,
        }
    }

    fn totals(&self, out: &mut String) {
        let requests = self.exchanges().count() as u64;
        let _ = write!(
            out,
            "\n{}, {} without a success; {} spent waiting; credentials ",
            counted(requests, "request"),
            self.failed(),
            span(self.waited_ns())
        );
        out.push_str(if self.credentials_obtained() {
            "obtained\n"
        } else {
            "not obtained\n"
        });
    }
}

fn caller(process: Option<&Process>) -> String {
    process.map_or_else(
        || "unknown".to_owned(),
        |process| format!("{}[{}]", Escaped(&process.comm), process.pid),
    )
}

fn result(exchange: &Exchange) -> String {
    let response = exchange.response.as_ref();
    let status = response.and_then(|response| response.status);
    let status = status.map_or_else(|| "no HTTP".to_owned(), |status| status.to_string());
    match (exchange.outcome, response) {
        (ExchangeOutcome::Answered, _) => status,
        (ExchangeOutcome::Lost, Some(response)) => match response.ttl {
            Some(ttl) => format!("lost ({status} arrived with TTL {ttl})"),
            None => format!("lost ({status})"),
        },
        (ExchangeOutcome::Lost, None) => "lost".to_owned(),
        (ExchangeOutcome::Unanswered, _) => "no response".to_owned(),
        (ExchangeOutcome::Open, _) => "no response yet".to_owned(),
        (ExchangeOutcome::Reset, _) => "reset".to_owned(),
        (ExchangeOutcome::Closed, _) => "no response, closed".to_owned(),
    }
}

fn shortened(path: &str) -> String {
    let path = Escaped(path).to_string();
    let length = path.chars().count();
    if length <= MAX_PATH {
        return path;
    }
    // The end distinguishes paths.
    let end: String = path.chars().skip(length - (MAX_PATH - 1)).collect();
    format!("…{end}")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{botocore, exchange, story};
    use super::*;

    #[test]
    fn a_lost_token_response_is_seen_on_the_time_line() {
        let text = botocore().text(&[], Colour(false));
        let expected = "\
aws sts exited with status 0 after 2.00 s
against a stand-in: tokens=optional,hop-limit=1,hops=1

    TIME  CALLER  REQUEST                                                  VERSION  RESULT                          WAITED
+0.010 s  app[7]  PUT /latest/api/token                                    token    lost (200 arrived with TTL 1)   1.00 s
+1.011 s  app[7]  GET /latest/meta-data/iam/security-credentials/          v1       200                            1.00 ms
+1.013 s  app[7]  GET /latest/meta-data/iam/security-credentials/lab-role  v1       200                            1.00 ms

3 requests, 1 without a success; 1.00 s spent waiting; credentials obtained

no findings
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_long_time_line_is_cut_in_the_middle() {
        let records = (0..100).map(|at| exchange(at, 1, "v2", &format!("/latest/{at}"), Some((200, 255, true))));
        let text = story(records.collect()).text(&[], Colour(false));
        assert!(text.contains("... 40 lines not shown ..."), "{text}");
        assert!(text.contains("/latest/39 ") && !text.contains("/latest/40 ") && text.contains("/latest/80 "));
    }

    #[test]
    fn assertions_show_what_they_were_compared_with() {
        let story = botocore();
        let text = story.text(&story.judge(&["no v1".parse().unwrap()]), Colour(false));
        assert!(text.contains("FAILED no v1 (actual: 2)\n"), "{text}");
    }
}
