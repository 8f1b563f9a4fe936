//! A client that is long past its start fetches the role's credentials over and over.
//!
//! ## Detects
//!
//! More than `fetches` successful requests for `iam/security-credentials/ROLE` within 10 min by a client older than
//! `min_age_s` (`warning`); more than `high_per_min` a minute over that time is `high`. Short-lived processes of one loop
//! count together.
//!
//! ## Why it matters
//!
//! Credentials hold for about six hours, and SDKs refresh them minutes before the end. Who fetches them each minute has
//! lost its cache: a client is made for each call, or a command is started in a loop. Each fetch costs two to three requests.
//!
//! ## Example record
//!
//! ## Known false positives
//!
//! The .NET SDK fetches every 2 min (5 in 10 min), which is below the limit. Shortly before credentials expire some
//! clients fetch more often because the service still hands out the old ones.
//!
//! ## Options
//!
//! `[detectors.credential-churn]`
//!
//! - `fetches` (6): within 10 min, still allowed.
//! - `high_per_min` (1.0): fetches a minute, still no more than a warning.
//! - `min_age_s` (300): a younger client may be starting.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-security-credentials.html>

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::{below_version, normal_path, status};
use super::remedy::{self, Sdk};
use super::window::Bins;
use super::{Context, Details, Detector, Observation, Sighting, Sightings};
use crate::record::{Code, SECOND, Severity};

/// Clients that are remembered.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
const WINDOW_MIN: f64 = 10.0;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub fetches: u64,
    pub high_per_min: f64,
    pub min_age_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            fetches: 6,
            high_per_min: 1.0,
            min_age_s: 300,
        }
    }
}

pub(super) struct CredentialChurn {
    config: Config,
    clients: LruCache<u64, Bins<20, { 30 * SECOND }>>,
    evicted: u64,
}

pub(super) fn new(config: &Config) -> CredentialChurn {
    CredentialChurn {
        config: config.clone(),
        clients: LruCache::new(MAX_CLIENTS),
        evicted: 0,
    }
}

/// The role whose credentials this path gives.
fn role(path: &str) -> Option<&str> {
    let below = below_version(path).strip_prefix("meta-data/")?;
    let role = below
        .strip_prefix("iam/security-credentials/")
        .or_else(|| below.strip_prefix("identity-credentials/ec2/security-credentials/"))?;
    (!role.is_empty()).then_some(role)
}

impl Detector for CredentialChurn {
    fn code(&self) -> Code {
        Code::CredentialChurn
    }

    fn quiet_ns(&self) -> u64 {
        1200 * SECOND
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        let path = normal_path(exchange.request.path.as_deref().unwrap_or_default());
        let Some(role) = role(&path) else { return };
        if status(exchange) != Some(200) {
            return;
        }
        if !self.clients.contains(&client.handle) {
            self.evicted += u64::from(self.clients.push(client.handle, Bins::new()).is_some());
        }
        let Some(bins) = self.clients.get_mut(&client.handle) else { return };
        bins.add(exchange.time, 1);
        let fetches = bins.total(exchange.time);
        let age_ns = exchange.time.since(client.started);
        if fetches <= self.config.fetches || age_ns < self.config.min_age_s * SECOND {
            return;
        }
        let per_min = fetches as f64 / WINDOW_MIN;
        let sighting = Sighting {
            key: &client.key,
            severity: if per_min > self.config.high_per_min {
                Severity::High
            } else {
                Severity::Warning
            },
            time: exchange.time,
            count: if sightings.is_open(&client.key) { 1 } else { fetches },
            news: false,
        };
        sightings.report(sighting, || {
            let subject = context.client_subject();
            let sdk = Sdk::of(client.user_agent.as_deref());
            Details {
                summary: format!("{} fetched the credentials of {role} {fetches} times in 10 min", subject.name),
                evidence: evidence! {
                    "role": role,
                    "fetches_in_10_min": fetches,
                    "per_min": per_min,
                    "client_age_s": age_ns / SECOND,
                    "processes": client.processes,
                    "user_agent": client.user_agent,
                    "client": sdk.name(),
                },
                remedy: remedy::text(sdk.reuse()),
                subject,
            }
        });
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}
