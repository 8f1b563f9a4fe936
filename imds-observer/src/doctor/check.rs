//! One check and its result.

use serde::Serialize;

use crate::record::{Code, Remedy};

/// Result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckState {
    Ok,
    /// A fact that may matter. Whether it does can't be decided here.
    Note,
    /// The check could not be made.
    Unknown,
    /// The observer needs the feature, and this host lacks it.
    Missing,
    /// A fault blocks this host, or a part of it, from IMDS.
    Fault,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    pub name: String,
    /// What the check is about, if there are several: an endpoint, an interface or a process.
    pub subject: Option<String>,
    pub state: CheckState,
    /// Fact that was found.
    pub found: String,
    /// Effect on requests to IMDS.
    pub means: Option<String>,
    /// What is not visible to the observer because of this.
    pub blinds: Option<String>,
    pub remedy: Option<Remedy>,
    /// The finding that the observer would report.
    pub code: Option<Code>,
}

impl Check {
    pub(super) fn new(name: &str, state: CheckState, found: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            subject: None,
            state,
            found: found.into(),
            means: None,
            blinds: None,
            remedy: None,
            code: None,
        }
    }

    pub(super) fn ok(name: &str, found: impl Into<String>) -> Self {
        Self::new(name, CheckState::Ok, found)
    }

    /// A check that could not be made, with the reason.
    pub(super) fn unread(name: &str, why: impl std::fmt::Display) -> Self {
        Self::new(name, CheckState::Unknown, format!("could not check: {why}"))
    }

    /// `Ok` if `held`, else `Missing` with the coverage gap and the remedy.
    pub(super) fn needed(name: &str, held: bool, found: impl Into<String>, blinds: &str, remedy: &str) -> Self {
        if held {
            Self::ok(name, found)
        } else {
            Self::new(name, CheckState::Missing, found)
                .blinding(blinds)
                .remedied(remedy, [])
        }
    }

    pub(super) fn about(mut self, subject: &(impl ToString + ?Sized)) -> Self {
        self.subject = Some(subject.to_string());
        self
    }

    pub(super) fn meaning(mut self, means: impl Into<String>) -> Self {
        self.means = Some(means.into());
        self
    }

    pub(super) fn blinding(mut self, blinds: impl Into<String>) -> Self {
        self.blinds = Some(blinds.into());
        self
    }

    pub(super) fn remedied(mut self, text: &str, commands: impl IntoIterator<Item = String>) -> Self {
        self.remedy = Some(Remedy {
            text: text.to_owned(),
            commands: commands.into_iter().collect(),
        });
        self
    }

    pub(super) fn reported_as(mut self, code: Code) -> Self {
        self.code = Some(code);
        self
    }
}
