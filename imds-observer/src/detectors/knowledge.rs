//! What several detectors must know to join causes: who the clients are, what became of their last token request, what works on this host.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use super::connectivity::{DropNote, V4_WORKS_NS};
use super::table::{bounded, entry};
use super::{Context, Limits, Observation};
use crate::event::InterfaceSample;
use crate::host_facts::HostFacts;
use crate::imds::{below_version, cloud_of_server, is_aws_path, is_role_listing, is_token_path, normalise, role_of};
use crate::record::ByCaller;
use crate::record::workload::{self, Group};
use crate::record::{
    Container, Dialect, Exchange, ExchangeOutcome, ImdsVersion, InterfaceSummary, Of, Process, SECOND, Subject,
    Summary, Time,
};

/// Clients that are remembered; about 1.5 KiB each.
pub(super) const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(8192).unwrap();
/// Connections whose drops are remembered until their connect record comes.
const MAX_DROPS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Process images of one client that are distinguished: enough to recognize "a loop of short-lived processes".
const RECENT_PROCESSES: usize = 16;
/// A fallback follows its token request within this time. The SDK for .NET waits longest: measured, about 15.75 s.
pub(super) const FALLBACK_NS: u64 = 16 * SECOND;
/// A refusal is no timeout: clients remember it and go on without a token for as long as they run.
const REFUSAL_NS: u64 = 3600 * SECOND;
/// Characters of a user agent that are kept.
const MAX_USER_AGENT: usize = 96;
/// Fewer bytes, head and body, hold no credentials: their session token alone has several hundred. The errors that come in their place have
/// some 300 in all.
pub(super) const CREDENTIALS_BYTES: u64 = 700;
/// Number of consecutive short responses, and their time span, that exclude a truncated response and a starting client. Each process
/// reads the short credentials of a mock once.
pub(super) const SHORT_ANSWERS: u64 = 3;
pub(super) const SHORT_SPREAD_S: u64 = 45;
/// Short answers further apart than this are no row.
pub(super) const SHORT_ROW_NS: u64 = 3600 * SECOND;
/// Key and name of the host itself among places.
pub(super) const HOST: &str = "host";

/// Result of a token request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFate {
    Granted,
    /// The response came to this host with a TTL too small to go on.
    Lost {
        request_ttl: Option<u8>,
        response_ttl: Option<u8>,
    },
    /// Nothing came, as far as can be seen from here.
    Unanswered,
    /// 403: sent through something that adds `X-Forwarded-For`, or IMDS is off.
    Forbidden,
    /// Any other status.
    Rejected(u16),
}

/// Why a client asks without a token though it has tried to get one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum V1Cause {
    /// Its token response was lost.
    HopLimit { request_ttl: Option<u8> },
    /// Its token request was not answered, and why can't be seen from here.
    TokenUnanswered,
    /// Its token request was forbidden.
    Proxy,
    /// Its token request was answered 429.
    Throttled(u16),
    /// Its token request was answered 400.
    BadRequest,
    /// Its token request was answered with any other status.
    Refused(u16),
}

impl V1Cause {
    /// Its name in evidence, and what happened.
    pub(super) fn name(self) -> (&'static str, String) {
        match self {
            Self::HopLimit { .. } => ("token-response-lost", "its token response was lost".to_owned()),
            Self::TokenUnanswered => (
                "token-request-unanswered",
                "its token request was not answered".to_owned(),
            ),
            Self::Proxy => (
                "token-request-forbidden",
                "its token request failed with 403".to_owned(),
            ),
            Self::BadRequest => ("bad-token-request", "its token request failed with 400".to_owned()),
            Self::Throttled(status) => (
                "token-request-throttled",
                format!("its token request failed with {status}"),
            ),
            Self::Refused(status) => (
                "token-request-refused",
                format!("its token request failed with {status}"),
            ),
        }
    }
}

/// The processes that one verdict may be about: see [`Group`].
#[derive(Debug)]
pub struct Client {
    /// Finds it again: see [`Knowledge::client`].
    pub handle: u64,
    /// Subject key of findings about it.
    pub key: Arc<str>,
    pub first_seen: Time,
    /// First request, or start of the first process that was seen.
    pub started: Time,
    pub requests: u64,
    /// Process images seen; counts one twice that comes back after 16 others.
    pub processes: u64,
    recent: VecDeque<u64>,
    /// Its newest token request: when it began and what became of it.
    pub token: Option<(Time, TokenFate)>,
    /// Holds until a token is granted or used: many clients never try again.
    pub v1_cause: Option<V1Cause>,
    last_v1: Option<Time>,
    /// Newest answer 2xx to a request without a token, and to any but a token request.
    pub v1_read: Option<Time>,
    pub read: Option<Time>,
    /// Newest answer to its request for the list of roles, and whether there is one.
    pub role_listing: Option<(Time, bool)>,
    /// Answers in place of a role's credentials that were too short, since the last that was not: the first, the last, how many.
    short: Option<(Time, Time, u64)>,
    pub v4_answered: Option<Time>,
    pub v6_answered: Option<Time>,
    pub user_agent: Option<Arc<str>>,
    /// Crawls everything at boot, as is its job.
    pub cloud_init: bool,
}

/// A role that the instance has in place of the one that a client requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct OtherRole<'a> {
    /// Where credentials were requested by it.
    pub(super) name: Option<&'a str>,
}

/// Shared by all detectors.
#[derive(Debug)]
pub struct Knowledge {
    hasher: RandomState,
    clients: LruCache<u64, Client>,
    callers: ByCaller<Caller>,
    /// Caller without a known process or container.
    unattributed: Option<Caller>,
    evicted: u64,
    /// Newest answer over IPv4, to any client.
    pub v4_answered: Option<Time>,
    pub v6_answered: Option<Time>,
    /// Newest answer 2xx to a request without a token, of any client.
    pub v1_read: Option<Time>,
    /// Newest list of roles that any client received, and newest answer 404 to a request for it.
    pub role_listed: Option<Time>,
    pub role_unlisted: Option<Time>,
    /// Newest role of which any client received the credentials, and when.
    role_given: Option<(Box<str>, Time)>,
    /// The `Server` header of IMDS, as `[detectors.proxied-request]` has it.
    pub(super) imds_server: Box<str>,
    /// Causes that drops showed, by connection id.
    drops: LruCache<String, DropNote>,
    /// Newest request of cloud-init, whose crawl is a burst by design.
    pub boot_crawl: Option<Time>,
    /// Newest sign that packets are dropped for the link-local quota.
    pub quota_exceeded: Option<Time>,
    signs: CloudSigns,
}

/// Evidence of this host's cloud from requests and responses.
#[derive(Debug, Default)]
struct CloudSigns {
    /// An IMDSv2 token was granted, a server named itself as IMDS, or an agent of EKS or ECS answered.
    aws: bool,
    /// Anything of EC2's tree was read.
    ec2_tree: bool,
    /// First other cloud that was asked in its own tree, and the first that answered there.
    asked: Option<Dialect>,
    answered: Option<Dialect>,
}

impl CloudSigns {
    fn learn(&mut self, exchange: &Exchange, imds_server: &str) {
        let server = exchange
            .response
            .as_ref()
            .and_then(|response| response.server.as_deref());
        if let Some(server) = server {
            self.aws |= !imds_server.is_empty() && server.contains(imds_server);
            if self.answered.is_none() {
                self.answered = cloud_of_server(server);
            }
        }
        let status = exchange.response.as_ref().and_then(|response| response.status);
        let succeeded = status.is_some_and(|status| (200..300).contains(&status));
        let dialect = exchange.request.dialect;
        match dialect {
            Dialect::Aws => {
                self.aws |= succeeded && exchange.request.imds_version == Some(ImdsVersion::Token);
                self.ec2_tree |= succeeded;
            }
            Dialect::EksPodIdentity | Dialect::Ecs => self.aws |= succeeded,
            Dialect::Unknown => {}
            // IMDS answers a client whose headers alone name another cloud, too.
            _ if exchange
                .request
                .path
                .as_deref()
                .is_none_or(|path| is_aws_path(&normalise(path))) => {}
            _ => {
                self.asked.get_or_insert(dialect);
                if succeeded {
                    self.answered.get_or_insert(dialect);
                }
            }
        }
    }
}

impl Knowledge {
    pub(super) fn new(limits: &Limits, imds_server: &str) -> Self {
        Self {
            hasher: RandomState::new(),
            clients: bounded(limits.clients(MAX_CLIENTS)),
            callers: ByCaller::new(limits.callers),
            unattributed: None,
            evicted: 0,
            v4_answered: None,
            v6_answered: None,
            v1_read: None,
            role_listed: None,
            role_unlisted: None,
            role_given: None,
            imds_server: imds_server.into(),
            drops: bounded(limits.connections(MAX_DROPS)),
            boot_crawl: None,
            quota_exceeded: None,
            signs: CloudSigns::default(),
        }
    }

    /// The cloud that this host is in: as its firmware names it, else as its requests show. `Unknown` if it isn't AWS, and nothing shows
    /// which it is. Without any sign it is AWS.
    pub(super) fn cloud(&self, host: &HostFacts) -> Dialect {
        let CloudSigns {
            aws,
            ec2_tree,
            asked,
            answered,
        } = self.signs;
        match host.cloud {
            Some(named) if named != Dialect::Unknown => named,
            _ if aws => Dialect::Aws,
            other => answered
                .or(other)
                .or(asked.filter(|_| !ec2_tree))
                .unwrap_or(Dialect::Aws),
        }
    }

    /// A client by its handle; `None` once the table has given it up.
    pub fn client(&self, handle: u64) -> Option<&Client> {
        self.clients.peek(&handle)
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The cause that a drop of this connection showed.
    pub fn drop_note(&self, connection: &str) -> Option<DropNote> {
        self.drops.peek(connection).copied()
    }

    /// Whether the instance has another role than `role`, whose credentials `client` last received at `last_200` and which is 404
    /// since `first_404`.
    ///
    /// A list of roles from before the first 404 may still have named `role`. It counts if the change is more likely to lie before
    /// it: if it is nearer than a tenth of the interval in which the change lies.
    pub(super) fn other_role(
        &self,
        client: &Client,
        role: &str,
        last_200: Option<Time>,
        first_404: Time,
    ) -> Option<OtherRole<'_>> {
        let given = self.role_given.as_ref().filter(|(name, _)| **name != *role);
        let name_since = |since: Time| given.filter(|(_, time)| *time >= since).map(|(name, _)| &**name);
        let own_listing = client
            .role_listing
            .is_some_and(|(time, there)| there && time >= first_404);
        let Some(last_200) = last_200 else {
            return own_listing.then(|| OtherRole {
                name: name_since(first_404),
            });
        };
        let name = name_since(last_200);
        let since_then = |time: Time| {
            time >= first_404 || first_404.since(time).saturating_mul(9) <= time.since(last_200) && time >= last_200
        };
        let listed = self.role_listed.filter(|time| since_then(*time));
        let newest = listed.max(name.and(given).map(|(_, time)| *time));
        // Without a list of roles since, the other role is gone too.
        let gone = newest < Some(first_404) && self.role_unlisted > newest;
        (own_listing || newest.is_some() && !gone).then_some(OtherRole { name })
    }

    /// A client had an answer over IPv4 at about this time.
    pub fn v4_works(&self, time: Time) -> bool {
        self.v4_answered
            .is_some_and(|answered| time.since(answered) <= V4_WORKS_NS)
    }

    /// Packets were being dropped for the link-local quota at about this time.
    pub fn quota_at_limit(&self, time: Time) -> bool {
        self.quota_exceeded
            .is_some_and(|exceeded| time.since(exceeded) <= 10 * SECOND)
    }

    /// Takes in an observation before the detectors see it. `None`: it has no caller; else see [`Self::known`].
    pub(super) fn learn(&mut self, observation: &Observation<'_>, host: &HostFacts, now: Time) -> Option<Known> {
        if let Observation::Interface(sample) = observation
            && sample.allowance_exceeded.is_some_and(|grown| grown > 0)
        {
            self.quota_exceeded = Some(now);
        }
        if let Observation::Drop(drop) = observation
            && let Some(note) = DropNote::of(drop)
            // Among guesses the first one is kept, because a connection's first packet shows when its trouble began.
            && !(note.guessed && self.drops.contains(&drop.connection.id))
            && let Some((other, _)) = self.drops.push(drop.connection.id.clone(), note)
            && other != drop.connection.id
        {
            self.evicted += 1;
        }
        observation.connection()?;
        let (shared, container) = (observation.process(), observation.container());
        let process = shared.map(AsRef::as_ref);
        let Self {
            hasher,
            callers,
            unattributed,
            ..
        } = self;
        let derive = || Caller::of(observation, hasher, host);
        let (known, caller) = if shared.is_some() || container.is_some() {
            let slot = callers.slot(shared, container, derive);
            (Known(Some(slot)), callers.at(slot))
        } else {
            (Known(None), &*unattributed.insert(derive()))
        };
        let handle = caller.handle;
        let time = observation.time();
        let client = entry(&mut self.clients, handle, &mut self.evicted, || Client {
            handle,
            key: group(observation).map_or_else(String::new, |group| group.key()).into(),
            first_seen: time,
            started: process
                .and_then(|process| process.start_time)
                .map_or(time, |start| start.min(time)),
            requests: 0,
            processes: 0,
            recent: VecDeque::with_capacity(4),
            token: None,
            v1_cause: None,
            last_v1: None,
            v1_read: None,
            read: None,
            role_listing: None,
            short: None,
            v4_answered: None,
            v6_answered: None,
            user_agent: None,
            cloud_init: false,
        });
        if process.is_some() {
            let image = caller.image;
            if !client.recent.contains(&image) {
                if client.recent.len() == RECENT_PROCESSES {
                    client.recent.pop_front();
                }
                client.recent.push_back(image);
                client.processes += 1;
            }
            client.cloud_init |= caller.cloud_init;
        }
        if client.cloud_init {
            self.boot_crawl = self.boot_crawl.max(Some(time));
        }
        if let Observation::Exchange(exchange) = observation {
            client.learn(exchange);
            self.signs.learn(exchange, &self.imds_server);
            self.v1_read = self.v1_read.max(client.v1_read);
            if let Some((time, there)) = client.role_listing {
                let newest = if there {
                    &mut self.role_listed
                } else {
                    &mut self.role_unlisted
                };
                *newest = (*newest).max(Some(time));
            }
            learn_role(&mut self.role_given, exchange);
            if answered(exchange) && !exchange.endpoint().is_agent() {
                let (of_client, of_host) = if is_v6(&exchange.connection.remote) {
                    (&mut client.v6_answered, &mut self.v6_answered)
                } else {
                    (&mut client.v4_answered, &mut self.v4_answered)
                };
                *of_client = (*of_client).max(Some(time));
                *of_host = (*of_host).max(Some(time));
            }
        }
        Some(known)
    }

    /// Who made the observation that was learnt last, and the client that they belong to.
    pub(super) fn known(&self, Known(slot): Known) -> (&Caller, &Client) {
        let caller = match (slot, &self.unattributed) {
            (Some(slot), _) => self.callers.at(slot),
            (None, Some(unattributed)) => unattributed,
            (None, None) => unreachable!("it was learnt"),
        };
        let Some((_, client)) = self.clients.peek_mru() else {
            unreachable!("it was learnt");
        };
        (caller, client)
    }
}

/// Notes the role whose credentials this exchange returned.
fn learn_role(given: &mut Option<(Box<str>, Time)>, exchange: &Of<'_, Exchange>) {
    let (Some(200), Some(path)) = (status(exchange), exchange.request.path.as_deref()) else {
        return;
    };
    if !path.contains("/security-credentials/") || given.as_ref().is_some_and(|(_, time)| *time > exchange.time) {
        return;
    }
    let path = normalise(path);
    let Some(role) = role_of(below_version(&path)) else {
        return;
    };
    match given {
        Some((name, time)) if **name == *role => *time = exchange.time,
        _ => *given = Some((role.into(), exchange.time)),
    }
}

/// Who made an observation, until the next is learnt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known(Option<usize>);

/// A client as the subject of a finding that is written later.
#[derive(Clone, Debug)]
pub struct Who {
    process: Option<Arc<Process>>,
    container: Option<Arc<Container>>,
    /// Its own end of the connection, where nothing better is known.
    local: Option<Box<str>>,
    key: Option<Arc<str>>,
    /// How many of it have been seen.
    processes: u64,
}

impl Who {
    pub fn process(&self) -> Option<&Process> {
        self.process.as_deref()
    }

    pub fn subject(&self) -> Subject {
        let (process, container) = (self.process.as_deref(), self.container.as_deref());
        Subject {
            key: self.key.as_deref().unwrap_or("unknown").to_owned(),
            name: Group::of(process, container, self.local.as_deref()).name(self.processes),
            process: self.process.clone(),
            container: self.container.clone(),
            workload: workload::workload(process, container),
        }
    }
}

/// Facts that are derived once from a caller's description.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) handle: u64,
    pub(super) location_key: Arc<str>,
    pub(super) place_id: u64,
    /// Distinguishes process images.
    image: u64,
    cloud_init: bool,
}

impl Caller {
    fn of(observation: &Observation<'_>, hasher: &RandomState, host: &HostFacts) -> Self {
        let mut handle = hasher.build_hasher();
        if let Some(group) = group(observation) {
            group.hash_into(&mut handle);
        }
        let process = observation.process();
        let (location_key, _) = location(Some(observation), host);
        Self {
            handle: handle.finish(),
            place_id: hasher.hash_one(&*location_key),
            location_key: location_key.into(),
            image: process.map_or(0, |process| hasher.hash_one((process.pid, process.start_time))),
            cloud_init: process.is_some_and(|process| is_cloud_init(process)),
        }
    }
}

impl Client {
    fn learn(&mut self, exchange: &Of<'_, Exchange>) {
        self.requests += 1;
        if let Some(agent) = exchange.request.user_agent.as_deref()
            && self.user_agent.as_deref() != Some(clip(agent))
        {
            self.user_agent = Some(clip(agent).into());
            self.cloud_init |= agent.starts_with("Cloud-Init");
        }
        let time = exchange.time;
        self.learn_answer(exchange);
        match exchange.request.imds_version {
            Some(ImdsVersion::Token) => {
                let fate = token_fate(exchange);
                self.asked_for_token(time, fate);
                if fate == TokenFate::Granted {
                    if self.last_v1.is_none_or(|v1| v1 <= time) {
                        self.v1_cause = None;
                    }
                } else if let Some(v1) = self.last_v1
                    && v1 >= time
                    && v1.since(time) <= fallback_ns(fate)
                {
                    // The token request ended, and so was recorded, after the fallback that followed it.
                    self.v1_cause = cause_of(fate).or(self.v1_cause);
                }
            }
            Some(ImdsVersion::V1 | ImdsVersion::V2) if let Some(status) = wrong_token_method(exchange) => {
                self.asked_for_token(time, TokenFate::Rejected(status));
            }
            Some(ImdsVersion::V2) if answered(exchange) => self.v1_cause = None,
            Some(ImdsVersion::V1) if !is_probe(exchange) => {
                self.last_v1 = self.last_v1.max(Some(time));
                if let Some((asked, fate)) = self.token
                    && asked <= time
                    && time.since(asked) <= fallback_ns(fate)
                {
                    self.v1_cause = cause_of(fate).or(self.v1_cause);
                }
            }
            _ => {}
        }
    }

    fn learn_answer(&mut self, exchange: &Of<'_, Exchange>) {
        let v1 = match exchange.request.imds_version {
            Some(ImdsVersion::V1) => true,
            Some(ImdsVersion::V2) => false,
            _ => return,
        };
        let (Some(status), false) = (status(exchange), is_probe(exchange)) else {
            return;
        };
        if (200..300).contains(&status) {
            self.read = self.read.max(Some(exchange.time));
            if v1 {
                self.v1_read = self.v1_read.max(Some(exchange.time));
            }
        }
        self.learn_length(exchange, status);
        if matches!(status, 200 | 404)
            && let Some(path) = exchange.request.path.as_deref()
            && path.trim_end_matches('/').ends_with("/security-credentials")
            && is_role_listing(below_version(&normalise(path)))
            && self.role_listing.is_none_or(|(newest, _)| exchange.time >= newest)
        {
            self.role_listing = Some((exchange.time, status == 200));
        }
    }

    fn learn_length(&mut self, exchange: &Of<'_, Exchange>, status: u16) {
        let time = exchange.time;
        let length = exchange.response.as_ref().and_then(|response| response.length);
        let (200, Some(length), Some(path)) = (status, length, exchange.request.path.as_deref()) else {
            return;
        };
        if !path.contains("/security-credentials/") || role_of(below_version(&normalise(path))).is_none() {
            return;
        }
        self.short = match self.short {
            _ if length >= CREDENTIALS_BYTES => None,
            Some((first, last, count)) if time.since(last) <= SHORT_ROW_NS => {
                Some((first.min(time), last.max(time), count + 1))
            }
            _ => Some((time, time, 1)),
        };
    }

    /// Whether the responses to its credentials requests hold no credentials, which is why it fetches again.
    pub(super) fn has_unusable_credentials(&self) -> bool {
        self.short
            .is_some_and(|(first, last, count)| count >= SHORT_ANSWERS && last.since(first) >= SHORT_SPREAD_S * SECOND)
    }

    fn asked_for_token(&mut self, time: Time, fate: TokenFate) {
        if self.token.is_none_or(|(newest, _)| time >= newest) {
            self.token = Some((time, fate));
        }
    }

    pub fn short_lived(&self) -> bool {
        self.processes > 2 && self.requests < self.processes.saturating_mul(8)
    }
}

fn cause_of(fate: TokenFate) -> Option<V1Cause> {
    match fate {
        TokenFate::Lost { request_ttl, .. } => Some(V1Cause::HopLimit { request_ttl }),
        TokenFate::Unanswered => Some(V1Cause::TokenUnanswered),
        TokenFate::Forbidden => Some(V1Cause::Proxy),
        TokenFate::Rejected(400) => Some(V1Cause::BadRequest),
        TokenFate::Rejected(429) => Some(V1Cause::Throttled(429)),
        TokenFate::Rejected(status) => Some(V1Cause::Refused(status)),
        TokenFate::Granted => None,
    }
}

/// How long after such a token request a request without a token is its consequence.
fn fallback_ns(fate: TokenFate) -> u64 {
    match fate {
        TokenFate::Rejected(_) => REFUSAL_NS,
        _ => FALLBACK_NS,
    }
}

/// `HEAD` and `OPTIONS` read nothing: any answer serves such a client, 401 as well.
pub(super) fn is_probe(exchange: &Exchange) -> bool {
    matches!(exchange.request.method.as_deref(), Some("HEAD" | "OPTIONS"))
}

/// The status that refuses a request on the token path with another method than `PUT`.
pub(super) fn wrong_token_method(exchange: &Exchange) -> Option<u16> {
    let refused = status(exchange).filter(|status| *status >= 300 && *status != 401)?;
    let method = exchange.request.method.as_deref().filter(|method| *method != "PUT")?;
    let path = exchange.request.path.as_deref()?;
    (!is_probe(exchange) && !method.is_empty() && is_token_path(path)).then_some(refused)
}

/// Result of this token request.
pub(super) fn token_fate(exchange: &Exchange) -> TokenFate {
    let Some(response) = &exchange.response else {
        return TokenFate::Unanswered;
    };
    if response.delivered != Some(true) && response.status.is_none_or(|status| status == 200) {
        // Without the request's TTL only a response that no router may pass on any more is proof; without its own there is none.
        let spent = exchange.outcome == ExchangeOutcome::Lost && response.ttl.is_some_and(|ttl| ttl <= 1);
        if ttl_too_small(exchange).unwrap_or(spent) {
            return TokenFate::Lost {
                request_ttl: exchange.request.wire_ttl(),
                response_ttl: response.ttl,
            };
        }
    }
    match (exchange.outcome, response.status) {
        (ExchangeOutcome::Answered, Some(200)) => TokenFate::Granted,
        (ExchangeOutcome::Answered, Some(403)) => TokenFate::Forbidden,
        (ExchangeOutcome::Answered, Some(status)) => TokenFate::Rejected(status),
        _ => TokenFate::Unanswered,
    }
}

/// Forwarding hops that a request with this TTL has crossed: senders start at 64, few at 128 or 255.
pub(super) fn hops(request_ttl: u8) -> u8 {
    match request_ttl {
        0..=64 => 64 - request_ttl,
        65..=128 => 128 - request_ttl,
        _ => 255 - request_ttl,
    }
}

/// Requests and responses pass the same number of forwarding hops, so a response dies on its way exactly when `response_ttl <= 64 - request_ttl`.
/// `None`: one of both is not known.
pub(super) fn ttl_too_small(exchange: &Exchange) -> Option<bool> {
    let request_ttl = exchange.request.wire_ttl()?;
    let response_ttl = exchange.response.as_ref()?.ttl?;
    Some(response_ttl <= hops(request_ttl))
}

/// The smallest hop limit with which a token response reaches a client this far away.
pub(super) fn sufficient_hop_limit(request_ttl: u8) -> u8 {
    hops(request_ttl).saturating_add(1).clamp(2, 64)
}

/// The process has a whole answer of the service, good or bad.
pub(super) fn answered(exchange: &Exchange) -> bool {
    exchange.outcome == ExchangeOutcome::Answered && exchange.response.is_some()
}

/// Status of an answer that reached the process.
pub(super) fn status(exchange: &Exchange) -> Option<u16> {
    if exchange.outcome != ExchangeOutcome::Answered {
        return None;
    }
    exchange.response.as_ref()?.status
}

pub(super) fn is_v6(address: &str) -> bool {
    // Nearly always: an IPv4 address is recognized by its first four characters.
    if address.bytes().take(4).find(|byte| matches!(byte, b'.' | b':' | b'[')) == Some(b'.') {
        return false;
    }
    address.starts_with('[') || address.bytes().filter(|byte| *byte == b':').count() > 1
}

/// The first [`MAX_USER_AGENT`] characters.
fn clip(agent: &str) -> &str {
    if agent.len() <= MAX_USER_AGENT {
        return agent;
    }
    // Nearly always: then a character is a byte.
    if let Some(start) = agent.get(..MAX_USER_AGENT)
        && start.is_ascii()
    {
        return start;
    }
    agent
        .char_indices()
        .nth(MAX_USER_AGENT)
        .map_or(agent, |(end, _)| &agent[..end])
}

fn is_cloud_init(process: &Process) -> bool {
    process.comm.starts_with("cloud-init")
        || process.cmdline.as_deref().is_some_and(|arguments| {
            arguments
                .iter()
                .take(3)
                .any(|argument| argument.ends_with("/cloud-init"))
        })
}

/// Key and name of the place where a fault of the network sits.
fn location(observation: Option<&Observation<'_>>, host: &HostFacts) -> (String, String) {
    if let Some(container) = observation.and_then(Observation::container) {
        return if let Some(pod) = &container.pod {
            let name = workload::pod_name(pod);
            (format!("pod/{name}"), format!("pod {name}"))
        } else {
            let name = container.name.as_deref().unwrap_or(&container.id);
            (format!("container/{name}"), format!("container {name}"))
        };
    }
    let process = observation.and_then(Observation::process);
    let connection = observation.and_then(Observation::connection);
    // As in a capture: the client's own address is all that is known of it.
    if process.is_none()
        && let Some(local) = connection.and_then(|connection| connection.local.as_deref())
    {
        let address = local.rsplit_once(':').map_or(local, |(address, _)| address);
        return (format!("address/{address}"), format!("client {address}"));
    }
    match (process.and_then(|process| process.netns), host.netns) {
        (Some(own), Some(host)) if own != host => (format!("netns/{own}"), format!("network namespace {own}")),
        _ => (HOST.to_owned(), HOST.to_owned()),
    }
}

fn group<'a>(observation: &Observation<'a>) -> Option<Group<'a>> {
    let connection = observation.connection()?;
    Some(Group::of(
        observation.process().map(AsRef::as_ref),
        observation.container().map(AsRef::as_ref),
        connection.local.as_deref(),
    ))
}

/// An interface row of a summary as a sample: its busiest second, since that is what the quota limits.
pub(super) fn sample_of(summary: &Summary, interface: &InterfaceSummary) -> InterfaceSample {
    let class = |name: &str| interface.peak_by_class.get(name).copied().unwrap_or(0);
    let mut egress = [class("imds"), class("dns"), class("ntp"), class("other")];
    let reported: u64 = egress.iter().sum();
    egress[3] += interface.peak_packets_per_s.saturating_sub(reported);
    InterfaceSample {
        time: summary.to,
        name: interface.name.as_str().into(),
        interval_ns: SECOND,
        egress,
        ingress: [0; 4],
        allowance_exceeded: interface.allowance_exceeded,
        resolver: interface.vpc_resolver.clone(),
    }
}

impl<'a> Context<'a> {
    /// Who made the observed request. `None` for interfaces and ticks.
    pub fn client(&self) -> Option<&'a Client> {
        self.client
    }

    /// The token of the observed request, as records name it.
    pub fn token(&self) -> Option<&'a str> {
        match self.observation {
            Some(Observation::Exchange(exchange)) => exchange.request.token.as_deref(),
            _ => None,
        }
    }

    /// The client as a finding's subject.
    pub fn client_subject(&self) -> Subject {
        match &self.observation {
            Some(_) => self.who().subject(),
            None => self.host_subject(),
        }
    }

    /// The same for a finding that is written later.
    pub fn who(&self) -> Who {
        let observation = self.observation.as_ref();
        let process = observation.and_then(Observation::process);
        let container = observation.and_then(Observation::container);
        let local = || observation.and_then(Observation::connection)?.local.as_deref();
        Who {
            process: process.cloned(),
            container: container.cloned(),
            local: match (process, container) {
                (None, None) => local().map(Into::into),
                _ => None,
            },
            key: self.client.map(|client| client.key.clone()),
            processes: self.client.map_or(1, |client| client.processes),
        }
    }

    /// Where a fault of the network sits: in the pod that was hit, else the host.
    pub fn location_subject(&self) -> Subject {
        let (key, name) = location(self.observation.as_ref(), self.host);
        self.subject(key, name)
    }

    /// Key of [`Self::location_subject`].
    pub fn location_key(&self) -> &'a str {
        self.location_key
    }

    /// The host, and the process that showed it.
    pub fn host_subject(&self) -> Subject {
        self.subject("host".to_owned(), "host".to_owned())
    }

    /// Any other subject that the observed process showed.
    pub fn subject(&self, key: String, name: String) -> Subject {
        let process = self.observation.as_ref().and_then(Observation::process);
        let container = self.observation.as_ref().and_then(Observation::container);
        Subject {
            key,
            name,
            process: process.cloned(),
            container: container.cloned(),
            workload: workload::workload(process.map(AsRef::as_ref), container.map(AsRef::as_ref)),
        }
    }

    /// Within 120 s of the boot, or a crawler of the boot: its bursts are no fault.
    pub fn booting(&self, time: Time) -> bool {
        self.client.is_some_and(|client| client.cloud_init)
            || self
                .host
                .boot_time
                .is_some_and(|boot| time >= boot && time.since(boot) < 120 * SECOND)
    }
}
