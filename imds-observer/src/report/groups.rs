//! Which findings have one cause? The stream has one record for each subject; people are shown each cause once, with one remedy.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::detectors::CATALOGUE;
use crate::record::{Code, Finding, FindingState, Host, Record, Remedy, Severity, Time};

/// Findings with one cause.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// Worst first, then by the time of the first evidence. Never empty.
    pub findings: Vec<&'a Record<Finding>>,
    /// The one whose remedy is shown: it is right for all of them.
    pub remedy_of: &'a Record<Finding>,
}

/// The same in `-o json`.
#[derive(Debug, Serialize)]
pub struct GroupObject<'a> {
    cause: String,
    code: Code,
    severity: Severity,
    subjects: Vec<SubjectObject<'a>>,
    remedy: &'a Remedy,
}

#[derive(Debug, Serialize)]
struct SubjectObject<'a> {
    host: &'a Host,
    key: &'a str,
    name: &'a str,
    workload: Option<&'a str>,
    severity: Severity,
    state: FindingState,
    first_seen: Time,
    last_seen: Time,
    count: u64,
    summary: &'a str,
}

/// Properties that findings with one cause share.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key<'a> {
    code: Code,
    cause: Option<&'a str>,
    /// A firewall's hook, a kind of route.
    at: Option<&'a str>,
    /// If no command shows what to change, the path does.
    path: Option<&'a str>,
    remedy: (&'a [String], &'a str),
}

/// Groups, worst first; of one severity those in which requests fail before those in which they only shouldn't be; then by the time of the
/// first evidence.
pub fn groups<'a>(findings: impl IntoIterator<Item = &'a Record<Finding>>) -> Vec<Group<'a>> {
    let mut by_key: BTreeMap<Key<'_>, Vec<&Record<Finding>>> = BTreeMap::new();
    for finding in findings {
        by_key.entry(key(finding)).or_default().push(finding);
    }
    let mut groups: Vec<Group<'_>> = by_key
        .into_values()
        .map(|mut findings| {
            findings.sort_by(|a, b| order(a).cmp(&order(b)).then_with(|| a.subject.key.cmp(&b.subject.key)));
            Group {
                remedy_of: remedy_of(&findings),
                findings,
            }
        })
        .collect();
    groups.sort_by_key(|group| order(group.first()));
    groups
}

fn order(finding: &Finding) -> (Reverse<Severity>, bool, Time, Code) {
    let works = matches!(
        finding.code,
        Code::Imdsv1Request | Code::TokenNotReused | Code::CredentialChurn | Code::NodeRoleUsed
    );
    (Reverse(finding.severity), works, finding.first_seen, finding.code)
}

/// Whether one remedy ends both.
pub fn have_one_cause(a: &Finding, b: &Finding) -> bool {
    key(a) == key(b)
}

fn key(finding: &Finding) -> Key<'_> {
    let evidence = |name| finding.evidence.get(name).and_then(Value::as_str);
    let cause = evidence("cause");
    let Remedy { text, commands } = &finding.remedy;
    // One hop limit is set for all pods of an instance, however many hops each of them needs.
    let is_hop_limit = finding.code == Code::TokenResponseLost || cause == Some(Code::TokenResponseLost.as_str());
    Key {
        code: finding.code,
        cause,
        at: evidence("at"),
        path: evidence("path").filter(|_| commands.is_empty()),
        remedy: match (is_hop_limit, commands.is_empty()) {
            (true, _) => (&[], ""),
            (false, true) => (&[], text),
            (false, false) => (commands, ""),
        },
    }
}

/// For a hop limit, the finding that needs the largest one; else one with the most frequent remedy.
fn remedy_of<'a>(findings: &[&'a Record<Finding>]) -> &'a Record<Finding> {
    let limit = |finding: &Finding| {
        let limit = finding.evidence.get("smallest_sufficient_hop_limit");
        limit.and_then(Value::as_u64).unwrap_or(0)
    };
    let alike = |finding: &Finding| {
        let same = findings.iter().filter(|other| other.remedy == finding.remedy);
        same.count()
    };
    let mut best = findings[0];
    let mut rank = (limit(best), alike(best));
    for finding in &findings[1..] {
        // Looking at all pairs of a group of thousands would take seconds.
        let other = (limit(finding), if findings.len() <= 256 { alike(finding) } else { 0 });
        if other > rank {
            (best, rank) = (finding, other);
        }
    }
    best
}

impl<'a> Group<'a> {
    /// The worst.
    pub fn first(&self) -> &'a Record<Finding> {
        self.findings[0]
    }

    pub fn code(&self) -> Code {
        self.first().code
    }

    pub fn severity(&self) -> Severity {
        self.first().severity
    }

    /// The cause, for all subjects.
    pub fn cause(&self) -> String {
        let first = self.first();
        let line = CATALOGUE
            .iter()
            .find(|entry| entry.code == first.code)
            .map_or_else(|| first.code.as_str(), |entry| entry.line);
        match first.evidence.get("cause").and_then(Value::as_str) {
            Some(cause) => format!("{line} ({cause})"),
            None => line.to_owned(),
        }
    }

    pub fn remedy(&self) -> &'a Remedy {
        &self.remedy_of.remedy
    }

    pub fn is_resolved(&self) -> bool {
        self.findings
            .iter()
            .all(|finding| finding.state == FindingState::Resolved)
    }

    pub fn count(&self) -> u64 {
        self.findings
            .iter()
            .fold(0, |count, finding| count.saturating_add(finding.count))
    }

    /// First and last evidence of all.
    pub fn seen(&self) -> (Time, Time) {
        let first = self.findings.iter().map(|finding| finding.first_seen).min();
        let last = self.findings.iter().map(|finding| finding.last_seen).max();
        (first.unwrap_or_default(), last.unwrap_or_default())
    }

    pub fn object(&self) -> GroupObject<'a> {
        GroupObject {
            cause: self.cause(),
            code: self.code(),
            severity: self.severity(),
            subjects: self
                .findings
                .iter()
                .map(|finding| SubjectObject {
                    host: &finding.host,
                    key: &finding.subject.key,
                    name: &finding.subject.name,
                    workload: finding.subject.workload.as_deref(),
                    severity: finding.severity,
                    state: finding.state,
                    first_seen: finding.first_seen,
                    last_seen: finding.last_seen,
                    count: finding.count,
                    summary: &finding.summary,
                })
                .collect(),
            remedy: self.remedy(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::record::Subject;

    fn finding(code: Code, subject: &str, evidence: &Value, commands: &[&str], text: &str) -> Record<Finding> {
        let body = Finding {
            code,
            severity: Severity::High,
            state: FindingState::Open,
            subject: Subject {
                key: subject.to_owned(),
                name: subject.to_owned(),
                process: None,
                container: None,
                workload: None,
            },
            first_seen: Time(1),
            last_seen: Time(9),
            count: 2,
            summary: format!("{subject} has it"),
            evidence: evidence.as_object().unwrap().clone(),
            remedy: Remedy {
                text: text.to_owned(),
                commands: commands.iter().map(|command| (*command).to_owned()).collect(),
            },
        };
        Record {
            time: Time(9),
            host: "node-1".into(),
            body,
        }
    }

    #[test]
    fn one_hop_limit_is_one_cause_and_the_largest_need_decides() {
        let limit = |limit: u64| json!({ "smallest_sufficient_hop_limit": limit });
        let findings: Vec<Record<Finding>> = (0..40)
            .map(|pod| {
                let needed = if pod == 7 { 3 } else { 2 };
                let command = format!("set {needed}");
                finding(
                    Code::TokenResponseLost,
                    &format!("pod {pod}"),
                    &limit(needed),
                    &[&command],
                    "",
                )
            })
            .collect();
        let groups = groups(&findings);
        let [group] = &groups[..] else { panic!("{groups:?}") };
        assert_eq!((group.findings.len(), group.count()), (40, 80));
        assert_eq!(group.remedy().commands, ["set 3"]);
    }

    #[test]
    fn another_cause_remedy_or_path_is_another_group() {
        let cause = |cause: &str| json!({ "cause": cause });
        let path = |path: &str| json!({ "path": path });
        let findings = [
            finding(Code::Imdsv1Request, "a", &cause("client"), &[], "Update it."),
            finding(Code::Imdsv1Request, "b", &cause("client"), &[], "Update it."),
            finding(
                Code::Imdsv1Request,
                "c",
                &cause("token-request-throttled"),
                &[],
                "Update it.",
            ),
            finding(Code::Imdsv1Request, "d", &cause("client"), &[], "Set an option."),
            finding(Code::NotFound, "a", &path("/x"), &[], "Correct the path."),
            finding(Code::NotFound, "b", &path("/y"), &[], "Correct the path."),
            finding(Code::NotFound, "c", &path("/tags/x"), &["enable tags"], "Tags are off."),
            finding(
                Code::NotFound,
                "d",
                &path("/tags/y"),
                &["enable tags"],
                "Tags are off here too.",
            ),
        ];
        let mut sizes: Vec<Vec<&str>> = groups(&findings)
            .iter()
            .map(|group| {
                let names = group.findings.iter().map(|finding| finding.subject.name.as_str());
                names.collect()
            })
            .collect();
        sizes.sort();
        assert_eq!(
            sizes,
            [
                vec!["a"],
                vec!["a", "b"],
                vec!["b"],
                vec!["c"],
                vec!["c", "d"],
                vec!["d"]
            ]
        );
        assert!(have_one_cause(&findings[0], &findings[1]) && !have_one_cause(&findings[0], &findings[2]));
    }
}
