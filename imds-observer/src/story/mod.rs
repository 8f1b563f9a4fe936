//! What did one command do with the metadata service? Its requests on a time line, what they cost, and whether assertions hold.

pub mod assertion;
mod text;

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::filter::Kinds;
use crate::imds::{below_version, normalise, role_of};
use crate::record::{
    Body, Code, Dialect, Exchange, ExchangeOutcome, Finding, ImdsVersion, Kind, Record, Severity, Time,
};
use crate::report::escape;
use crate::report::groups::{Group, groups};
use crate::sinks::Sink;
use crate::sinks::collect::Collected;
use assertion::{Assertion, Checked};

/// Records of one command that are kept; more are counted.
pub const MAX_RECORDS: usize = 10_000;

/// A longer time without a request is no pause between two attempts: the SDK for Go pauses for 1 s.
const MAX_PAUSE_NS: u64 = 2_000_000_000;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    Status(i32),
    Signal(i32),
}

impl Exit {
    /// As a shell reports it.
    pub fn code(self) -> u8 {
        match self {
            Self::Status(status) => status as u8,
            Self::Signal(signal) => 128u8.wrapping_add(signal as u8),
        }
    }
}

/// A command's requests and what was found in them.
#[derive(Debug)]
pub struct Story {
    /// With its secrets replaced.
    pub command: Vec<String>,
    pub end: Exit,
    pub began: Time,
    pub ended: Time,
    /// The stand-in's options; `None`: the host's own metadata service.
    pub against: Option<String>,
    /// Exchanges, failed connects and drops, by time.
    pub records: Vec<Arc<Record>>,
    /// Records beyond [`MAX_RECORDS`].
    pub omitted: u64,
    pub collected: Collected,
    /// Facts that were not visible, and the reasons.
    pub missing: Vec<String>,
}

/// Keeps a command's records.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<Mutex<(Vec<Arc<Record>>, u64)>>);

impl Recorder {
    /// The records by time, and how many are not among them.
    pub fn take(&self) -> (Vec<Arc<Record>>, u64) {
        let (mut records, omitted) = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        records.sort_by_key(|record| record.time);
        (records, omitted)
    }
}

impl Sink for Recorder {
    fn kinds(&self) -> Kinds {
        [Kind::Exchange, Kind::Connect, Kind::Drop].into_iter().collect()
    }

    fn write(&mut self, record: &Arc<Record>) {
        let (records, omitted) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if records.len() < MAX_RECORDS {
            records.push(Arc::clone(record));
        } else {
            *omitted += 1;
        }
    }
}

/// The object that `exec -o json` writes.
#[derive(Debug, Serialize)]
struct Object<'a> {
    command: &'a [String],
    exit_status: Option<i32>,
    signal: Option<i32>,
    against: Option<&'a str>,
    from: Time,
    to: Time,
    duration_ns: u64,
    waited_ns: u64,
    credentials_obtained: bool,
    requests: Vec<&'a Record>,
    omitted: u64,
    summary: Value,
    findings: &'a [Record<Finding>],
    groups: Value,
    loss: Value,
    missing: &'a [String],
    assertions: &'a [Checked],
    passed: bool,
}

impl Story {
    pub fn exchanges(&self) -> impl Iterator<Item = (Time, &Exchange)> {
        self.records.iter().filter_map(|record| match &record.body {
            Body::Exchange(exchange) => Some((record.time, exchange)),
            _ => None,
        })
    }

    /// Time that the command spent waiting for responses and connections, and before it tried again what had failed without a response.
    /// What overlaps counts once.
    pub fn waited_ns(&self) -> u64 {
        let mut spans = Vec::new();
        for (index, record) in self.records.iter().enumerate() {
            let Some((from, to)) = self.span(record) else { continue };
            let retried = has_no_response(record).then(|| self.next_attempt(&self.records[index + 1..], record, to));
            spans.push((from, retried.flatten().unwrap_or(to)));
        }
        spans.sort_unstable();
        let mut total = 0;
        let mut until = 0;
        for (from, to) in spans {
            total += to.saturating_sub(from.max(until));
            until = until.max(to);
        }
        total
    }

    /// When the process that waited until `to` sent its next request, if it paused for no longer than SDKs do between attempts.
    fn next_attempt(&self, later: &[Arc<Record>], failed: &Record, to: u64) -> Option<u64> {
        let mut attempts = later.iter().filter(|record| pid(record) == pid(failed));
        let next = attempts.find_map(|record| self.span(record).filter(|(from, _)| *from >= to))?;
        (next.0 - to <= MAX_PAUSE_NS).then_some(next.0)
    }

    /// From when to when the command waited for this request or connection.
    fn span(&self, record: &Record) -> Option<(u64, u64)> {
        let ns = self.cost(record)?;
        let from = match &record.body {
            Body::Exchange(exchange) => record.time.0.saturating_sub(exchange.connect_ns.unwrap_or(0)),
            _ => record.time.0,
        };
        Some((from, from.saturating_add(ns)))
    }

    /// Time that a request cost, including its handshake.
    fn cost(&self, record: &Record) -> Option<u64> {
        match &record.body {
            Body::Exchange(exchange) => {
                let still_open = || self.ended.since(record.time);
                let waited = exchange.waited_ns.or(exchange.latency_ns).unwrap_or_else(still_open);
                Some(waited.saturating_add(exchange.connect_ns.unwrap_or(0)))
            }
            Body::Connect(connect) => Some(connect.elapsed_ns),
            _ => None,
        }
    }

    /// Whether a response with credentials reached the command.
    pub fn credentials_obtained(&self) -> bool {
        let unusable = self.collected.findings.iter();
        let unusable = unusable
            .clone()
            .any(|finding| finding.code == Code::CredentialsUnusable);
        !unusable && self.exchanges().any(|(_, exchange)| gives_credentials(exchange))
    }

    pub fn count_version(&self, version: ImdsVersion) -> u64 {
        let is = |exchange: &Exchange| exchange.request.imds_version == Some(version);
        self.exchanges().filter(|(_, exchange)| is(exchange)).count() as u64
    }

    /// Requests without a response of status 2xx, and connections that never were.
    pub fn failed(&self) -> u64 {
        let failed = |record: &&Arc<Record>| match &record.body {
            Body::Exchange(exchange) => !is_success(exchange),
            Body::Connect(_) => true,
            _ => false,
        };
        self.records.iter().filter(failed).count() as u64
    }

    /// Whether an assertion fails.
    pub fn judge(&self, assertions: &[Assertion]) -> Vec<Checked> {
        assertions.iter().map(|assertion| assertion.judge(self)).collect()
    }

    pub fn has_finding(&self, least: Severity) -> bool {
        self.collected.findings.iter().any(|finding| finding.severity >= least)
    }

    /// One JSON object, with a line end.
    pub fn json(&self, assertions: &[Checked], passed: bool) -> anyhow::Result<String> {
        let findings = &self.collected.findings;
        let groups: Vec<_> = groups(findings).iter().map(Group::object).collect();
        let (exit_status, signal) = match self.end {
            Exit::Status(status) => (Some(status), None),
            Exit::Signal(signal) => (None, Some(signal)),
        };
        let object = Object {
            command: &self.command,
            exit_status,
            signal,
            against: self.against.as_deref(),
            from: self.began,
            to: self.ended,
            duration_ns: self.ended.since(self.began),
            waited_ns: self.waited_ns(),
            credentials_obtained: self.credentials_obtained(),
            requests: self.records.iter().map(Arc::as_ref).collect(),
            omitted: self.omitted,
            summary: serde_json::to_value(&self.collected.summary)?,
            findings,
            groups: serde_json::to_value(groups)?,
            loss: serde_json::to_value(&self.collected.loss)?,
            missing: &self.missing,
            assertions,
            passed,
        };
        Ok(escape::json(serde_json::to_string_pretty(&object)?) + "\n")
    }
}

/// The request may have been answered, but the command got nothing.
fn has_no_response(record: &Record) -> bool {
    match &record.body {
        Body::Exchange(exchange) => !is_delivered(exchange),
        Body::Connect(_) => true,
        _ => false,
    }
}

fn pid(record: &Record) -> Option<u32> {
    let process = match &record.body {
        Body::Exchange(exchange) => exchange.process.as_ref(),
        Body::Connect(connect) => connect.process.as_ref(),
        _ => None,
    };
    process.map(|process| process.pid)
}

fn is_success(exchange: &Exchange) -> bool {
    let status = exchange.response.as_ref().and_then(|response| response.status);
    is_delivered(exchange) && status.is_some_and(|status| (200..300).contains(&status))
}

fn is_delivered(exchange: &Exchange) -> bool {
    exchange.outcome == ExchangeOutcome::Answered
        && exchange
            .response
            .as_ref()
            .is_some_and(|response| response.delivered != Some(false))
}

fn gives_credentials(exchange: &Exchange) -> bool {
    let request = &exchange.request;
    let Some(path) = request.path.as_deref() else {
        return false;
    };
    let path = path.split('?').next().unwrap_or(path);
    let path = normalise(path);
    let is_theirs = match request.dialect {
        Dialect::Aws => role_of(below_version(&path)).is_some(),
        Dialect::EksPodIdentity | Dialect::Ecs => path.contains("/credentials"),
        _ => false,
    };
    is_theirs && request.method.as_deref() == Some("GET") && is_success(exchange)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_772_366_400_000_000_000;

    /// A request of a process `app` that begins `at_ms` after the start and costs `waited_ms`.
    pub(super) fn exchange(
        at_ms: u64,
        waited_ms: u64,
        version: &str,
        path: &str,
        response: Option<(u16, u8, bool)>,
    ) -> Arc<Record> {
        let mut record = Record::<Exchange>::example("app", 200);
        record.time = Time(START + at_ms * 1_000_000);
        let exchange = &mut record.body;
        exchange.request.path = Some(path.to_owned());
        exchange.request.method = Some(if version == "token" { "PUT" } else { "GET" }.to_owned());
        exchange.request.imds_version = ImdsVersion::ALL.into_iter().find(|each| each.as_str() == version);
        exchange.waited_ns = Some(waited_ms * 1_000_000);
        exchange.latency_ns = Some(300_000);
        match response {
            Some((status, ttl, delivered)) => {
                let response = exchange.response.as_mut().expect("the example has one");
                response.status = Some(status);
                response.ttl = Some(ttl);
                response.delivered = Some(delivered);
                if !delivered {
                    exchange.outcome = ExchangeOutcome::Lost;
                }
            }
            None => {
                exchange.response = None;
                exchange.latency_ns = None;
                exchange.outcome = ExchangeOutcome::Closed;
            }
        }
        Arc::new(Record {
            time: record.time,
            host: record.host.clone(),
            body: Body::Exchange(record.body),
        })
    }

    pub(super) const ROLE: &str = "/latest/meta-data/iam/security-credentials/lab-role";

    /// botocore in a container with hop limit 1.
    pub(super) fn botocore() -> Story {
        story(vec![
            exchange(10, 1000, "token", "/latest/api/token", Some((200, 1, false))),
            exchange(
                1011,
                1,
                "v1",
                "/latest/meta-data/iam/security-credentials/",
                Some((200, 255, true)),
            ),
            exchange(1013, 1, "v1", ROLE, Some((200, 255, true))),
        ])
    }

    pub(super) fn story(records: Vec<Arc<Record>>) -> Story {
        Story {
            command: vec!["aws".to_owned(), "sts".to_owned()],
            end: Exit::Status(0),
            began: Time(START),
            ended: Time(START + 2_000_000_000),
            against: Some("tokens=optional,hop-limit=1,hops=1".to_owned()),
            records,
            omitted: 0,
            collected: Collected::default(),
            missing: Vec::new(),
        }
    }

    #[test]
    fn waiting_that_overlaps_counts_once() {
        // With the millisecond between the lost response and the next request.
        assert_eq!(botocore().waited_ns(), 1_003_000_000);
        let both = story(vec![
            exchange(0, 1000, "token", "/latest/api/token", None),
            exchange(500, 1000, "token", "/latest/api/token", None),
        ]);
        assert_eq!(both.waited_ns(), 1_500_000_000);
    }

    /// The SDK for Go: 0.5 s for each of three attempts, and 1 s between them.
    #[test]
    fn a_pause_before_the_next_attempt_is_a_wait() {
        let token = |at_ms, response| exchange(at_ms, 500, "token", "/latest/api/token", response);
        let lost = Some((200, 1, false));
        let listing = |at_ms| exchange(at_ms, 1, "v1", "/latest/meta-data/", Some((200, 255, true)));
        let go = story(vec![
            token(0, lost),
            token(1500, lost),
            token(3000, lost),
            listing(3500),
        ]);
        assert_eq!(go.waited_ns(), 3_501_000_000);
        // After a response, or a minute later, the command was busy with something else.
        let busy = story(vec![
            token(0, Some((403, 255, true))),
            token(1500, lost),
            listing(60_000),
        ]);
        assert_eq!(busy.waited_ns(), 1_001_000_000);
    }

    #[test]
    fn credentials_are_obtained_if_they_arrive() {
        assert!(botocore().credentials_obtained());
        let lost = story(vec![exchange(0, 1, "v2", ROLE, Some((200, 1, false)))]);
        assert!(!lost.credentials_obtained());
        let refused = story(vec![exchange(0, 1, "v1", ROLE, Some((401, 255, true)))]);
        assert!(!refused.credentials_obtained());
        let listing = "/latest/meta-data/iam/security-credentials/";
        let listed = story(vec![exchange(0, 1, "v2", listing, Some((200, 255, true)))]);
        assert!(!listed.credentials_obtained());
    }

    #[test]
    fn the_object_has_what_scripts_need() {
        let text = botocore().json(&[], true).unwrap();
        let object: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["exit_status"], 0);
        assert_eq!(object["signal"], Value::Null);
        assert_eq!(object["requests"].as_array().map(Vec::len), Some(3));
        assert_eq!(object["credentials_obtained"], true);
        assert_eq!(object["waited_ns"], 1_003_000_000);
    }

    #[test]
    fn a_signal_is_a_shells_status() {
        assert_eq!(Exit::Signal(9).code(), 137);
        assert_eq!(Exit::Status(7).code(), 7);
    }
}
