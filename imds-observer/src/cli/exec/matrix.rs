//! `exec --matrix`: the command once for each usual setting, and a table.

use std::fmt::Write as _;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use imds_observer_standin::server::Tokens;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde::Serialize;
use serde_json::Value;

use super::{Against, ExecArgs, OutputFormat};
use crate::report::escape::{self, Escaped};
use crate::report::text::{Colour, span};

const PLACES: [(&str, u8); 3] = [("host", 0), ("container", 1), ("nested", 2)];
const TOKENS: [(&str, Tokens); 2] = [("optional", Tokens::Optional), ("required", Tokens::Required)];
const HOP_LIMITS: [u8; 2] = [1, 2];
/// A command that waits longer for IMDS than this works badly.
const LONG_NS: u64 = 500_000_000;

/// One setting, and what came of it.
#[derive(Debug, Serialize)]
struct Cell {
    against: String,
    tokens: &'static str,
    hop_limit: u8,
    place: &'static str,
    result: Outcome,
    exit_status: Option<i64>,
    signal: Option<i64>,
    waited_ns: u64,
    credentials_obtained: bool,
    versions: Vec<String>,
    reason: String,
    passed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    Works,
    Waits,
    Fails,
}

#[derive(Debug, Serialize)]
struct Matrix<'a> {
    command: &'a [String],
    cells: &'a [Cell],
    passed: bool,
}

impl ExecArgs {
    pub(super) fn run_matrix(&self) -> anyhow::Result<u8> {
        ensure!(
            self.output != OutputFormat::Html,
            "--matrix has the formats text and json (run one setting with --against for a page)"
        );
        let base = self.against.clone().unwrap_or_default();
        let mut cells = Vec::new();
        for (place, hops) in PLACES {
            for hop_limit in HOP_LIMITS {
                for (name, tokens) in TOKENS {
                    match self.cell(&base.with(tokens, hop_limit, hops), place, name)? {
                        Ok(cell) => cells.push(cell),
                        // The command isn't there, or this kernel makes no namespaces: the same in every setting.
                        Err(status) => return Ok(status),
                    }
                }
            }
        }
        let passed = cells.iter().all(|cell| cell.passed);
        let command = self.shown_command();
        let text = if self.output == OutputFormat::Json {
            let matrix = Matrix {
                command: &command,
                cells: &cells,
                passed,
            };
            escape::json(serde_json::to_string_pretty(&matrix)?) + "\n"
        } else {
            let terminal = self.write.is_none() && io::IsTerminal::is_terminal(&io::stdout());
            table(&command, &cells, Colour::on(terminal))
        };
        self.emit(&text)?;
        Ok(if passed { 0 } else { 3 })
    }

    /// One setting, in a process of its own: it moves into another network namespace.
    fn cell(&self, against: &Against, place: &'static str, tokens: &'static str) -> anyhow::Result<Result<Cell, u8>> {
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.args(["exec", "--quiet", "-o", "json", "--against", &against.to_string()]);
        if let Some(least) = self.fail_on {
            command.args(["--fail-on", least.as_str()]);
        }
        for assertion in self.assertions() {
            command.args(["--assert", &assertion.to_string()]);
        }
        let ends_with_us = || set_pdeathsig(Signal::SIGKILL).map_err(Into::into);
        // SAFETY: one system call between fork and exec.
        unsafe { command.pre_exec(ends_with_us) };
        let output = command
            .arg("--")
            .args(self.arguments())
            .stderr(Stdio::inherit())
            .output()
            .context("run a setting")?;
        if output.stdout.is_empty() {
            return match output.status.code().and_then(|status| u8::try_from(status).ok()) {
                Some(status @ 1..) => Ok(Err(status)),
                _ => bail!("the run with {against} was ended ({})", output.status),
            };
        }
        let story = serde_json::from_slice(&output.stdout).context("read a setting's report")?;
        Ok(Ok(Cell::new(&story, against, place, tokens)))
    }
}

impl Cell {
    fn new(story: &Value, against: &Against, place: &'static str, tokens: &'static str) -> Self {
        let waited_ns = story["waited_ns"].as_u64().unwrap_or(0);
        let exit_status = story["exit_status"].as_i64();
        let result = match exit_status {
            Some(0) if waited_ns < LONG_NS => Outcome::Works,
            Some(0) => Outcome::Waits,
            _ => Outcome::Fails,
        };
        let requests = story["requests"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut versions: Vec<String> = requests
            .iter()
            .filter_map(|request| request["request"]["imds_version"].as_str())
            .map(str::to_owned)
            .collect();
        versions.sort();
        versions.dedup();
        Self {
            against: against.to_string(),
            tokens,
            hop_limit: against.options.imds.hop_limit,
            place,
            result,
            exit_status,
            signal: story["signal"].as_i64(),
            waited_ns,
            credentials_obtained: story["credentials_obtained"] == true,
            versions,
            reason: reason(story, result),
            passed: story["passed"] == true,
        }
    }
}

/// The first finding explains the most, else the last request without a success.
fn reason(story: &Value, result: Outcome) -> String {
    if let Some(finding) = story["groups"][0]["subjects"][0]["summary"].as_str() {
        return finding.to_owned();
    }
    if result == Outcome::Works {
        return String::new();
    }
    let requests = story["requests"].as_array().map(Vec::as_slice).unwrap_or_default();
    if let Some(failed) = requests.iter().rev().find_map(failure) {
        return failed;
    }
    let no_requests = if requests.is_empty() {
        "no request to IMDS"
    } else {
        "all requests succeeded"
    };
    match (result, &story["exit_status"]) {
        (Outcome::Waits, _) => "slow responses".to_owned(),
        (_, Value::Number(status)) => format!("exited with status {status}; {no_requests}"),
        _ => format!("ended by signal {}; {no_requests}", story["signal"]),
    }
}

/// A request that was not answered with a success.
fn failure(record: &Value) -> Option<String> {
    if record["record"] == "connect" {
        let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
        let remote = text(&record["connection"]["remote"]);
        return Some(format!("connect to {remote}: {}", text(&record["outcome"])));
    }
    let request = &record["request"];
    let status = record["response"]["status"].as_u64();
    if record["record"] != "exchange" || status.is_some_and(|status| (200..300).contains(&status)) {
        return None;
    }
    let version = request["imds_version"].as_str().unwrap_or("unknown");
    let method = request["method"].as_str().unwrap_or("?");
    let path = request["path"].as_str().unwrap_or("?");
    Some(match status {
        Some(status) => format!("{method} {path} ({version}) was answered with {status}"),
        None => format!("{method} {path} ({version}) had no response"),
    })
}

fn table(command: &[String], cells: &[Cell], colour: Colour) -> String {
    let mut rows = vec![[
        "PLACE".to_owned(),
        "HOP LIMIT".to_owned(),
        "TOKENS".to_owned(),
        "RESULT".to_owned(),
        "CREDENTIALS".to_owned(),
        "REASON".to_owned(),
    ]];
    rows.extend(cells.iter().map(|cell| {
        let result = match cell.result {
            Outcome::Works => "works".to_owned(),
            Outcome::Waits => format!("works, waits {}", span(cell.waited_ns)),
            Outcome::Fails => match (cell.exit_status, cell.signal) {
                (Some(status), _) => format!("fails (status {status})"),
                (None, signal) => format!("fails (signal {})", signal.unwrap_or(0)),
            },
        };
        let credentials = match (cell.credentials_obtained, cell.versions.iter().any(|each| each == "v1")) {
            (true, true) => "yes, with v1",
            (true, false) => "yes",
            (false, _) => "no",
        };
        [
            cell.place.to_owned(),
            cell.hop_limit.to_string(),
            cell.tokens.to_owned(),
            result,
            credentials.to_owned(),
            Escaped(&cell.reason).to_string(),
        ]
    }));
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = format!("{}\n\n", Escaped(&command.join(" ")));
    for (index, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        let line = line.trim_end();
        out.push_str(&if index == 0 { colour.bold(line) } else { line.to_owned() });
        out.push('\n');
    }
    if !cells.iter().all(|cell| cell.passed) {
        out.push_str("\nan assertion or --fail-on failed; run the setting alone with --against for details:\n");
    }
    for cell in cells.iter().filter(|cell| !cell.passed) {
        let _ = writeln!(out, "  --against {}", cell.against);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cell(story: &Value) -> Cell {
        Cell::new(
            story,
            &Against::default().with(Tokens::Optional, 1, 1),
            "container",
            "optional",
        )
    }

    #[test]
    fn results_follow_the_status_and_the_wait() {
        let story = |status: Value, waited_ns: u64| {
            cell(
                &json!({"exit_status": status, "signal": null, "waited_ns": waited_ns, "requests": [],
                "groups": [], "credentials_obtained": false, "passed": true}),
            )
            .result
        };
        assert_eq!(story(json!(0), 1_000_000), Outcome::Works);
        assert_eq!(story(json!(0), 1_000_000_000), Outcome::Waits);
        assert_eq!(story(json!(1), 0), Outcome::Fails);
        assert_eq!(story(Value::Null, 0), Outcome::Fails);
    }

    #[test]
    fn the_table_names_the_reason() {
        let story = json!({"exit_status": 0, "signal": null, "waited_ns": 1_002_000_000u64,
            "requests": [{"request": {"imds_version": "token"}}, {"request": {"imds_version": "v1"}}],
            "groups": [{"subjects": [{"summary": "the token response was lost"}]}],
            "credentials_obtained": true, "passed": true});
        let text = table(&["aws".to_owned()], &[cell(&story)], Colour(false));
        let expected = "\
aws

PLACE      HOP LIMIT  TOKENS    RESULT               CREDENTIALS   REASON
container  1          optional  works, waits 1.00 s  yes, with v1  the token response was lost
";
        assert_eq!(text, expected);
    }
}
