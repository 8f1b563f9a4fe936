//! IMDS doesn't answer.
//!
//! ## Detects
//!
//! A connection attempt that timed out although its SYNs left (through the uplink, if that is visible), without a drop on
//! this host, an ICMP error or a RST. Or several requests on established
//! connections (`unanswered`) without a response within `window_s` seconds. One finding
//! per pod, one for the host's own processes, and in captures one per client address. Severity: `warning` for a single
//! attempt with one or two SYNs, and for few failures among many requests of the client; else `high`.
//!
//! The summary states that packets leave this host only if SYNs were observed at an uplink (`wire_syns`) or the
//! connection was established. Otherwise they may have been redirected on this host, or may have left through an
//! interface that is not observed.
//!
//! Reported by other detectors:
//!
//! - connections that are accepted and then closed: `connection-aborted`
//! - responses, SYN-ACKs included, that arrived and were dropped: `response-dropped`
//! - attempts that are known to be redirected: `redirected-locally`
//! - lost token responses, and token requests after which the client continues without a token: `token-response-lost`
//! - dropped packets: `blocked-by-firewall`, `denied-by-policy`
//! - IPv6: `ipv6-endpoint-silent`
//! - missing responses while the interface exceeds its quota: `packet-quota`
//!
//! ## Why it matters
//!
//! If packets leave this host, the fault is outside this kernel: the instance's metadata endpoint fails, a router or
//! security appliance drops packets (outside EC2), or a network namespace sends traffic without masquerading, so that
//! responses can't return.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:13:43.000000000Z",
//!   "host": "node-1",
//!   "code": "no-answer",
//!   "severity": "high",
//!   "state": "update",
//!   "subject": {"container":null,"key":"host","name":"host","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:13:20.000000000Z",
//!   "last_seen": "2023-11-14T22:13:40.000000000Z",
//!   "count": 3,
//!   "summary": "IMDS (169.254.169.254) does not answer host: packets leave this host, and no response arrives",
//!   "evidence": {"at":null,"attempts":3,"cause":"silence","cgroups":["/system.slice/app.service"],"client":"10.0.1.5:40783","drop":null,"endpoint":"169.254.169.254:80","errno":110,"icmp":null,"programs":["python3.11 app.py"],"redirected_to":null,"seconds_lost":9.0,"syns":2,"uids":[1000],"wire_syns":2},
//!   "remedy": {"commands":["aws ec2 describe-instances --instance-ids i-0123456789abcdef0 --query 'Reservations[].Instances[].MetadataOptions'","ip route get 169.254.169.254","iptables-save -t nat | grep -nE '169\\.254|MASQUERADE|SNAT|REDIRECT|DNAT'"],"text":"Check whether the endpoint is enabled, and whether other processes on this host get responses. If only a pod is affected, its traffic may leave without masquerading. On a host that isn't an EC2 instance, set AWS_EC2_METADATA_DISABLED=true."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! On a host that isn't an EC2 instance the endpoint doesn't exist, but SDKs try it anyway. Clients that abort after less
//! than 0.9 s are not counted.
//!
//! ## Options
//!
//! `[detectors.no-answer]`
//!
//! - `unanswered` (3): unanswered requests that make a finding. A single failed connection attempt is enough.
//! - `window_s` (60): time within which they must occur.
//! - `quiet_s` (300): seconds without a failure until the finding is resolved. A success of the client that failed
//!   resolves it sooner.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html>
//! - <https://docs.aws.amazon.com/sdkref/latest/guide/feature-imds-credentials.html> (AWS_EC2_METADATA_DISABLED)

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::connection_aborted::is_aborted;
use super::connectivity::{Cause, CauseDetector, Failure};
use super::remedy::describe_options;
use super::share::Recent;
use super::table::bounded;
use super::window::Dated;
use super::{Context, Detector, Exchanges, Limits, Observation, Scope, Sightings, TokenFate};
use crate::record::{Code, Exchange, ExchangeOutcome, ImdsVersion, Of, Remedy, SECOND, Severity};

/// Places with unanswered requests that are remembered.
const MAX_PLACES: NonZeroUsize = NonZeroUsize::new(512).unwrap();
/// SYNs after which a lost packet is no explanation any more, and the wait that goes with them.
const PATIENT_SYNS: u32 = 3;
const PATIENT_NS: u64 = 3 * SECOND;
/// A client that stops waiting sooner may have been too hasty.
const HASTY_NS: u64 = 900_000_000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub unanswered: u64,
    pub window_s: u64,
    pub quiet_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            unanswered: 3,
            window_s: 60,
            quiet_s: 300,
        }
    }
}

pub(super) struct NoAnswer {
    config: Config,
    verdict: CauseDetector,
    /// Unanswered requests a second.
    unanswered: LruCache<String, Dated<120, SECOND>>,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> NoAnswer {
    NoAnswer {
        config: config.clone(),
        verdict: CauseDetector::new(limits, Code::NoAnswer, config.quiet_s, accepts, describe)
            .with_severity(severity)
            .excused_at_boot(),
        unanswered: bounded(limits.places(MAX_PLACES)),
        evicted: 0,
    }
}

fn accepts(cause: Cause) -> Option<()> {
    (cause == Cause::Silence).then_some(())
}

/// One lost SYN is no outage: a client that sends another one is answered.
fn severity(failure: &Failure, recent: Recent) -> Severity {
    let lone = recent.occurrences == 1;
    let patient = failure.elapsed_ns >= PATIENT_NS
        || failure
            .syns
            .is_none_or(|(socket, wire)| socket.max(wire) >= PATIENT_SYNS);
    let small = recent.occurrences * 4 < recent.of;
    if small || lone && !patient {
        Severity::Warning
    } else {
        Severity::High
    }
}

fn describe((): (), failure: &Failure, subject: &str, context: &Context<'_>) -> (String, Remedy) {
    let endpoint = failure.endpoint();
    let nat = format!(
        "{}-save -t nat | grep -nE '169\\.254|MASQUERADE|SNAT|REDIRECT|DNAT'",
        failure.iptables()
    );
    match failure.syns {
        // Requests on a connection that exists, or SYNs that were seen to leave.
        None | Some((_, 1..)) => {
            let summary = format!(
                "IMDS ({endpoint}) does not answer {subject}: packets leave this host, and no response arrives"
            );
            let remedy = Remedy {
                text: "Check whether the endpoint is enabled, and whether other processes on this host get responses. If only a pod is affected, its traffic may leave without masquerading. On a host that isn't an EC2 instance, set AWS_EC2_METADATA_DISABLED=true."
                    .to_owned(),
                commands: vec![describe_options(context.host), format!("ip route get {endpoint}"), nat],
            };
            (summary, remedy)
        }
        Some((syns, _)) => {
            let summary = format!(
                "no SYN of {subject} to IMDS ({endpoint}) reached an observed uplink ({syns} were sent in the last attempt), and no response arrives"
            );
            let remedy = Remedy {
                text: "Find out where the SYNs go. A NAT rule may redirect them on this host (redirecting to 127.0.0.1 needs route_localnet), or the route may use an interface that is not observed: add it with --interface. If SYNs appear there and no response arrives, the fault is outside this host."
                    .to_owned(),
                commands: vec![
                    format!("ip route get {endpoint}"),
                    nat,
                    "imds-observer doctor".to_owned(),
                ],
            };
            (summary, remedy)
        }
    }
}

impl Detector for NoAnswer {
    fn code(&self) -> Code {
        Code::NoAnswer
    }

    fn scope(&self) -> Scope {
        Scope::Clouds
    }

    fn quiet_ns(&self) -> u64 {
        self.config.quiet_s.saturating_mul(SECOND)
    }

    fn wants(&self) -> Exchanges {
        Exchanges::FAILED
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        if context.knowledge.quota_at_limit(observation.time()) {
            return;
        }
        match observation {
            Observation::Exchange(exchange) if unanswered(exchange, context) => {
                self.unanswered(exchange, context, sightings);
            }
            _ => self.verdict.observe(observation, context, sightings),
        }
    }

    fn tick(&mut self, context: &Context<'_>, last: bool, sightings: &mut Sightings<'_>) {
        self.verdict.tick(context, last, sightings);
    }

    fn evicted(&self) -> u64 {
        self.evicted + self.verdict.evicted()
    }
}

impl NoAnswer {
    fn unanswered(&mut self, exchange: &Of<'_, Exchange>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let subject = context.location_subject();
        if !self.unanswered.contains(&subject.key) {
            self.evicted += u64::from(self.unanswered.push(subject.key.clone(), Dated::new()).is_some());
        }
        let Some(bins) = self.unanswered.get_mut(&subject.key) else {
            return;
        };
        bins.add(exchange.time);
        let (recent, first) = bins.newest(self.config.window_s as usize);
        if !sightings.is_open(&subject.key) {
            if recent < self.config.unanswered {
                return;
            }
            self.verdict.began(&subject.key, first.unwrap_or(exchange.time), recent);
        }
        let client = context.client().map(|client| client.handle);
        self.verdict
            .report(&Failure::unanswered(exchange), client, &subject, context, sightings);
    }
}

/// Nothing came, and no other detector knows why.
fn unanswered(exchange: &Of<'_, Exchange>, context: &Context<'_>) -> bool {
    if exchange.response.is_some() || is_aborted(exchange) || context.booting(exchange.time) {
        return false;
    }
    let waited = match exchange.outcome {
        ExchangeOutcome::Unanswered => true,
        ExchangeOutcome::Closed => exchange.waited_ns.is_some_and(|waited| waited >= HASTY_NS),
        _ => false,
    };
    let token = exchange.request.imds_version == Some(ImdsVersion::Token);
    let client = context.client();
    let falls_back = client.is_some_and(|client| client.v1_cause.is_some());
    let lost = client.is_some_and(|client| matches!(client.token, Some((_, TokenFate::Lost { .. }))));
    waited && !(token && (falls_back || lost)) && context.knowledge.drop_note(&exchange.connection.id).is_none()
}
