//! An interface approaches or exceeds the limit of 1024 packets per second for link-local services.
//!
//! ## Detects
//!
//! Packets to IMDS, to the VPC resolver (DNS) and to NTP, per interface and second, in the busier direction. Severity:
//! `warning` from `warn_share` of the quota, `high` from `high_share`. `critical` if the driver's counter
//! `linklocal_allowance_exceeded` increases, or if IMDS answers 429 or 503 while at least `warn_share` is used. One
//! finding per interface. It names the traffic class with the most packets and, if that class is IMDS, the client with
//! the most requests.
//!
//! The VPC resolver is at 169.254.169.253, at fd00:ec2::253 and at the base address of the VPC + 2. Packets don't
//! identify that last address: `evidence.vpc_resolver` holds the address that is counted, and why it is assumed to be the
//! resolver.
//!
//! If the driver counts drops while the observer counts less than half of the quota, other traffic causes the excess: the
//! finding then has `evidence.larger_class` `uncounted` and names no client.
//!
//! A capture has no allowance counter: `evidence.allowance_exceeded` is null. In a trace, the counts come from `summary`
//! records: each interface's busiest second in the interval is one sample. The `summary` of the whole run (`total: true`)
//! is ignored.
//!
//! ## Why it matters
//!
//! IMDS, DNS and NTP share the quota, and packets over it are dropped silently. DNS fails on the whole host because one
//! process polls IMDS, or IMDS times out because one pod sends many DNS queries. An IMDS request costs about ten packets,
//! five or six of them outgoing. A DNS query costs one outgoing packet, and more over TCP.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:13:40.000000000Z",
//!   "host": "node-1",
//!   "code": "packet-quota",
//!   "severity": "critical",
//!   "state": "update",
//!   "subject": {"container":null,"key":"interface/ens5","name":"interface ens5","process":null,"workload":null},
//!   "first_seen": "2023-11-14T22:13:29.000000000Z",
//!   "last_seen": "2023-11-14T22:13:40.000000000Z",
//!   "count": 2,
//!   "summary": "interface ens5 dropped 412 packets over the link-local quota; 100 % of the packets are IMDS",
//!   "evidence": {"allowance_exceeded":412,"clients":[],"egress_per_s":{"dns":0,"imds":1024,"ntp":0,"other":0},"ingress_per_s":{"dns":0,"imds":0,"ntp":0,"other":0},"larger_class":"imds","packets_per_s":1024,"peak_packets_per_s":1024,"quota_share":1.0,"throttled":false,"vpc_resolver":null},
//!   "remedy": {"commands":["ethtool -S ens5 | grep linklocal_allowance_exceeded"],"text":"Reduce the request rate of the IMDS clients named in the evidence (see token-not-reused, tight-polling and credential-churn). The quota can't be raised; each network interface has its own."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! Live observation counts DNS at the base address of the VPC + 2 only if that address is a nameserver of the host at the
//! start of the run (`/etc/resolv.conf`, or the upstream servers of a stub resolver). Otherwise it reports an excess of
//! such DNS as `uncounted`. A private nameserver that ends in .2 is counted even if it is not a VPC's.
//!
//! AWS doesn't document which direction counts, so the busier one is compared with the quota. The evidence has both.
//! Requests of cloud-init and the first 120 s after boot are ignored unless the driver reports drops.
//!
//! ## Options
//!
//! `[detectors.packet-quota]`
//!
//! - `packets_per_s` (1024.0): the quota of one interface.
//! - `warn_share` (0.5): share of the quota from which the severity is `warning`.
//! - `high_share` (0.8): share of the quota from which the severity is `high`.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/vpc/latest/userguide/AmazonDNS-concepts.html> (1024 packets per second and interface)
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/monitoring-network-performance-ena.html> (linklocal_allowance_exceeded)
//! - <https://github.com/aws/containers-roadmap/issues/2530>, <https://github.com/coredns/coredns/issues/4327> (DNS is the larger class)

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::status;
use super::table::bounded;
use super::window::Bins;
use super::{Context, Details, Detector, Limits, Observation, Sighting, Sightings};
use crate::event::InterfaceSample;
use crate::record::{Code, Remedy, SECOND, Severity, Time};

/// Clients whose share is reported.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(256).unwrap();
/// Interfaces that are followed.
const MAX_INTERFACES: NonZeroUsize = NonZeroUsize::new(128).unwrap();
/// Clients that the evidence names.
const NAMED: usize = 5;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub packets_per_s: f64,
    pub warn_share: f64,
    pub high_share: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            packets_per_s: 1024.0,
            warn_share: 0.5,
            high_share: 0.8,
        }
    }
}

/// Samples that together make up at least most of a second.
#[derive(Clone, Copy, Default)]
struct Second {
    interval_ns: u64,
    egress: [u64; 4],
    ingress: [u64; 4],
}

struct Requests {
    name: String,
    recent: Bins<10, SECOND>,
}

struct Interface {
    partial: Second,
    /// Its busiest second so far in this finding.
    peak: f64,
    dropped: u64,
    /// Its busiest second of late, and when: the driver may count a packet as dropped after the second in which it was sent.
    recent: (f64, Time),
}

/// In the order of [`imds_observer_common::TrafficClass`]: as evidence and as a sentence has it.
const CLASSES: [(&str, &str); 4] = [
    ("imds", "IMDS"),
    ("dns", "DNS"),
    ("ntp", "NTP"),
    ("other", "other link-local services"),
];
/// How long a busy second explains dropped packets.
const EXPLAINS_NS: u64 = 10 * SECOND;

/// The class of packets that uses up the quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Larger {
    /// Index into [`CLASSES`].
    Class(usize),
    /// Packets were dropped, and most of the traffic that led to it is none that we count.
    Uncounted,
}

pub(super) struct PacketQuota {
    config: Config,
    interfaces: LruCache<Arc<str>, Interface>,
    clients: LruCache<u64, Requests>,
    throttled: Option<Time>,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> PacketQuota {
    PacketQuota {
        config: config.clone(),
        interfaces: bounded(limits.interfaces(MAX_INTERFACES)),
        clients: bounded(limits.clients(MAX_CLIENTS)),
        throttled: None,
        evicted: 0,
    }
}

impl Detector for PacketQuota {
    fn code(&self) -> Code {
        Code::PacketQuota
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        match observation {
            Observation::Exchange(exchange) => {
                if matches!(status(exchange), Some(429 | 503)) {
                    self.throttled = self.throttled.max(Some(exchange.time));
                }
                let Some(client) = context.client() else { return };
                // Not counted as evicted: the busiest clients stay, and only names are lost.
                let requests = self.clients.get_or_insert_mut(client.handle, || Requests {
                    name: context.client_subject().name,
                    recent: Bins::new(),
                });
                requests.recent.add(exchange.time, 1);
            }
            Observation::Interface(sample) => self.sample(sample, context, sightings),
            _ => {}
        }
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}

impl PacketQuota {
    fn sample(&mut self, sample: &InterfaceSample, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        if !self.interfaces.contains(&sample.name) {
            let interface = Interface {
                partial: Second::default(),
                peak: 0.0,
                dropped: 0,
                recent: (0.0, Time(0)),
            };
            self.evicted += u64::from(self.interfaces.push(sample.name.clone(), interface).is_some());
        }
        let Some(interface) = self.interfaces.get_mut(&sample.name) else {
            return;
        };
        let dropped = sample.allowance_exceeded.unwrap_or(0);
        interface.dropped = interface.dropped.saturating_add(dropped);
        let second = &mut interface.partial;
        second.interval_ns = second.interval_ns.saturating_add(sample.interval_ns);
        for class in 0..4 {
            second.egress[class] = second.egress[class].saturating_add(sample.egress[class]);
            second.ingress[class] = second.ingress[class].saturating_add(sample.ingress[class]);
        }
        // Half a second of a burst must not be taken for a rate twice as high.
        if second.interval_ns < SECOND * 9 / 10 && dropped == 0 {
            return;
        }
        let second = std::mem::take(second);
        let seconds = (second.interval_ns as f64 / 1e9).max(1.0);
        let egress = second.egress.iter().sum::<u64>() as f64 / seconds;
        let ingress = second.ingress.iter().sum::<u64>() as f64 / seconds;
        let rate = egress.max(ingress);
        if rate >= interface.recent.0 || sample.time.since(interface.recent.1) > EXPLAINS_NS {
            interface.recent = (rate, sample.time);
        }
        let share = rate / self.config.packets_per_s.max(1.0);
        let throttled = self
            .throttled
            .is_some_and(|throttled| sample.time.since(throttled) <= 10 * SECOND);
        let booting = context.booting(sample.time)
            || context
                .knowledge
                .boot_crawl
                .is_some_and(|crawl| sample.time.since(crawl) <= 10 * SECOND);
        let severity = if dropped > 0 || throttled && share >= self.config.warn_share {
            Severity::Critical
        } else if booting {
            return;
        } else if share >= self.config.high_share {
            Severity::High
        } else if share >= self.config.warn_share {
            Severity::Warning
        } else {
            return;
        };
        let key = format!("interface/{}", sample.name);
        if !sightings.is_open(&key) {
            interface.peak = 0.0;
            interface.dropped = dropped;
        }
        interface.peak = interface.peak.max(rate);
        let all_dropped = sample.allowance_exceeded.map(|_| interface.dropped);
        let (peak, recent) = (interface.peak, interface.recent.0);
        let clients = &mut self.clients;
        let quota = self.config.packets_per_s;
        let sighting = Sighting {
            key: &key,
            severity,
            time: sample.time,
            count: 1,
            news: false,
        };
        sightings
            .since(sample.time.minus_ns(second.interval_ns))
            .report(sighting, || {
                let packets = if egress >= ingress {
                    &second.egress
                } else {
                    &second.ingress
                };
                let larger = if all_dropped.is_some_and(|dropped| dropped > 0) && recent < quota / 2.0 {
                    Larger::Uncounted
                } else {
                    Larger::of(packets)
                };
                let blames_clients = larger == Larger::Class(0);
                let shares = if blames_clients {
                    shares(clients, sample.time)
                } else {
                    Vec::new()
                };
                let by_class = |packets: &[u64; 4]| {
                    let [imds, dns, ntp, other] = packets.map(|count| (count as f64 / seconds).round() as u64);
                    serde_json::json!({"imds": imds, "dns": dns, "ntp": ntp, "other": other})
                };
                let busiest = shares.first().map_or_else(String::new, |share| {
                    format!(
                        "; most requests come from {}",
                        share["client"].as_str().unwrap_or_default()
                    )
                });
                Details {
                    subject: context.subject(key.clone(), format!("interface {}", sample.name)),
                    summary: {
                        let used = match all_dropped {
                            Some(dropped @ 1..) => format!("dropped {dropped} packets over the link-local quota"),
                            _ => format!("uses {:.0} % of the link-local packet quota", peak / quota * 100.0),
                        };
                        format!(
                            "interface {} {used}; {}{busiest}",
                            sample.name,
                            larger.sentence(packets, recent)
                        )
                    },
                    evidence: evidence! {
                        "packets_per_s": rate.round() as u64,
                        "peak_packets_per_s": peak.round() as u64,
                        "quota_share": (peak / quota * 1000.0).round() / 1000.0,
                        "egress_per_s": by_class(&second.egress),
                        "ingress_per_s": by_class(&second.ingress),
                        "larger_class": larger.name(),
                        "vpc_resolver": sample.resolver,
                        "allowance_exceeded": all_dropped,
                        "throttled": throttled,
                        "clients": shares,
                    },
                    remedy: larger.remedy(&sample.name, all_dropped.is_some()),
                }
            });
    }
}

impl Larger {
    fn of(packets: &[u64; 4]) -> Self {
        // On a tie, the first class.
        let class = (0..4).rev().max_by_key(|class| packets[*class]).unwrap_or(0);
        Self::Class(class)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Class(class) => CLASSES[class].0,
            Self::Uncounted => "uncounted",
        }
    }

    fn sentence(self, packets: &[u64; 4], recent: f64) -> String {
        match self {
            Self::Class(class) => {
                let share = packets[class] as f64 / packets.iter().sum::<u64>().max(1) as f64;
                format!("{:.0} % of the packets are {}", share * 100.0, CLASSES[class].1)
            }
            Self::Uncounted => {
                format!("the excess is not in the observed traffic, which had at most {recent:.0} packets/s")
            }
        }
    }

    /// `counter`: whether the driver of this interface counts what exceeds the allowance.
    fn remedy(self, interface: &str, counter: bool) -> Remedy {
        let act = match self {
            Self::Class(0) => {
                "Reduce the request rate of the IMDS clients named in the evidence (see token-not-reused, tight-polling and credential-churn)."
            }
            Self::Class(1) => {
                "Send fewer DNS queries to the VPC resolver: run a caching resolver on the host (NodeLocal DNSCache on Kubernetes), raise \
                 the `cache` time of CoreDNS, lower `ndots` in pods that resolve external names, and spread CoreDNS pods over nodes."
            }
            Self::Class(2) => {
                "Find the program that sends the NTP requests, and let one daemon (chrony) synchronize the host's clock."
            }
            Self::Class(_) => {
                "Find the program that sends packets to 169.254.169.0/24 or fd00:ec2::/32 that are neither IMDS nor DNS nor NTP."
            }
            Self::Uncounted => {
                "Find the other traffic that uses this interface's allowance: capture for a few seconds, and count packets to port 53, to port 123 and to 169.254.169.0/24. The usual cause is DNS to a VPC resolver whose address the observer doesn't know (base address of the VPC + 2)."
            }
        };
        let mut text = format!("{act} The quota can't be raised; each network interface has its own.");
        let mut commands = Vec::new();
        if counter {
            commands.push(format!("ethtool -S {interface} | grep linklocal_allowance_exceeded"));
        } else {
            text.push_str(
                " Whether packets were dropped is unknown; on the host, the counter `linklocal_allowance_exceeded` of `ethtool -S` shows it.",
            );
        }
        if self == Self::Uncounted {
            commands.push(format!(
                "timeout 5 tcpdump -nn -Q out -i {interface} '(port 53 or port 123 or net 169.254.169.0/24)' | awk '{{print $5}}' | sort | uniq -c | sort -rn | head"
            ));
        }
        Remedy { text, commands }
    }
}

/// The clients with the most requests in the last 10 s, and their shares.
fn shares(clients: &mut LruCache<u64, Requests>, time: Time) -> Vec<serde_json::Value> {
    let mut busy: Vec<(u64, &str)> = clients
        .iter_mut()
        .map(|(_, requests)| (requests.recent.total(time), requests.name.as_str()))
        .filter(|(requests, _)| *requests > 0)
        .collect();
    let all: u64 = busy.iter().map(|(requests, _)| requests).sum();
    busy.sort_by(|a, b| b.cmp(a));
    busy.truncate(NAMED);
    busy.into_iter()
        .map(|(requests, name)| {
            serde_json::json!({
                "client": name,
                "requests_per_s": requests as f64 / 10.0,
                "share": (requests as f64 / all as f64 * 1000.0).round() / 1000.0,
            })
        })
        .collect()
}
