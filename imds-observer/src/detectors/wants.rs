//! Which exchanges a detector needs: most need few, and not to ask them about the others is a third of the work.

use std::ops::BitOr;

use super::knowledge::status;
use super::{connect_delayed, proxied_request};
use crate::record::{Exchange, ImdsVersion};

/// Kinds of exchange. One may be of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchanges(u8);

impl Exchanges {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self(u8::MAX);
    /// Requests for a token.
    pub const TOKEN: Self = Self(1);
    /// Requests without a token.
    pub const V1: Self = Self(2);
    /// For a role's name or its credentials.
    pub const CREDENTIALS: Self = Self(4);
    /// Without an answer of status 2xx.
    pub const FAILED: Self = Self(8);
    /// With a sign of a program between client and service, or not seen at an uplink.
    pub const SIGNED: Self = Self(16);
    /// Whose connection needed more than one SYN.
    pub const DELAYED: Self = Self(32);
    /// The bits of those above are below it.
    const KINDS: u8 = 64;
    /// Set for every exchange.
    const ANY: Self = Self(128);

    /// All that this one is.
    pub(super) fn of(exchange: &Exchange, credentials: bool) -> Self {
        let version = match exchange.request.imds_version {
            Some(ImdsVersion::Token) => Self::TOKEN,
            Some(ImdsVersion::V1) => Self::V1,
            _ => Self::NONE,
        };
        let signed = exchange.request.forwarded
            || exchange.connection.redirected_to.is_some()
            || exchange.request.ttl_on_wire == Some(false)
            || exchange.response.as_ref().is_some_and(|response| {
                response.server.is_some() || response.via_proxy.is_some() || proxied_request::foreign_ttl(exchange)
            });
        let failed = !status(exchange).is_some_and(|status| (200..300).contains(&status));
        let when = |holds: bool, kind: Self| if holds { kind } else { Self::NONE };
        Self::ANY
            | version
            | when(credentials, Self::CREDENTIALS)
            | when(failed, Self::FAILED)
            | when(signed, Self::SIGNED)
            | when(connect_delayed::is_delayed(exchange), Self::DELAYED)
    }

    /// Everything that an exchange can be at once.
    pub(super) fn each() -> impl Iterator<Item = Self> {
        (0..Self::KINDS).map(|kinds| Self::ANY | Self(kinds))
    }

    /// Its place in [`Self::each`].
    pub(super) fn index(self) -> usize {
        usize::from(self.0 % Self::KINDS)
    }

    pub(super) fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Exchanges {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::detectors::{Asked, DetectorConfig, Detectors, Observation};
    use crate::host_facts::HostFacts;
    use crate::record::{Finding, Record, Time};
    use crate::source::ndjson::parse;

    fn findings(records: &[Record], ask_all: bool) -> Vec<Record<Finding>> {
        let mut detectors = Detectors::new(&DetectorConfig::default(), HostFacts::default());
        if ask_all {
            for registered in &mut detectors.registered {
                registered.wants = Exchanges::ALL;
            }
            detectors.asked = Asked::new(&detectors.registered);
        }
        let mut out = Vec::new();
        let mut last = Time::default();
        for record in records {
            let Some(observation) = Observation::of(record) else {
                continue;
            };
            last = last.max(observation.end());
            detectors.observe(&observation, &mut out);
        }
        detectors.finish(last, &mut out);
        out
    }

    /// Each trace alone, then all in a row, so that each detector also sees what the others fire at.
    #[test]
    fn detectors_that_are_asked_less_find_the_same() {
        let fixtures = format!("{}/tests/fixtures/detectors", env!("CARGO_MANIFEST_DIR"));
        let mut traces: Vec<Vec<Record>> = Vec::new();
        for directory in fs::read_dir(fixtures).unwrap() {
            for name in ["fires.ndjson", "quiet.ndjson"] {
                let text = fs::read_to_string(directory.as_ref().unwrap().path().join(name)).unwrap();
                traces.push(text.lines().map(|line| parse(line.as_bytes()).unwrap()).collect());
            }
        }
        let mut opened = 0;
        for trace in &traces {
            let all = findings(trace, true);
            assert_eq!(findings(trace, false), all);
            opened += all.len();
        }
        assert!(opened >= traces.len() / 2, "fixtures fire: {opened}");
        let together = traces.concat();
        assert_eq!(findings(&together, false), findings(&together, true));
    }
}
