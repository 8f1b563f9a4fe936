//! Findings, grouped by cause, most severe first.

use serde_json::Value;

use super::super::groups::{Group as CauseGroup, groups};
use super::super::text::counted;
use super::MAX_FINDINGS;
use super::figure::{clean, moment};
use crate::record::{Finding, FindingState, Record};

/// Findings with one cause.
pub(super) struct Cause {
    pub(super) severity: &'static str,
    pub(super) code: &'static str,
    /// The subject, or how many there are.
    pub(super) title: String,
    /// Empty if there is only one finding, which contains it.
    pub(super) cause: String,
    pub(super) findings: Vec<Row>,
    pub(super) remedy: String,
    pub(super) commands: Vec<String>,
}

pub(super) struct Row {
    pub(super) severity: &'static str,
    pub(super) subject: String,
    pub(super) state: &'static str,
    pub(super) summary: String,
    pub(super) seen: String,
    pub(super) evidence: Vec<(String, String)>,
}

/// The worst findings, up to the bound, by cause.
pub(super) fn causes(findings: &[&Record<Finding>]) -> Vec<Cause> {
    let shown = &findings[..findings.len().min(MAX_FINDINGS)];
    let groups = groups(shown.iter().copied());
    groups.iter().map(cause).collect()
}

pub(super) fn cause(group: &CauseGroup<'_>) -> Cause {
    let remedy = group.remedy();
    let alone = group.findings.len() == 1;
    Cause {
        severity: group.severity().as_str(),
        code: group.code().as_str(),
        title: if alone {
            clean(&group.first().subject.name)
        } else {
            counted(group.findings.len() as u64, "subject")
        },
        cause: if alone { String::new() } else { clean(&group.cause()) },
        findings: group.findings.iter().map(|finding| shown(finding)).collect(),
        remedy: clean(&remedy.text),
        commands: remedy.commands.iter().map(|command| clean(command)).collect(),
    }
}

pub(super) fn shown(finding: &Finding) -> Row {
    Row {
        severity: finding.severity.as_str(),
        subject: clean(&finding.subject.name),
        state: match finding.state {
            FindingState::Resolved => "resolved",
            FindingState::Open | FindingState::Update => "still open at the end",
        },
        summary: clean(&finding.summary),
        seen: format!(
            "seen {}, first {}, last {}",
            counted(finding.count, "time"),
            moment(finding.first_seen),
            moment(finding.last_seen)
        ),
        evidence: finding
            .evidence
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (clean(&name.replace('_', " ")), clean(&plain(value))))
            .collect(),
    }
}

/// A value of the evidence as people write it.
pub(super) fn plain(value: &Value) -> String {
    let all = |parts: Vec<String>| {
        if parts.is_empty() {
            "none".to_owned()
        } else {
            parts.join(", ")
        }
    };
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Array(values) => all(values.iter().map(plain).collect()),
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(_, value)| !value.is_null());
            all(fields.map(|(name, value)| format!("{name} {}", plain(value))).collect())
        }
        other => other.to_string(),
    }
}
