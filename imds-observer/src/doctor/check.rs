//! One thing that was looked at, and what came of it.

use serde::Serialize;

use crate::record::{Code, Remedy};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckState {
    Ok,
    /// There is something that may matter; whether it does can't be judged from here.
    Note,
    /// Could not be checked.
    Unknown,
    /// The observer lacks it.
    Missing,
    /// It blocks this host, or a part of it, from IMDS.
    Fault,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    pub name: String,
    /// Which of several: an endpoint, an interface, a process.
    pub subject: Option<String>,
    pub state: CheckState,
    /// What was seen.
    pub found: String,
    /// What it means for requests to IMDS.
    pub means: Option<String>,
    /// What the observer doesn't see for it.
    pub blinds: Option<String>,
    pub remedy: Option<Remedy>,
    /// The finding that the observer would report of it.
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

    /// Something that couldn't be looked at, and why.
    pub(super) fn unread(name: &str, why: impl std::fmt::Display) -> Self {
        Self::new(name, CheckState::Unknown, format!("could not check: {why}"))
    }

    /// `Missing` unless `held`, with what that blinds and what would help.
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
