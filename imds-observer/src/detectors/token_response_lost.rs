//! The hop limit is too small: token responses reach this host and are dropped on the way to the client.
//!
//! ## Detects
//!
//! A token request (`PUT /latest/api/token`) whose response arrived at this host's uplink with an IP TTL too small to be
//! forwarded to the client, and was not delivered. IMDS sends token responses with the instance's hop limit as TTL
//! (default 1), so a response is lost exactly if `response.ttl <= 64 - request.ttl`. Both conditions must hold: the
//! formula, and a response that was not delivered. The kernel's drop reason is evidence but no condition, because an eBPF datapath drops packets
//! elsewhere. If one of the TTLs is unknown, the outcome `lost` or a drop for the TTL (`IP_INHDR`) is used instead.
//!
//! One finding per client. It is updated if the client falls back to IMDSv1.
//!
//! ## Why it matters
//!
//! The client waits for its own timeout: about 1 s each time botocore loads credentials, up to 16 s with .NET. Then it
//! falls back to IMDSv1, or fails. Once `--http-tokens required` is set, all such clients fail.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:28:21.000000000Z",
//!   "host": "node-1",
//!   "code": "token-response-lost",
//!   "severity": "high",
//!   "state": "update",
//!   "subject": {"container":{"id":"000000000000000000000000000000000000000000000000000000000000141f","image":null,"name":"app","pod":{"name":"api-7c9d8b6f5d-x2x4z","namespace":"payments","uid":"00000000-0000-4000-8000-000000005151"},"runtime":"containerd"},"key":"pod/payments/api-7c9d8b6f5d-x2x4z/app/python3.11 app.py","name":"pod payments/api-7c9d8b6f5d-x2x4z","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/kubepods/burstable/pod5151/000000000000000000000000000000000000000000000000000000000000141f","cmdline":["python3","app.py"],"comm":"python3.11","exe":"/usr/local/bin/python3.11","namespace_pid":1,"netns":4026537151,"pid":5151,"start_time":"2023-11-14T21:13:20.000000000Z","tid":5151,"uid":1000},"workload":"payments/api"},
//!   "first_seen": "2023-11-14T22:13:20.000000000Z",
//!   "last_seen": "2023-11-14T22:28:20.000000000Z",
//!   "count": 2,
//!   "summary": "the hop limit dropped 2 token responses to pod payments/api-7c9d8b6f5d-x2x4z, costing 2.0 s",
//!   "evidence": {"drop":"IP_INHDR@ip_forward","hops":1,"request_retransmits":0,"request_ttl":63,"response_retransmits":4,"response_ttl":1,"seconds_lost":2.0,"smallest_sufficient_hop_limit":2,"times_lost":2,"user_agent":"Boto3/1.34.0 md/Botocore#1.34.0 ua/2.0 os/linux#6.12 md/arch#x86_64 lang/python#3.11.2","v1_fallback":false,"v1_fallback_requests":0},
//!   "remedy": {"commands":["aws ec2 describe-instances --instance-ids i-0123456789abcdef0 --query 'Reservations[].Instances[].MetadataOptions'","aws ec2 modify-instance-metadata-options --instance-id i-0123456789abcdef0 --http-put-response-hop-limit 2"],"text":"Set the hop limit to 2, the minimum that works. If an Auto Scaling group, Karpenter or another tool creates this host's instances (unknown here), change its launch template too: the next instance has the old value otherwise. Trade-off: any workload one hop from the host, including every pod, can then obtain tokens and the instance role's credentials, unless a network policy forbids it. For pods that need AWS credentials, prefer IRSA or EKS Pod Identity, which give the pod its own role. hostNetwork: true avoids the hop, but exposes the host's whole network to the pod. botocore waits 1 s (AWS_METADATA_SERVICE_TIMEOUT) each time credentials are loaded, and again in every process; a longer timeout only lengthens the wait. If it has other credentials, set AWS_EC2_METADATA_DISABLED=true."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! If pods are blocked from IMDS on purpose, the loss is intended: set `intended`, and the finding is `info`. The formula
//! assumes 64 (or 128, or 255) as the initial TTL of requests; a client with another initial TTL can be misjudged.
//!
//! ## Options
//!
//! `[detectors.token-response-lost]`
//!
//! - `intended` (false): clients in containers are blocked from IMDS on purpose; their findings are `info`.
//! - `quiet_s` (3600): seconds without a loss until the finding is resolved. A delivered token resolves it sooner.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html> (hop limit)
//! - <https://docs.aws.amazon.com/eks/latest/userguide/iam-roles-for-service-accounts.html> (IRSA)
//! - <https://docs.aws.amazon.com/eks/latest/userguide/pod-identities.html> (EKS Pod Identity)

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::{FALLBACK_NS, hops, sufficient_hop_limit, token_fate};
use super::remedy::{self, MetadataOption, Sdk};
use super::table::bounded;
use super::{
    Client, Context, Details, Detector, Exchanges, Limits, Observation, Scope, Sighting, Sightings, TokenFate,
};
use crate::record::{Code, Exchange, ImdsVersion, Of, PacketDirection, Remedy, SECOND, Severity, Time};

/// Clients that are remembered.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Drops whose exchange hasn't come yet.
const MAX_DROPS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub intended: bool,
    pub quiet_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            intended: false,
            quiet_s: 3600,
        }
    }
}

/// Sum of one client's losses.
#[derive(Default)]
struct Losses {
    lost: u64,
    waited_ns: u64,
    request_ttl: Option<u8>,
    response_ttl: Option<u8>,
    request_retransmits: u64,
    response_retransmits: u64,
    drop: Option<String>,
    fallbacks: u64,
    last: Time,
}

/// A packet of a response that was dropped for its TTL.
struct TtlDrop {
    text: String,
    ttl: Option<u8>,
}

pub(super) struct TokenResponseLost {
    config: Config,
    clients: LruCache<u64, Losses>,
    /// By connection id.
    drops: LruCache<String, TtlDrop>,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> TokenResponseLost {
    TokenResponseLost {
        config: config.clone(),
        clients: bounded(limits.clients(MAX_CLIENTS)),
        drops: bounded(limits.connections(MAX_DROPS)),
        evicted: 0,
    }
}

impl Detector for TokenResponseLost {
    fn code(&self) -> Code {
        Code::TokenResponseLost
    }

    fn scope(&self) -> Scope {
        Scope::Tokens
    }

    fn quiet_ns(&self) -> u64 {
        self.config.quiet_s.saturating_mul(SECOND)
    }

    fn wants(&self) -> Exchanges {
        Exchanges::TOKEN | Exchanges::V1
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let Some(client) = context.client() else { return };
        match observation {
            Observation::Drop(drop) if drop.direction == PacketDirection::Response => {
                let text = super::connectivity::location_of(drop.reason.as_deref(), drop.location.as_deref());
                let for_ttl = super::connectivity::is_ttl_drop(drop.reason.as_deref(), drop.location.as_deref());
                if let Some(losses) = self.clients.get_mut(&client.handle) {
                    losses.drop.get_or_insert_with(|| text.clone());
                }
                if for_ttl || drop.ttl.is_some_and(|ttl| ttl <= 1) {
                    let ttl_drop = TtlDrop { text, ttl: drop.ttl };
                    if let Some((other, _)) = self.drops.push(drop.connection.id.clone(), ttl_drop)
                        && other != drop.connection.id
                    {
                        self.evicted += 1;
                    }
                }
            }
            Observation::Exchange(exchange) => match exchange.request.imds_version {
                Some(ImdsVersion::Token) => self.token(exchange, client, context, sightings),
                Some(ImdsVersion::V1) => self.fallback(exchange, client, context, sightings),
                _ => {}
            },
            _ => {}
        }
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}

impl TokenResponseLost {
    fn token(
        &mut self,
        exchange: &Of<'_, Exchange>,
        client: &Client,
        context: &Context<'_>,
        sightings: &mut Sightings<'_>,
    ) {
        let dropped = self.drops.pop(&exchange.connection.id);
        let mut fate = token_fate(exchange);
        if fate == TokenFate::Granted {
            sightings.clear(&client.key, exchange.time);
            return;
        }
        if let (TokenFate::Unanswered, Some(drop)) = (fate, &dropped) {
            // No uplink is seen, but the kernel reported that it dropped the answer for its TTL.
            fate = TokenFate::Lost {
                request_ttl: exchange.request.wire_ttl(),
                response_ttl: drop.ttl,
            };
        }
        let TokenFate::Lost {
            request_ttl,
            response_ttl,
        } = fate
        else {
            return;
        };
        if !self.clients.contains(&client.handle) && self.clients.push(client.handle, Losses::default()).is_some() {
            self.evicted += 1;
        }
        let Some(losses) = self.clients.get_mut(&client.handle) else {
            return;
        };
        losses.lost += 1;
        losses.waited_ns += exchange.waited_ns.unwrap_or(0);
        losses.request_ttl = request_ttl.or(losses.request_ttl);
        losses.response_ttl = response_ttl.or(losses.response_ttl);
        losses.request_retransmits += u64::from(exchange.request.retransmits);
        losses.response_retransmits += exchange.response.as_ref().map_or(0, |r| u64::from(r.retransmits));
        losses.drop = dropped.map(|drop| drop.text).or(losses.drop.take());
        losses.last = losses.last.max(exchange.time);
        let sighting = sighting(&self.config, client, exchange, exchange.time, 1);
        sightings.report(sighting, || losses.details(client, context));
    }

    fn fallback(
        &mut self,
        exchange: &Of<'_, Exchange>,
        client: &Client,
        context: &Context<'_>,
        sightings: &mut Sightings<'_>,
    ) {
        let Some(losses) = self.clients.get_mut(&client.handle) else {
            return;
        };
        let follows = losses.last <= exchange.time && exchange.time.since(losses.last) <= FALLBACK_NS;
        if !follows && losses.fallbacks == 0 {
            return;
        }
        losses.fallbacks += 1;
        let news = losses.fallbacks == 1;
        if news && sightings.is_open(&client.key) {
            let sighting = Sighting {
                news: true,
                ..sighting(&self.config, client, exchange, losses.last, 0)
            };
            sightings.report(sighting, || losses.details(client, context));
        }
    }
}

fn sighting<'a>(config: &Config, client: &'a Client, exchange: &Exchange, time: Time, count: u64) -> Sighting<'a> {
    Sighting {
        key: &client.key,
        severity: if config.intended && exchange.container.is_some() {
            Severity::Info
        } else {
            Severity::High
        },
        time,
        count,
        news: false,
    }
}

impl Losses {
    fn details(&self, client: &Client, context: &Context<'_>) -> Details {
        let subject = context.client_subject();
        let limit = self.request_ttl.map(sufficient_hop_limit);
        let seconds = self.waited_ns as f64 / 1e9;
        let sdk = Sdk::of(client.user_agent.as_deref());
        let then = if self.fallbacks > 0 {
            "; it falls back to IMDSv1"
        } else if sdk == Sdk::Rust {
            "; this client doesn't fall back to IMDSv1, and fails"
        } else {
            ""
        };
        let summary = format!(
            "the hop limit dropped {} token {} to {}, costing {seconds:.1} s{then}",
            self.lost,
            if self.lost == 1 { "response" } else { "responses" },
            subject.name,
        );
        let enough = limit.map_or_else(
            || {
                "Set the hop limit to one more than the hops between the client and this host's uplink, at least 2. The number of hops is \
                 unknown, because the TTL of the client's requests was not seen at the uplink."
                    .to_owned()
            },
            |limit| format!("Set the hop limit to {limit}, the minimum that works."),
        );
        let is_fixed = remedy::options_are_fixed(context.host);
        // Where nothing can be changed, the number doesn't matter.
        let (lasting, change) = limit.or(is_fixed.then_some(2)).map_or_else(Default::default, |limit| {
            remedy::change_option(context.host, MetadataOption::HopLimit(limit))
        });
        let text = format!(
            "{enough}{lasting} Trade-off: any workload {} from the host, including every pod, can then obtain tokens and the instance role's \
             credentials, unless a network policy forbids it.{}{}",
            match limit {
                None => "that many hops".to_owned(),
                Some(2) => "one hop".to_owned(),
                Some(limit) => format!("up to {} hops", limit - 1),
            },
            remedy::pods_better_way(subject.container.as_deref()),
            sdk.without_token(),
        );
        let text = if is_fixed {
            format!("{}{}", lasting.trim_start(), sdk.without_token())
        } else {
            text
        };
        let mut commands = vec![remedy::describe_options(context.host)];
        commands.extend(change);
        Details {
            summary,
            evidence: evidence! {
                "times_lost": self.lost,
                "seconds_lost": (seconds * 1000.0).round() / 1000.0,
                "request_ttl": self.request_ttl,
                "response_ttl": self.response_ttl,
                "hops": self.request_ttl.map(hops),
                "smallest_sufficient_hop_limit": limit,
                "request_retransmits": self.request_retransmits,
                "response_retransmits": self.response_retransmits,
                "drop": self.drop,
                "v1_fallback": self.fallbacks > 0,
                "v1_fallback_requests": self.fallbacks,
                "user_agent": client.user_agent,
            },
            remedy: Remedy { text, commands },
            subject,
        }
    }
}
