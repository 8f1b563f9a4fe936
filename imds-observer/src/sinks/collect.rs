//! Keeps what a report needs: the last state of each finding, the total summary, the loss.

use std::sync::{Arc, Mutex, PoisonError};

use rustc_hash::FxHashMap;

use super::Sink;
use crate::filter::Kinds;
use crate::record::{Code, Finding, Kind, Loss, Record, Summary};

/// What came out of a run.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// In the order in which they opened, each in its last state.
    pub findings: Vec<Finding>,
    pub summary: Option<Summary>,
    pub loss: Option<Loss>,
    /// Findings beyond the bound.
    pub shed: u64,
    index: FxHashMap<(Arc<str>, Code, String), usize>,
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
            limit,
        } = &mut *collected;
        match record.as_ref() {
            Record::Finding(finding) => {
                let key = (finding.host.clone(), finding.code, finding.subject.key.clone());
                match index.get(&key) {
                    // The same subject may fall ill again after it had recovered: that is the same line of a report.
                    Some(at) => findings[*at].clone_from(finding),
                    None if findings.len() >= *limit => *shed += 1,
                    None => {
                        index.insert(key, findings.len());
                        findings.push(finding.clone());
                    }
                }
            }
            Record::Summary(latest) if latest.total => *summary = Some(latest.clone()),
            Record::Loss(latest) => *loss = Some(latest.clone()),
            _ => {}
        }
    }

    fn shed(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).shed
    }
}
