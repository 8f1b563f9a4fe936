//! Finds failures: one file per detector, one registry (below), one ledger.
//!
//! A detector receives completed records, live and offline, and reports [`Sighting`]s. The [`ledger`] turns them into findings: one per cause and subject, opened once, updated rarely, resolved when the evidence has stopped. Facts about a client that several detectors need (did it just lose a token?) are in [`knowledge`].
//!
//! Detectors read no clock: time comes with the observations. An exchange has its start time but arrives when it ends, so times are out of order by seconds.
//!
//! Limits: every table is an LRU of fixed capacity ([`Limits`]) that counts its evictions ([`Detectors::evicted`]). With the default capacities all detectors together stay below [`MEMORY_LIMIT_BYTES`]; `tests/detector_memory.rs` checks it.

/// Evidence as a JSON object. A value may be anything that serializes.
macro_rules! evidence {
    ($($json:tt)*) => {
        match serde_json::json!({ $($json)* }) {
            serde_json::Value::Object(map) => map,
            _ => serde_json::Map::new(),
        }
    };
}

mod access_forbidden;
mod bad_token_request;
mod blocked_by_firewall;
mod cloud_refusals;
mod connect_delayed;
mod connection_aborted;
mod connection_refused;
mod connectivity;
mod container_credentials_failed;
mod credential_churn;
mod credentials_unusable;
mod denied_by_policy;
mod imdsv1_request;
mod ipv6_endpoint_silent;
mod knowledge;
mod ledger;
mod limits;
mod neighbor_unresolved;
mod no_answer;
mod no_instance_role;
mod no_route;
mod node_role_used;
mod not_found;
mod packet_quota;
mod path;
mod path_disappeared;
mod proxied_request;
mod redirected_locally;
mod remedy;
mod response_dropped;
mod scope;
mod server_errors;
mod share;
mod slow_responses;
mod stale_role_name;
mod table;
mod tight_polling;
mod token_not_reused;
mod token_rejected;
mod token_request_refused;
mod token_response_lost;
mod unexpected_redirect;
mod wants;
mod window;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use knowledge::{Client, Knowledge, TokenFate, V1Cause, Who};
pub use ledger::{Details, Sighting, Sightings};
pub use limits::Limits;

use crate::event::InterfaceSample;
use crate::host_facts::HostFacts;
use crate::imds::Protocol;
use crate::record::{self, Body, Code, Dialect, Finding, Of, Record, Time};
use knowledge::HOST;
use ledger::Ledger;
pub use path::Path;
use path::Paths;
use scope::Asks;
pub use scope::Scope;
pub use wants::Exchanges;

/// Limit on the memory of all detectors with the default [`Limits`], whatever a local process does.
pub const MEMORY_LIMIT_BYTES: usize = 80 << 20;

/// How long the evidence must be missing before a finding is resolved, unless the detector sets another time.
pub const QUIET_NS: u64 = 300 * record::SECOND;

/// Nothing takes longer than an hour.
const MAX_LASTED_NS: u64 = 3600 * record::SECOND;

/// Registers a detector: `module => code, "a line for the list"`. The `mod` lines are outside the macro so that rustfmt sees the files.
macro_rules! registry {
    ($($file:ident => $code:ident, $line:literal;)*) => {
        /// Thresholds, one table a detector: `[detectors.tight-polling]`. Each detector's page lists its options.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        pub struct DetectorConfig {
            /// Codes that are switched off.
            pub disabled: Vec<Code>,
            $(pub $file: $file::Config,)*
        }

        /// Every detector that there is.
        pub const CATALOGUE: &[Entry] = &[
            $(Entry { code: Code::$code, line: $line, source: include_str!(concat!(stringify!($file), ".rs")) },)*
        ];

        fn build(config: &DetectorConfig, limits: &Limits) -> Vec<Box<dyn Detector>> {
            let all: Vec<Box<dyn Detector>> = vec![$(Box::new($file::new(&config.$file, limits)),)*];
            all.into_iter().filter(|detector| !config.disabled.contains(&detector.code())).collect()
        }

        /// Codes whose thresholds differ.
        fn changed(before: &DetectorConfig, after: &DetectorConfig) -> Vec<Code> {
            [$((Code::$code, before.$file != after.$file),)*]
                .into_iter()
                .filter_map(|(code, changed)| changed.then_some(code))
                .collect()
        }
    };
}

registry! {
    access_forbidden => AccessForbidden, "IMDS answers 403, to all clients or to some";
    bad_token_request => BadTokenRequest, "a token request with a missing or invalid lifetime";
    blocked_by_firewall => BlockedByFirewall, "a netfilter rule drops or rejects packets to IMDS";
    connect_delayed => ConnectDelayed, "SYNs are lost and retransmitted: seconds of delay before the request";
    connection_aborted => ConnectionAborted, "connections are accepted, then closed or reset without a response";
    connection_refused => ConnectionRefused, "something other than IMDS refuses connections to its address";
    container_credentials_failed => ContainerCredentialsFailed, "EKS Pod Identity or ECS gives a client no credentials";
    credential_churn => CredentialChurn, "credentials are fetched repeatedly, long after start-up";
    credentials_unusable => CredentialsUnusable, "a role's credentials response is 200 but too short to hold credentials";
    denied_by_policy => DeniedByPolicy, "an eBPF program or traffic control denies the traffic";
    imdsv1_request => Imdsv1Request, "a request without a token succeeds: it fails once tokens are required";
    ipv6_endpoint_silent => Ipv6EndpointSilent, "IPv6 attempts fail: the IPv6 endpoint is disabled or unreachable";
    neighbor_unresolved => NeighborUnresolved, "an on-link route covers IMDS, and ARP is unanswered";
    no_answer => NoAnswer, "IMDS does not respond";
    no_instance_role => NoInstanceRole, "a client looks for an instance role repeatedly, and there is none";
    no_route => NoRoute, "no usable route to IMDS";
    node_role_used => NodeRoleUsed, "a pod with a role of its own used the node's role";
    not_found => NotFound, "a path that never existed is requested repeatedly";
    packet_quota => PacketQuota, "an interface approaches or exceeds 1024 link-local packets per second";
    path_disappeared => PathDisappeared, "a path that used to exist is gone: live migration, role detached";
    proxied_request => ProxiedRequest, "requests pass through a proxy, or something else answers for IMDS";
    redirected_locally => RedirectedLocally, "this host redirects IMDS requests to another address";
    response_dropped => ResponseDropped, "responses reach the host and are dropped there, not because of a small hop limit";
    server_errors => ServerErrors, "IMDS answers with 429 or 5xx: throttling or server errors";
    slow_responses => SlowResponses, "IMDS responds slowly";
    stale_role_name => StaleRoleName, "a client requests a role that was replaced by another one";
    tight_polling => TightPolling, "one path is requested at a rate that no legitimate use needs";
    token_not_reused => TokenNotReused, "a client requests a new token for nearly every request";
    token_rejected => TokenRejected, "repeated 401: an expired token, or no token where one is required";
    token_request_refused => TokenRequestRefused, "a token request fails with a status such as 404, 405, 417 or 5xx";
    token_response_lost => TokenResponseLost, "the hop limit is too small: token responses are dropped on this host";
    unexpected_redirect => UnexpectedRedirect, "a request is redirected (3xx), and the client doesn't follow";
}

/// A row of the registry.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub code: Code,
    /// One-line description of the pattern.
    pub line: &'static str,
    source: &'static str,
}

/// A detector's manual page in Markdown: what `detectors explain CODE` prints and `docs/detectors/CODE.md` holds. It is
/// the doc comment of the detector's own file. `None`: no detector has this code.
pub fn manual(code: Code) -> Option<String> {
    let entry = CATALOGUE.iter().find(|entry| entry.code == code)?;
    Some(manual_of(code, entry.source))
}

/// The manual page in a detector's source.
pub fn manual_of(code: Code, source: &str) -> String {
    let mut page = format!("# {code}\n\n");
    for line in source.lines() {
        let Some(line) = line.strip_prefix("//!") else { break };
        page.push_str(line.strip_prefix(' ').unwrap_or(line));
        page.push('\n');
    }
    page
}

/// Input of the detectors.
#[derive(Clone, Copy, Debug)]
pub enum Observation<'a> {
    Exchange(Of<'a, record::Exchange>),
    Connect(Of<'a, record::Connect>),
    Drop(Of<'a, record::PacketDrop>),
    /// Live: about one a second and interface. Offline: made from the interfaces of `summary` records, see [`Detectors::observe_summary`].
    Interface(&'a InterfaceSample),
}

impl<'a> Observation<'a> {
    /// `None`: detectors look at no record of this kind.
    pub fn of(record: &'a Record) -> Option<Self> {
        Some(match &record.body {
            Body::Exchange(exchange) => Self::Exchange(record.with(exchange)),
            Body::Connect(connect) => Self::Connect(record.with(connect)),
            Body::Drop(drop) => Self::Drop(record.with(drop)),
            _ => return None,
        })
    }

    /// When it began.
    pub fn time(&self) -> Time {
        match self {
            Self::Exchange(exchange) => exchange.time,
            Self::Connect(connect) => connect.time,
            Self::Drop(drop) => drop.time,
            Self::Interface(sample) => sample.time,
        }
    }

    /// When it was over.
    pub fn end(&self) -> Time {
        match self {
            Self::Exchange(exchange) => {
                let lasted = exchange.waited_ns.or(exchange.latency_ns).unwrap_or(0);
                // A trace with other times must not move the clock for all others.
                exchange.time.plus_ns(lasted.min(MAX_LASTED_NS))
            }
            Self::Connect(connect) => connect.time.plus_ns(connect.elapsed_ns.min(MAX_LASTED_NS)),
            Self::Drop(drop) => drop.time,
            Self::Interface(sample) => sample.time,
        }
    }

    pub(crate) fn process(&self) -> Option<&'a std::sync::Arc<record::Process>> {
        match self {
            Self::Exchange(exchange) => exchange.body.process.as_ref(),
            Self::Connect(connect) => connect.body.process.as_ref(),
            Self::Drop(drop) => drop.body.process.as_ref(),
            Self::Interface(_) => None,
        }
    }

    pub(crate) fn container(&self) -> Option<&'a std::sync::Arc<record::Container>> {
        match self {
            Self::Exchange(exchange) => exchange.body.container.as_ref(),
            Self::Connect(connect) => connect.body.container.as_ref(),
            Self::Drop(drop) => drop.body.container.as_ref(),
            Self::Interface(_) => None,
        }
    }

    fn connection(&self) -> Option<&'a record::Connection> {
        match self {
            Self::Exchange(exchange) => Some(&exchange.body.connection),
            Self::Connect(connect) => Some(&connect.body.connection),
            Self::Drop(drop) => Some(&drop.body.connection),
            Self::Interface(_) => None,
        }
    }
}

/// Facts that a detector receives with an observation.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Latest time seen so far; never goes back.
    pub now: Time,
    pub host: &'a HostFacts,
    pub knowledge: &'a Knowledge,
    /// Path of the observed request, normalized: no query, no doubled or trailing slash. Empty where there is no request.
    pub path: &'a str,
    /// The part of `path` below the version.
    pub below: &'a str,
    /// Both, to be kept.
    pub shared_path: &'a std::sync::Arc<Path>,
    /// Represents `path` in tables; salted, so that no client can make two paths collide.
    pub path_id: u64,
    /// Represents `below`.
    pub below_id: u64,
    /// Whether `path` leads to a role's name or its credentials.
    pub credentials: bool,
    /// The protocol of the service that was asked; at a tick, that of this host's cloud.
    pub protocol: &'static Protocol,
    /// Where a fault of the network would sit: in the caller's pod, else the host.
    location_key: &'a str,
    /// Represents it in tables; salted.
    place_id: u64,
    observation: Option<Observation<'a>>,
    client: Option<&'a Client>,
}

/// Finds one pattern. State is bounded by the detector itself.
pub trait Detector: Send {
    fn code(&self) -> Code;

    /// Time without sightings after which a finding is resolved.
    fn quiet_ns(&self) -> u64 {
        QUIET_NS
    }

    /// Which services it is about.
    fn scope(&self) -> Scope {
        Scope::Imds
    }

    /// Which exchanges matter to it while it has no finding open; with one, it sees all.
    fn wants(&self) -> Exchanges {
        Exchanges::ALL
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>);

    /// Called about once a second of event time, and at the end with `last`: nothing more will come then.
    fn tick(&mut self, context: &Context<'_>, last: bool, sightings: &mut Sightings<'_>) {
        let _ = (context, last, sightings);
    }

    /// Entries that bounded tables evicted.
    fn evicted(&self) -> u64 {
        0
    }
}

/// A detector and its constant properties.
struct Registered {
    code: Code,
    quiet_ns: u64,
    wants: Exchanges,
    scope: Scope,
    detector: Box<dyn Detector>,
}

fn registered(config: &DetectorConfig, limits: &Limits) -> Vec<Registered> {
    build(config, limits)
        .into_iter()
        .map(|detector| Registered {
            code: detector.code(),
            quiet_ns: detector.quiet_ns(),
            wants: detector.wants(),
            scope: detector.scope(),
            detector,
        })
        .collect()
}

/// A bit for each detector, by its place.
type DetectorSet = u64;

/// The detectors that an exchange concerns, computed before: going through all detectors takes longer than most of them.
struct Asked {
    /// By what an exchange is.
    wanting: Vec<DetectorSet>,
    /// By what kind of service an observation is about.
    about: [DetectorSet; Asks::ALL.len()],
    /// Detectors with open findings, and the ledger's codes for which that was computed.
    open: (DetectorSet, u64),
}

impl Asked {
    fn new(registered: &[Registered]) -> Self {
        const { assert!(CATALOGUE.len() <= DetectorSet::BITS as usize) };
        Self {
            wanting: Exchanges::each()
                .map(|kinds| detector_set(registered, |registered| registered.wants.meets(kinds)))
                .collect(),
            about: Asks::ALL.map(|asks| detector_set(registered, |registered| registered.scope.covers(asks))),
            open: (0, 0),
        }
    }

    /// Detectors that concern this kind of service.
    fn within(&self, asks: Asks) -> DetectorSet {
        self.about[asks as usize]
    }

    fn wanting(&mut self, kinds: Exchanges, registered: &[Registered], ledger: &Ledger) -> DetectorSet {
        let codes = ledger.open_codes();
        if self.open.1 != codes {
            self.open = (
                detector_set(registered, |registered| ledger.any_open(registered.code)),
                codes,
            );
        }
        self.wanting.get(kinds.index()).copied().unwrap_or(DetectorSet::MAX) | self.open.0
    }
}

fn detector_set(registered: &[Registered], which: impl Fn(&Registered) -> bool) -> DetectorSet {
    let bits = registered
        .iter()
        .enumerate()
        .filter(|(_, registered)| which(registered));
    bits.fold(0, |set, (index, _)| set | 1 << index)
}

/// All detectors of one run.
pub struct Detectors {
    host: HostFacts,
    limits: Limits,
    registered: Vec<Registered>,
    asked: Asked,
    paths: Paths,
    knowledge: Knowledge,
    ledger: Ledger,
    now: Time,
    next_tick: Time,
}

impl Detectors {
    /// With the default bounds.
    pub fn new(config: &DetectorConfig, host: HostFacts) -> Self {
        Self::with_limits(config, Limits::DEFAULT, host)
    }

    pub fn with_limits(config: &DetectorConfig, limits: Limits, host: HostFacts) -> Self {
        let registered = registered(config, &limits);
        Self {
            asked: Asked::new(&registered),
            registered,
            paths: Paths::new(&limits),
            knowledge: Knowledge::new(&limits, &config.proxied_request.server),
            ledger: Ledger::new(host.name.clone(), limits.findings),
            now: Time(0),
            next_tick: Time(0),
            limits,
            host,
        }
    }

    /// A run of this host was recorded from here on.
    pub fn recorded(&mut self, start: &record::Start) {
        self.host.recorded(start);
    }

    /// Looks at one record. Findings that open or change are appended to `out`.
    pub fn observe(&mut self, observation: &Observation<'_>, out: &mut Vec<Record<Finding>>) {
        self.now = self.now.max(observation.end());
        let known = self.knowledge.learn(observation, &self.host, self.now);
        let path = match observation {
            Observation::Exchange(exchange) => self.paths.get(exchange.request.path.as_deref().unwrap_or_default()),
            _ => self.paths.none(),
        };
        let cloud = self.knowledge.cloud(&self.host);
        self.ledger.is_aws = cloud == Dialect::Aws;
        let (asks, protocol) = scope::asks(observation, cloud);
        let (caller, client) = known.map(|known| self.knowledge.known(known)).unzip();
        let context = Context {
            now: self.now,
            host: &self.host,
            knowledge: &self.knowledge,
            path: &path.normal,
            below: path.below(),
            shared_path: path,
            path_id: path.id,
            below_id: path.below_id,
            credentials: path.credentials,
            protocol,
            location_key: caller.map_or(HOST, |caller| &caller.location_key),
            place_id: caller.map_or(0, |caller| caller.place_id),
            observation: Some(*observation),
            client,
        };
        let mut asked = match observation {
            Observation::Exchange(exchange) => {
                let kinds = Exchanges::of(exchange, context.credentials);
                self.asked.wanting(kinds, &self.registered, &self.ledger)
            }
            _ => DetectorSet::MAX,
        };
        asked &= self.asked.within(asks);
        let mut sightings = Sightings::new(&mut self.ledger, self.now, out);
        while asked != 0 {
            let index = asked.trailing_zeros() as usize;
            asked &= asked - 1;
            let Some(Registered {
                code,
                quiet_ns,
                detector,
                ..
            }) = self.registered.get_mut(index)
            else {
                break;
            };
            sightings.turn_to(*code, *quiet_ns);
            detector.observe(observation, &context, &mut sightings);
        }
        self.tick_if_due(out);
    }

    /// Looks at the interfaces of a `summary` record: how packet counts reach the detectors offline. Totals over the
    /// whole run (`total: true`) repeat the intervals and are skipped.
    pub fn observe_summary(&mut self, summary: Of<'_, record::Summary>, out: &mut Vec<Record<Finding>>) {
        if summary.total {
            return;
        }
        for interface in &summary.interfaces {
            let sample = knowledge::sample_of(&summary, interface);
            self.observe(&Observation::Interface(&sample), out);
        }
    }

    /// Informs the detectors that it is at least `now`: findings whose evidence has stopped are resolved.
    pub fn advance(&mut self, now: Time, out: &mut Vec<Record<Finding>>) {
        self.now = self.now.max(now);
        self.tick_if_due(out);
    }

    /// The last call: what is still held back is decided, and findings that have changed since they were written are written once more.
    pub fn finish(&mut self, now: Time, out: &mut Vec<Record<Finding>>) {
        self.now = self.now.max(now);
        self.tick(true, out);
        self.ledger.finish(self.now, out);
    }

    /// Takes over other thresholds. A detector whose own ones are the same keeps what it knows; open findings end as they would by themselves.
    pub fn reconfigure(&mut self, before: &DetectorConfig, after: &DetectorConfig) {
        let changed = changed(before, after);
        let mut fresh = registered(after, &self.limits);
        for detector in &mut fresh {
            if !changed.contains(&detector.code)
                && let Some(known) = self.registered.iter_mut().find(|known| known.code == detector.code)
            {
                std::mem::swap(detector, known);
            }
        }
        self.asked = Asked::new(&fresh);
        self.registered = fresh;
        self.knowledge.imds_server = after.proxied_request.server.as_str().into();
    }

    /// Entries that the detectors' bounded tables evicted.
    pub fn evicted(&self) -> u64 {
        let detectors: u64 = self
            .registered
            .iter()
            .map(|registered| registered.detector.evicted())
            .sum();
        detectors + self.knowledge.evicted() + self.ledger.evicted()
    }

    fn tick_if_due(&mut self, out: &mut Vec<Record<Finding>>) {
        if self.now >= self.next_tick {
            self.tick(false, out);
            self.next_tick = self.now.plus_ns(record::SECOND);
        }
    }

    fn tick(&mut self, last: bool, out: &mut Vec<Record<Finding>>) {
        let cloud = self.knowledge.cloud(&self.host);
        self.ledger.is_aws = cloud == Dialect::Aws;
        let context = Context {
            now: self.now,
            host: &self.host,
            knowledge: &self.knowledge,
            path: "",
            below: "",
            shared_path: self.paths.none(),
            path_id: 0,
            below_id: 0,
            credentials: false,
            protocol: cloud.protocol(),
            location_key: HOST,
            place_id: 0,
            observation: None,
            client: None,
        };
        let mut sightings = Sightings::new(&mut self.ledger, self.now, out);
        for Registered {
            code,
            quiet_ns,
            detector,
            ..
        } in &mut self.registered
        {
            sightings.turn_to(*code, *quiet_ns);
            detector.tick(&context, last, &mut sightings);
        }
        self.ledger.resolve(self.now, out);
    }
}
