//! Keeps what a report needs: the last state of each finding, the total summary, the loss.

use std::sync::{Arc, Mutex, PoisonError};

use rustc_hash::FxHashMap;

use super::Sink;
use crate::filter::Kinds;
use crate::record::{Body, Code, Finding, FindingState, Kind, LossCounts, Record, Summary, Time};

/// Results of a run.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// In the order in which they opened, each in its last state.
    pub findings: Vec<Record<Finding>>,
    pub summary: Option<Record<Summary>>,
    pub loss: Option<Record<LossCounts>>,
    /// Findings beyond the bound.
    pub shed: u64,
    index: FxHashMap<(Arc<str>, Code, String), usize>,
    /// For findings that were resolved and opened again, the time of the first evidence and the count before.
    before: FxHashMap<usize, (Time, u64)>,
    limit: usize,
}

/// A sink whose other end the report holds.
#[derive(Clone, Debug)]
pub struct Collector(Arc<Mutex<Collected>>);

impl Collector {
    /// `limit`: findings that are kept; a trace with more has one cause that shows in the first.
    pub fn new(limit: usize) -> Self {
        let collected = Collected {
            limit,
            ..Collected::default()
        };
        Self(Arc::new(Mutex::new(collected)))
    }

    pub fn take(&self) -> Collected {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Sink for Collector {
    fn kinds(&self) -> Kinds {
        [Kind::Finding, Kind::Summary, Kind::Loss].into_iter().collect()
    }

    fn write(&mut self, record: &Arc<Record>) {
        let mut collected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Collected {
            findings,
            summary,
            loss,
            shed,
            index,
            before,
            limit,
        } = &mut *collected;
        match &record.body {
            Body::Finding(finding) => {
                let key = (record.host.clone(), finding.code, finding.subject.key.clone());
                match index.get(&key) {
                    // A finding that was resolved and opens again is one line of a report, with all of its evidence.
                    Some(at) => {
                        let known = &mut findings[*at];
                        if known.state == FindingState::Resolved && finding.state != FindingState::Resolved {
                            before.insert(*at, (known.first_seen, known.count));
                        }
                        *known = record.with(finding).cloned();
                        if let Some((first_seen, count)) = before.get(at) {
                            known.first_seen = known.first_seen.min(*first_seen);
                            known.count = known.count.saturating_add(*count);
                        }
                    }
                    None if findings.len() >= *limit => *shed += 1,
                    None => {
                        index.insert(key, findings.len());
                        findings.push(record.with(finding).cloned());
                    }
                }
            }
            Body::Summary(latest) if latest.total => *summary = Some(record.with(latest).cloned()),
            Body::Loss(latest) => *loss = Some(record.with(latest).cloned()),
            _ => {}
        }
    }

    fn shed(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).shed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Remedy, Severity, Subject};

    fn finding(state: FindingState, first_seen: u64, last_seen: u64, count: u64) -> Arc<Record> {
        let body = Body::Finding(Finding {
            code: Code::TightPolling,
            severity: Severity::High,
            state,
            subject: Subject {
                key: "a".to_owned(),
                name: "a".to_owned(),
                process: None,
                container: None,
                workload: None,
            },
            first_seen: Time(first_seen),
            last_seen: Time(last_seen),
            count,
            summary: String::new(),
            evidence: serde_json::Map::new(),
            remedy: Remedy::default(),
        });
        Arc::new(Record {
            time: Time(last_seen),
            host: "node-1".into(),
            body,
        })
    }

    #[test]
    fn a_finding_that_opens_again_keeps_its_first_evidence() {
        let mut collector = Collector::new(10);
        for record in [
            finding(FindingState::Open, 10, 20, 3),
            finding(FindingState::Resolved, 10, 30, 5),
            finding(FindingState::Open, 100, 100, 1),
            finding(FindingState::Update, 100, 120, 4),
            finding(FindingState::Resolved, 100, 120, 4),
            finding(FindingState::Open, 200, 210, 2),
        ] {
            collector.write(&record);
        }
        let [found] = &collector.take().findings[..] else {
            panic!("one finding")
        };
        assert_eq!(
            (found.first_seen, found.last_seen, found.count),
            (Time(10), Time(210), 11)
        );
    }
}
