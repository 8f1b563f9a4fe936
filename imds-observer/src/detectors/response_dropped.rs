//! Responses reach this host and are dropped before the client, for a reason other than their TTL.
//!
//! ## Detects
//!
//! Requests whose response arrived at the uplink (or in the capture) and was not delivered, where the TTL is not the
//! reason: it suffices for the path of the request, or the kernel reports another reason. Also connections whose SYN-ACKs
//! arrived but reached no socket. A finding needs three of one client within 15 minutes, or two if there were only two; a
//! single handshake is enough if the kernel names a drop reason or the client sent three SYNs. Severity: `high` if at least a quarter of the client's requests since the first of them
//! are lost, else `warning`. One finding per client.
//!
//! `evidence.reason` is the kernel's drop reason, or null if no drop was recorded. `evidence.only_token_responses` is
//! true if all other responses to the client arrive: then the return path may have more hops than the request path, which
//! affects only responses with a small TTL. If the TTL is too small for the path of the request, `token-response-lost`
//! reports it. Firewall rules and policies that drop requests are `blocked-by-firewall` and `denied-by-policy`.
//!
//! ## Why it matters
//!
//! The endpoint works, and a higher hop limit doesn't help. Known reasons:
//!
//! - the reverse path filter, if responses arrive on another interface than requests leave through,
//! - a missing conntrack entry (`NOTRACK`, or a flushed entry): NAT isn't reversed, and no socket matches,
//! - an ingress policy in traffic control or XDP,
//! - a firewall rule for packets in state INVALID.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:13:41.000000000Z",
//!   "host": "node-1",
//!   "code": "response-dropped",
//!   "severity": "high",
//!   "state": "update",
//!   "subject": {"container":{"id":"000000000000000000000000000000000000000000000000000000000000141f","image":null,"name":"app","pod":{"name":"api-7c9d8b6f5d-x2x4z","namespace":"payments","uid":"00000000-0000-4000-8000-000000005151"},"runtime":"containerd"},"key":"pod/payments/api-7c9d8b6f5d-x2x4z/app/python3.11 app.py","name":"pod payments/api-7c9d8b6f5d-x2x4z","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/kubepods/burstable/pod5151/000000000000000000000000000000000000000000000000000000000000141f","cmdline":["python3","app.py"],"comm":"python3.11","exe":"/usr/local/bin/python3.11","namespace_pid":1,"netns":4026537151,"pid":5151,"start_time":"2023-11-14T21:13:20.000000000Z","tid":5151,"uid":1000},"workload":"payments/api"},
//!   "first_seen": "2023-11-14T22:13:20.000000000Z",
//!   "last_seen": "2023-11-14T22:13:40.000000000Z",
//!   "count": 3,
//!   "summary": "3 responses for pod payments/api-7c9d8b6f5d-x2x4z reached this host and were dropped: location and reason unknown (3 of its last 3 requests)",
//!   "evidence": {"client":"10.0.1.5:40011","handshakes":0,"hops":1,"lost":3,"of_requests":3,"only_token_responses":false,"reason":null,"recent":3,"request_ttl":63,"response_retransmits":6,"response_ttl":255,"seconds_lost":3.0,"token_responses":0},
//!   "remedy": {"commands":["imds-observer stream --records drop,exchange --duration 60s","nstat -az TcpExtIPReversePathFilter","conntrack -S","sysctl -a --pattern 'net.ipv4.conf.*.rp_filter'"],"text":"Record drops on the host: `imds-observer stream` reports the kernel's drop reason and function. Also capture on the client's own interface: if the responses appear there, the client's network drops them; otherwise the host does. Compare the counters of the reverse path filter and of conntrack before and after. The cause is unknown. It is not the TTL, which is large enough."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! A capture without acknowledgments can't prove that a response was delivered. Then only responses that the server
//! retransmits count.
//!
//! ## Options
//!
//! `[detectors.response-dropped]`
//!
//! - `quiet_s` (900): seconds without a lost response until the finding is resolved.
//!
//! ## References
//!
//! - <https://www.kernel.org/doc/Documentation/networking/ip-sysctl.txt> (`rp_filter`)
//! - `man 8 conntrack`

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::connectivity::{Cause, UNNAMED, is_spent, is_ttl_drop, location_of, of_connect};
use super::knowledge::{hops, token_fate, ttl_too_small};
use super::share::{Recent, Share};
use super::table::{bounded, entry};
use super::{
    Client, Context, Details, Detector, Exchanges, Limits, Observation, Scope, Sighting, Sightings, TokenFate,
};
use crate::record::{
    Code, Connect, Exchange, ExchangeOutcome, ImdsVersion, Of, PacketDirection, Remedy, SECOND, Severity, Time,
};

/// Clients that are remembered.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Connections with a dropped response whose exchange hasn't come yet.
const MAX_DROPS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub quiet_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { quiet_s: 900 }
    }
}

#[derive(Default)]
struct Losses {
    share: Share,
    lost: u64,
    token_responses: u64,
    handshakes: u64,
    waited_ns: u64,
    retransmits: u64,
    /// Newest.
    drop: Option<Dropped>,
    request_ttl: Option<u8>,
    response_ttl: Option<u8>,
}

/// SYNs after which a lost packet is no explanation any more, and the wait that goes with them.
const PATIENT_SYNS: u32 = 3;
const PATIENT_NS: u64 = 3 * SECOND;

/// Why a response was dropped.
struct Dropped {
    /// `reason@function`.
    text: String,
    /// Its TTL was used up in forwarding.
    spent: bool,
}

/// A dropped packet of a response.
struct DroppedPacket {
    time: Time,
    cause: Dropped,
    for_ttl: bool,
    /// The kernel names a reason or a function.
    named: bool,
}

pub(super) struct ResponseDropped {
    config: Config,
    clients: LruCache<u64, Losses>,
    /// By connection id.
    drops: LruCache<String, DroppedPacket>,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> ResponseDropped {
    ResponseDropped {
        config: config.clone(),
        clients: bounded(limits.clients(MAX_CLIENTS)),
        drops: bounded(limits.connections(MAX_DROPS)),
        evicted: 0,
    }
}

impl Detector for ResponseDropped {
    fn code(&self) -> Code {
        Code::ResponseDropped
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
        let Some(client) = context.client() else { return };
        match observation {
            Observation::Drop(drop) if drop.direction == PacketDirection::Response => {
                let (reason, location) = (drop.reason.as_deref(), drop.location.as_deref());
                let dropped = DroppedPacket {
                    time: drop.time,
                    cause: Dropped {
                        text: location_of(reason, location),
                        spent: is_ttl_drop(reason, location),
                    },
                    for_ttl: is_spent(drop),
                    named: reason.is_some_and(|reason| reason != "NOT_SPECIFIED") || location.is_some(),
                };
                if let Some((other, _)) = self.drops.push(drop.connection.id.clone(), dropped)
                    && other != drop.connection.id
                {
                    self.evicted += 1;
                }
            }
            Observation::Exchange(exchange) => self.exchange(exchange, client, context, sightings),
            Observation::Connect(connect) => self.connect(connect, client, context, sightings),
            _ => {}
        }
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}

impl ResponseDropped {
    fn exchange(
        &mut self,
        exchange: &Of<'_, Exchange>,
        client: &Client,
        context: &Context<'_>,
        sightings: &mut Sightings<'_>,
    ) {
        let dropped = self.drops.pop(&exchange.connection.id);
        let is_token = exchange.request.imds_version == Some(ImdsVersion::Token);
        let lost = exchange.outcome == ExchangeOutcome::Lost && exchange.response.is_some();
        // Without a program at the uplink the drop alone shows that a response came. What comes when the client has gone explains nothing.
        let over = exchange.waited_ns.map(|waited| exchange.time.plus_ns(waited));
        let unanswered = matches!(exchange.outcome, ExchangeOutcome::Unanswered | ExchangeOutcome::Closed)
            && exchange.response.is_none()
            && dropped
                .as_ref()
                .zip(over)
                .is_some_and(|(dropped, over)| dropped.named && dropped.time <= over);
        if !lost && !unanswered {
            return;
        }
        let for_ttl = match &dropped {
            Some(dropped) => dropped.for_ttl,
            // Without a drop record the TTLs decide: token-response-lost takes what they prove.
            None => matches!(token_fate(exchange), TokenFate::Lost { .. }) || ttl_too_small(exchange) == Some(true),
        };
        if for_ttl {
            return;
        }
        let losses = entry(&mut self.clients, client.handle, &mut self.evicted, Losses::default);
        losses.token_responses += u64::from(is_token);
        losses.request_ttl = exchange.request.ttl.or(losses.request_ttl);
        if let Some(response) = &exchange.response {
            losses.response_ttl = response.ttl.or(losses.response_ttl);
            losses.retransmits += u64::from(response.retransmits);
        }
        losses.waited_ns = losses.waited_ns.saturating_add(exchange.waited_ns.unwrap_or(0));
        losses.drop = dropped.map(|dropped| dropped.cause).or(losses.drop.take());
        let local = exchange.connection.local.as_deref();
        losses.report(exchange.time, local, false, client, context, sightings);
    }

    fn connect(
        &mut self,
        connect: &Of<'_, Connect>,
        client: &Client,
        context: &Context<'_>,
        sightings: &mut Sightings<'_>,
    ) {
        let dropped = self.drops.pop(&connect.connection.id);
        if of_connect(connect, context.knowledge.drop_note(&connect.connection.id)) != Some(Cause::ResponseDropped) {
            return;
        }
        let losses = entry(&mut self.clients, client.handle, &mut self.evicted, Losses::default);
        losses.handshakes += 1;
        losses.waited_ns = losses.waited_ns.saturating_add(connect.elapsed_ns);
        let proven = dropped.as_ref().is_some_and(|dropped| dropped.named)
            || connect.dropped.is_some()
            || connect.syns.max(connect.wire_syns) >= PATIENT_SYNS
            || connect.elapsed_ns >= PATIENT_NS;
        losses.drop = dropped
            .map(|dropped| dropped.cause)
            .or_else(|| {
                connect.dropped.as_ref().map(|dropped| Dropped {
                    text: dropped.to_string(),
                    spent: is_ttl_drop(dropped.reason.as_deref(), dropped.location.as_deref()),
                })
            })
            .or(losses.drop.take());
        let local = connect.connection.local.as_deref();
        losses.report(connect.time, local, proven, client, context, sightings);
    }
}

impl Losses {
    /// `proven`: this one shows it, without others.
    fn report(
        &mut self,
        time: Time,
        local: Option<&str>,
        proven: bool,
        client: &Client,
        context: &Context<'_>,
        sightings: &mut Sightings<'_>,
    ) {
        self.lost += 1;
        // A connection that failed is no request.
        let recent = self.share.add(time, client.requests + self.handshakes);
        let open = sightings.is_open(&client.key);
        if !recent.is_pattern() && !open && !proven {
            return;
        }
        let sighting = Sighting {
            key: &client.key,
            severity: if recent.is_large() || proven && recent.occurrences * 4 >= recent.of {
                Severity::High
            } else {
                Severity::Warning
            },
            time,
            count: if open { 1 } else { self.lost },
            news: false,
        };
        sightings
            .since(recent.since)
            .report(sighting, || self.details(recent, local, context));
    }

    fn details(&self, recent: Recent, local: Option<&str>, context: &Context<'_>) -> Details {
        let subject = context.client_subject();
        let only_tokens = self.token_responses == self.lost
            && self.request_ttl.is_some()
            && self.response_ttl.is_some_and(|ttl| ttl <= 64);
        let reason = self.drop.as_ref().map(|dropped| dropped.text.as_str());
        let handshakes = self.handshakes == self.lost;
        let (why, remedy) = remedy(reason, only_tokens, handshakes, self);
        let (name, lost) = (&subject.name, self.lost);
        let what = match (handshakes, lost) {
            (true, 1) => format!("the SYN-ACKs of a connection of {name} reached this host and were dropped"),
            (true, _) => format!("the SYN-ACKs of {lost} connections of {name} reached this host and were dropped"),
            (false, 1) => format!("1 response for {name} reached this host and was dropped"),
            (false, _) => format!("{lost} responses for {name} reached this host and were dropped"),
        };
        Details {
            summary: format!(
                "{what}: {why} ({} of its last {} requests)",
                recent.occurrences, recent.of
            ),
            evidence: evidence! {
                "lost": self.lost,
                "token_responses": self.token_responses,
                "handshakes": self.handshakes,
                "only_token_responses": only_tokens,
                "seconds_lost": (self.waited_ns as f64 / 1e6).round() / 1e3,
                "reason": reason,
                "request_ttl": self.request_ttl,
                "response_ttl": self.response_ttl,
                "hops": self.request_ttl.map(hops),
                "response_retransmits": self.retransmits,
                "recent": recent.occurrences,
                "of_requests": recent.of,
                "client": local,
            },
            remedy,
            subject,
        }
    }
}

/// Why, in a few words, and what to do.
fn remedy(reason: Option<&str>, only_tokens: bool, handshakes: bool, losses: &Losses) -> (String, Remedy) {
    let look = |commands: &[&str]| commands.iter().map(|command| (*command).to_owned()).collect();
    let by = reason.unwrap_or_default();
    let has = |part: &str| by.contains(part);
    if has("RPFILTER") {
        return (
            "the reverse path filter (rp_filter) rejects the interface on which they arrive".to_owned(),
            Remedy {
                text: "Make responses arrive on the interface that requests leave through: fix the route or rule that sends them elsewhere. Or set rp_filter=2 (loose) on the interface where they arrive."
                    .to_owned(),
                commands: look(&[
                    "ip route get 169.254.169.254",
                    "ip rule",
                    "sysctl -a --pattern 'net.ipv4.conf.*.rp_filter'",
                    "nstat -az TcpExtIPReversePathFilter",
                ]),
            },
        );
    }
    if has("TC_") || has("XDP") || has("BPF") || has("SOCKET_FILTER") || has("tcf_") || has("QDISC") {
        return (
            format!("an ingress policy denies them ({by})"),
            Remedy {
                text: "Allow packets from the endpoint in the policy that denies them: a network policy of an eBPF datapath, or a \
                       traffic control filter."
                    .to_owned(),
                commands: look(&["bpftool net show", "tc filter show dev INTERFACE ingress", "bpftool cgroup tree"]),
            },
        );
    }
    if handshakes && losses.drop.as_ref().is_some_and(|dropped| dropped.spent) {
        return (
            format!("their TTL is used up in forwarding ({by})"),
            Remedy {
                text: "The TTL is too small for the hops between this host's uplink and the client. IMDS limits the TTL of token responses only, not of SYN-ACKs: find what reduces it (a proxy, another server in place of IMDS, or a rule that changes TTLs)."
                    .to_owned(),
                commands: look(&[
                    "iptables-save -t mangle | grep -n TTL",
                    "nft list ruleset | grep -n 'ip ttl set'",
                    "tcpdump -nvi any 'host 169.254.169.254 and tcp[tcpflags] & tcp-syn != 0'",
                ]),
            },
        );
    }
    if has("NETFILTER") || has("nft_") || has("nf_hook") {
        return (
            format!("a netfilter rule drops them ({by})"),
            Remedy {
                text: "Find the rule that drops packets from the endpoint: often it matches conntrack state INVALID, or an accept rule for ESTABLISHED,RELATED is missing. `imds-observer doctor` checks the rules."
                    .to_owned(),
                commands: look(&["iptables-save -c | grep -nE 'INVALID|DROP|REJECT'", "nft list ruleset", "conntrack -S"]),
            },
        );
    }
    if has("NO_SOCKET") {
        return (
            format!("no socket on this host matches them ({by}): NAT was not reversed"),
            Remedy {
                text: "Check whether conntrack tracks these connections. Possible causes: a NOTRACK rule, a flushed or full conntrack table, or a return path that bypasses the NAT."
                    .to_owned(),
                commands: look(&[
                    "iptables-save -t raw | grep -n NOTRACK",
                    "conntrack -L -d 169.254.169.254",
                    "sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max",
                ]),
            },
        );
    }
    if let Some(reason) = reason.filter(|reason| *reason != UNNAMED) {
        return (
            format!("the kernel's reason is {reason}"),
            Remedy {
                text: "Look up the kernel's drop reason (include/net/dropreason-core.h) and fix its cause.".to_owned(),
                commands: look(&[
                    "imds-observer stream --records drop,exchange --duration 60s",
                    "imds-observer doctor",
                ]),
            },
        );
    }
    if handshakes {
        return (
            "they reach no socket, for an unknown reason".to_owned(),
            Remedy {
                text: "Find out what prevents the SYN-ACKs from reaching the socket that sent the SYN: an expired NAT entry, a return route \
                       through another interface or VRF, reverse path filtering, or an eBPF program on the socket's cgroup. \
                       `imds-observer stream` on the host reports the kernel's drop reason."
                    .to_owned(),
                commands: look(&[
                    "conntrack -L -d 169.254.169.254",
                    "ip route get 169.254.169.254",
                    "nstat -az TcpExtIPReversePathFilter",
                    "imds-observer stream --records drop,connect --duration 60s",
                ]),
            },
        );
    }
    let decide = "Record drops on the host: `imds-observer stream` reports the kernel's drop reason and function. Also capture on the client's own interface: if the responses appear there, the client's network drops them; otherwise the host does. Compare the counters of the reverse path filter and of conntrack before and after.";
    let commands = look(&[
        "imds-observer stream --records drop,exchange --duration 60s",
        "nstat -az TcpExtIPReversePathFilter",
        "conntrack -S",
        "sysctl -a --pattern 'net.ipv4.conf.*.rp_filter'",
    ]);
    if only_tokens {
        let ttl = losses.response_ttl.map_or(String::new(), |ttl| format!(" {ttl}"));
        let there = losses.request_ttl.map_or_else(
            || "an unknown number of hops".to_owned(),
            |ttl| match hops(ttl) {
                1 => "1 hop".to_owned(),
                hops => format!("{hops} hops"),
            },
        );
        return (
            format!(
                "their TTL{ttl} is large enough for the path of the requests ({there}): either the return path has more hops, or a rule on it drops them"
            ),
            Remedy {
                text: format!(
                    "{decide} The cause is unknown. Only token responses are lost, and only they have a small TTL, so a return path with more hops would explain it: a TTL of 1 on the client side of this host would prove it."
                ),
                commands,
            },
        );
    }
    let known = if losses.token_responses > 0 && (losses.request_ttl.is_none() || losses.response_ttl.is_none()) {
        "The cause is unknown, because the TTLs were not observed: the hop limit may be too small for the token responses."
    } else {
        "The cause is unknown. It is not the TTL, which is large enough."
    };
    (
        "location and reason unknown".to_owned(),
        Remedy {
            text: format!("{decide} {known}"),
            commands,
        },
    )
}
