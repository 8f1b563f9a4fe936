//! Output for people: tables and findings as text.

pub mod escape;
pub mod groups;
pub mod history;
pub mod html;
pub mod text;

use serde::{Deserialize, Serialize};

/// Bounds of what a report, a verdict or the plain view is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Findings that are kept for the report; more are counted.
    pub findings: usize,
    /// Findings that the plain view remembers as open.
    pub open_findings: usize,
    /// Workloads with a line of their own in the pictures; all others share one.
    pub workloads: usize,
    /// Interfaces whose packets are drawn.
    pub interfaces: usize,
    /// Workloads distinguished by a verdict; beyond, the verdict is inconclusive.
    pub judged_workloads: usize,
    /// Hosts of traces whose loss and period are added up.
    pub hosts: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            findings: 10_000,
            open_findings: 1_000,
            workloads: 200,
            interfaces: 32,
            judged_workloads: 10_000,
            hosts: 65_536,
        }
    }
}
