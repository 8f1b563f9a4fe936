//! This host redirects IMDS requests to another address: by NAT in OUTPUT or PREROUTING, or by an eBPF program at
//! `connect()`.
//!
//! ## Detects
//!
//! Exchanges and connection attempts with `connection.redirected_to`: the socket connects to the endpoint, and its
//! packets go to another address. Severity: `info` while requests succeed; `high` once attempts are unanswered or the
//! target closes connections without a response. One finding per pod, and one for the host's own processes.
//! `connection-refused` reports a target that refuses connections, with the NAT rule; here refusals count only if the
//! redirection worked before.
//!
//! A redirection outside the client's network namespace (PREROUTING on the node, for a pod) isn't visible at the socket.
//! Then an attempt counts if its SYNs reached no uplink and a NAT rule of this host matches them (`connect.nat_rule`), and
//! an exchange if its request was not seen at an uplink (`request.ttl_on_wire` is false) and such a rule exists.
//!
//! `evidence.target` is the destination of the connections, or the NAT rule that sets it. `evidence.rules` holds the
//! matching NAT rules of this host as they were at the start of the run (`start.nat_rules`); null: they were not read.
//!
//! ## Why it matters
//!
//! The target (kube2iam, kiam, a mesh sidecar, a mock) answers instead of IMDS and causes the failures: the hop limit,
//! routes and the quota don't explain them. Redirecting a pod's packets to 127.0.0.1 fails unless `route_localnet` is set
//! on the interface that receives them: the SYNs disappear without a drop that a rule would show.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:13:43.000000000Z",
//!   "host": "node-1",
//!   "code": "redirected-locally",
//!   "severity": "high",
//!   "state": "update",
//!   "subject": {"container":{"id":"000000000000000000000000000000000000000000000000000000000000141f","image":null,"name":"app","pod":{"name":"api-7c9d8b6f5d-x2x4z","namespace":"payments","uid":"00000000-0000-4000-8000-000000005151"},"runtime":"containerd"},"key":"pod/payments/api-7c9d8b6f5d-x2x4z","name":"pod payments/api-7c9d8b6f5d-x2x4z","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/kubepods/burstable/pod5151/000000000000000000000000000000000000000000000000000000000000141f","cmdline":["python3","app.py"],"comm":"python3.11","exe":"/usr/local/bin/python3.11","namespace_pid":1,"netns":4026537151,"pid":5151,"start_time":"2023-11-14T21:13:20.000000000Z","tid":5151,"uid":1000},"workload":"payments/api"},
//!   "first_seen": "2023-11-14T22:13:20.000000000Z",
//!   "last_seen": "2023-11-14T22:13:40.000000000Z",
//!   "count": 2,
//!   "summary": "this host redirects IMDS requests of pod payments/api-7c9d8b6f5d-x2x4z to 127.0.0.1:1338, where they fail: 2 unanswered",
//!   "evidence": {"aborted":0,"answered":0,"endpoint":"169.254.169.254:80","refused":0,"rules":null,"seconds_lost":6.0,"silent":2,"target":"127.0.0.1:1338"},
//!   "remedy": {"commands":["iptables-save -t nat -c | grep -nE '169\\.254|fd00:ec2|REDIRECT|DNAT'","nft list ruleset","ss -tlnp","sysctl -a --pattern 'net.ipv4.conf.*.route_localnet'"],"text":"The kernel doesn't route packets from other network namespaces to 127.0.0.0/8. Redirect to an address of the interface that receives them, or set net.ipv4.conf.INTERFACE.route_localnet=1 on that interface. Also check that a program listens there (127.0.0.1:1338)."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! Redirecting to a metadata agent is often intended. The finding is then `info` and names the agent's address.
//!
//! ## Options
//!
//! `[detectors.redirected-locally]`
//!
//! - `quiet_s` (3600): seconds without a redirected connection until the finding is resolved.
//!
//! ## References
//!
//! - `man 8 iptables-extensions` (DNAT, REDIRECT)
//! - <https://www.kernel.org/doc/Documentation/networking/ip-sysctl.txt> (`route_localnet`)

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::connection_aborted::is_aborted;
use super::knowledge::answered;
use super::table::{bounded, entry};
use super::{Context, Details, Detector, Exchanges, Limits, Observation, Scope, Sighting, Sightings};
use crate::record::{Code, ConnectOutcome, Connection, Remedy, SECOND, Severity, Time};

/// Places that are remembered.
const MAX_PLACES: NonZeroUsize = NonZeroUsize::new(512).unwrap();

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub quiet_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { quiet_s: 3600 }
    }
}

#[derive(Default)]
struct Redirection {
    answered: u64,
    silent: u64,
    aborted: u64,
    refused: u64,
    waited_ns: u64,
}

pub(super) struct RedirectedLocally {
    config: Config,
    locations: LruCache<String, Redirection>,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> RedirectedLocally {
    RedirectedLocally {
        config: config.clone(),
        locations: bounded(limits.places(MAX_PLACES)),
        evicted: 0,
    }
}

/// Result of a redirected connection.
enum Fate {
    Answered,
    Silent,
    Aborted,
    Refused,
}

impl Detector for RedirectedLocally {
    fn code(&self) -> Code {
        Code::RedirectedLocally
    }

    fn scope(&self) -> Scope {
        Scope::Clouds
    }

    fn quiet_ns(&self) -> u64 {
        self.config.quiet_s.saturating_mul(SECOND)
    }

    fn wants(&self) -> Exchanges {
        Exchanges::SIGNED
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (connection, fate, waited_ns): (&Connection, _, _) = match observation {
            Observation::Exchange(exchange) => {
                let fate = if answered(exchange) {
                    Fate::Answered
                } else if is_aborted(exchange) {
                    Fate::Aborted
                } else {
                    return;
                };
                (&exchange.connection, fate, exchange.waited_ns.unwrap_or(0))
            }
            Observation::Connect(connect) => {
                let fate = match connect.outcome {
                    ConnectOutcome::Refused => Fate::Refused,
                    ConnectOutcome::Timeout if connect.dropped.is_none() => Fate::Silent,
                    _ => return,
                };
                (&connect.connection, fate, connect.elapsed_ns)
            }
            _ => return,
        };
        let rule = match observation {
            Observation::Connect(connect) => connect.nat_rule.as_deref(),
            Observation::Exchange(exchange) => context.host.nat_rule_of_forwarded(exchange),
            _ => None,
        };
        let Some(target) = connection.redirected_to.as_deref().or(rule) else {
            return;
        };
        let subject = context.location_subject();
        let key = subject.key.clone();
        // A target that was never there: connection-refused names it.
        if matches!(fate, Fate::Refused) && !sightings.is_open(&key) {
            return;
        }
        let redirection = entry(
            &mut self.locations,
            key.clone(),
            &mut self.evicted,
            Redirection::default,
        );
        match fate {
            Fate::Answered => redirection.answered += 1,
            Fate::Silent => redirection.silent += 1,
            Fate::Aborted => redirection.aborted += 1,
            Fate::Refused => redirection.refused += 1,
        }
        let works = matches!(fate, Fate::Answered);
        if !works {
            redirection.waited_ns = redirection.waited_ns.saturating_add(waited_ns);
        }
        let time: Time = observation.time();
        let sighting = Sighting {
            key: &key,
            severity: if works { Severity::Info } else { Severity::High },
            time,
            count: 1,
            news: false,
        };
        let redirection = &*redirection;
        sightings.report(sighting, || details(redirection, subject, target, connection, context));
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}

fn details(
    redirection: &Redirection,
    subject: crate::record::Subject,
    target: &str,
    connection: &Connection,
    context: &Context<'_>,
) -> Details {
    let failed = redirection.silent + redirection.aborted + redirection.refused;
    let name = &subject.name;
    // Without the target itself, a rule that names it.
    let loopback = target.starts_with("127.") || target.starts_with("[::1]") || target.contains(" 127.");
    let to_loopback_from_elsewhere = loopback && subject.key != super::knowledge::HOST;
    let summary = if connection.redirected_to.is_none() {
        let end = if failed == 0 {
            "are answered"
        } else if redirection.refused > 0 {
            "are refused"
        } else if redirection.aborted > 0 {
            "are closed without a response"
        } else {
            "get no response"
        };
        format!("a NAT rule of this host redirects IMDS requests of {name}, which {end} (rule: {target})")
    } else if failed == 0 {
        format!("this host redirects IMDS requests of {name} to {target}, which answers")
    } else {
        let mut ends = Vec::new();
        let mut note = |count: u64, what: &str| {
            if count > 0 {
                ends.push(format!("{count} {what}"));
            }
        };
        note(redirection.silent, "unanswered");
        note(redirection.aborted, "closed without a response");
        note(redirection.refused, "refused");
        format!(
            "this host redirects IMDS requests of {name} to {target}, where they fail: {}",
            ends.join(", ")
        )
    };
    let rules = &context.host.nat_rules;
    // The address in a rule's description.
    let led_to = target.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
    let place_name = led_to.map_or(target, |(to, _)| to);
    let text = if failed == 0 {
        "No action is needed if the redirection is intended. Otherwise delete the NAT rule.".to_owned()
    } else if redirection.silent > 0 && to_loopback_from_elsewhere {
        format!(
            "The kernel doesn't route packets from other network namespaces to 127.0.0.0/8. Redirect to an address of the interface that receives them, or set net.ipv4.conf.INTERFACE.route_localnet=1 on that interface. Also check that a program listens there ({place_name})."
        )
    } else {
        format!(
            "Check that a program listens there ({place_name}) and can reach IMDS, or delete the NAT rule that redirects to it."
        )
    };
    let iptables = if target.starts_with('[') {
        "ip6tables"
    } else {
        "iptables"
    };
    let mut commands = vec![
        format!("{iptables}-save -t nat -c | grep -nE '169\\.254|fd00:ec2|REDIRECT|DNAT'"),
        "nft list ruleset".to_owned(),
        "ss -tlnp".to_owned(),
    ];
    if to_loopback_from_elsewhere {
        commands.push("sysctl -a --pattern 'net.ipv4.conf.*.route_localnet'".to_owned());
    }
    Details {
        summary,
        evidence: evidence! {
            "target": target,
            "endpoint": connection.remote,
            "answered": redirection.answered,
            "silent": redirection.silent,
            "aborted": redirection.aborted,
            "refused": redirection.refused,
            "seconds_lost": (redirection.waited_ns as f64 / 1e6).round() / 1e3,
            "rules": rules,
        },
        remedy: Remedy { text, commands },
        subject,
    }
}

#[cfg(test)]
mod tests {
    use crate::detectors::{DetectorConfig, Detectors, Observation};
    use crate::host_facts::HostFacts;
    use crate::record::Severity;
    use crate::record::{Code, Connect, Finding, Record};

    const RULE: &str = "nft table ip nat, chain PREROUTING, handle 4, at PREROUTING redirects (dnat to 127.0.0.1:1338) requests that this host forwards (from pods)";

    fn findings(rules: &[&str], wire_syns: u32) -> Vec<Record<Finding>> {
        attempt(rules, 5, 4, wire_syns)
    }

    fn attempt(rules: &[&str], netns: u32, syns: u32, wire_syns: u32) -> Vec<Record<Finding>> {
        let text = format!(
            r#"{{"record":"connect","schema":1,"time":"2026-03-01T12:00:00.000000000Z","host":"n","process":{{"pid":7,"tid":7,"namespace_pid":null,"comm":"app","exe":"/opt/app","cmdline":["app"],"uid":0,"start_time":null,"ancestors":[],"cgroup":null,"netns":{netns}}},"container":null,"connection":{{"id":"1","local":"10.0.0.9:4001","remote":"169.254.169.254:80","exchange":0}},"outcome":"timeout","errno":110,"elapsed_ns":9000000000,"syns":{syns},"wire_syns":{wire_syns}}}"#
        );
        let mut connect: Record<Connect> = serde_json::from_str(&text).unwrap();
        let facts = HostFacts {
            netns: Some(1),
            nat_rules: Some(rules.iter().map(|&rule| rule.to_owned()).collect()),
            ..HostFacts::default()
        };
        connect.nat_rule = facts.nat_rule(&connect).map(str::to_owned);
        let mut detectors = Detectors::new(&DetectorConfig::default(), facts);
        let mut found = Vec::new();
        detectors.observe(&Observation::Connect(connect.by_ref()), &mut found);
        found
    }

    #[test]
    fn a_rule_of_the_host_explains_syns_that_leave_by_no_uplink() {
        let found = findings(&[RULE], 0);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].code, found[0].severity),
            (Code::RedirectedLocally, Severity::High)
        );
        assert!(found[0].summary.contains("127.0.0.1:1338"), "{}", found[0].summary);
        assert!(
            found[0].remedy.text.contains("route_localnet"),
            "{}",
            found[0].remedy.text
        );
    }

    /// Packets that NAT sends to an address without a route belong to no socket.
    #[test]
    fn a_rule_of_the_host_explains_its_own_connections_without_a_syn() {
        let of_the_host = RULE.replace("requests that this host forwards (from pods)", "requests of this host");
        let found = attempt(&[of_the_host.as_str()], 1, 0, 0);
        assert_eq!(
            found.iter().map(|finding| finding.code).collect::<Vec<_>>(),
            [Code::RedirectedLocally]
        );
        let found = attempt(&[], 1, 0, 0);
        assert_eq!(
            found.iter().map(|finding| finding.code).collect::<Vec<_>>(),
            [Code::BlockedByFirewall]
        );
    }

    #[test]
    fn syns_that_leave_and_rules_for_others_explain_nothing() {
        let of_the_host = RULE.replace("requests that this host forwards (from pods)", "requests of this host");
        for (rules, wire_syns) in [(&[RULE][..], 4), (&[of_the_host.as_str()], 0), (&[], 0)] {
            let found = findings(rules, wire_syns);
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].code, Code::NoAnswer);
        }
    }
}
