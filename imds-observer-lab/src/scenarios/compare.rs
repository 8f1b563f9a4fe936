//! Compares reported findings with expected ones.

use std::collections::BTreeMap;

use serde_json::Value;

/// Result of comparing the reported findings with the expected ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// Expected and reported.
    pub right: usize,
    /// Reported but not expected.
    pub false_alarms: usize,
    /// Expected but not reported.
    pub missed: usize,
}

impl Score {
    /// Share of the reported findings that were expected; 1 if none was reported.
    pub fn precision(&self) -> f64 {
        share(self.right, self.false_alarms)
    }

    /// Share of the expected findings that were reported.
    pub fn recall(&self) -> f64 {
        share(self.right, self.missed)
    }

    pub fn is_perfect(&self) -> bool {
        self.false_alarms == 0 && self.missed == 0
    }
}

impl std::ops::AddAssign for Score {
    fn add_assign(&mut self, other: Self) {
        self.right += other.right;
        self.false_alarms += other.false_alarms;
        self.missed += other.missed;
    }
}

fn share(right: usize, wrong: usize) -> f64 {
    if right + wrong == 0 {
        return 1.0;
    }
    right as f64 / (right + wrong) as f64
}

/// Compares the two lists as multisets.
pub fn score(owed: &[String], found: &[String]) -> Score {
    let mut missing = owed.to_vec();
    let mut score = Score::default();
    for one in found {
        match missing.iter().position(|other| other == one) {
            Some(at) => {
                missing.swap_remove(at);
                score.right += 1;
            }
            None => score.false_alarms += 1,
        }
    }
    score.missed = missing.len();
    score
}

/// Findings of a trace, sorted. Each is `code severity`, with its highest severity. A finding that was resolved and opened again counts
/// twice.
pub fn findings_of<'a>(records: impl IntoIterator<Item = &'a Value>) -> Vec<String> {
    const SEVERITIES: [&str; 4] = ["info", "warning", "high", "critical"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut open: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut all: Vec<(String, usize)> = Vec::new();
    for record in records {
        if record["record"] != "finding" {
            continue;
        }
        let key = (text(&record["code"]), text(&record["subject"]["key"]));
        let severity = SEVERITIES
            .iter()
            .position(|severity| record["severity"] == *severity)
            .unwrap_or_default();
        let index = match open.get(&key) {
            Some(index) if record["state"] != "open" => *index,
            _ => {
                all.push((key.0.clone(), severity));
                open.insert(key, all.len() - 1);
                all.len() - 1
            }
        };
        all[index].1 = all[index].1.max(severity);
    }
    let mut reported: Vec<String> = all
        .into_iter()
        .map(|(code, severity)| format!("{code} {}", SEVERITIES[severity]))
        .collect();
    reported.sort();
    reported
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn each_counts_once() {
        let result = score(&names(&["a", "a", "b"]), &names(&["a", "c", "b", "c"]));
        assert_eq!(
            result,
            Score {
                right: 2,
                false_alarms: 2,
                missed: 1
            }
        );
        assert!((result.precision() - 0.5).abs() < 1e-9);
        assert!((result.recall() - 2.0 / 3.0).abs() < 1e-9);
        assert!(score(&[], &[]).is_perfect());
        assert!((score(&[], &[]).precision() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_finding_is_reported_once_with_its_highest_severity() {
        let finding = |code: &str, key: &str, severity: &str, state: &str| json!({"record": "finding", "code": code, "severity": severity, "state": state, "subject": {"key": key}});
        let records = [
            finding("x", "1", "warning", "open"),
            finding("x", "2", "info", "open"),
            finding("x", "1", "high", "update"),
            json!({"record": "exchange"}),
            finding("x", "1", "high", "resolved"),
            finding("x", "1", "info", "open"),
        ];
        assert_eq!(findings_of(&records), ["x high", "x info", "x info"]);
    }
}
