//! Link-local packets by interface, against the quota that IMDS, DNS and NTP share.

use std::collections::BTreeMap;
use std::sync::Arc;

use imds_observer_common::TRAFFIC_CLASSES;

use crate::event::InterfaceSample;
use crate::record::{InterfaceSummary, SECOND, Time, VpcResolver};

/// Packets per second and network interface to link-local services (<https://docs.aws.amazon.com/vpc/latest/userguide/AmazonDNS-concepts.html>).
const QUOTA_PACKETS_PER_S: u64 = 1024;
/// In the order of [`imds_observer_common::TrafficClass`].
const CLASSES: [&str; TRAFFIC_CLASSES] = ["imds", "dns", "ntp", "other"];

#[derive(Debug)]
pub(super) struct Interfaces {
    by_name: BTreeMap<Arc<str>, Both>,
    limit: usize,
    /// Idle time after which an interface is replaced.
    silence_ns: Option<u64>,
}

#[derive(Debug, Default)]
struct Both {
    last: Time,
    interval: Counts,
    total: Counts,
}

#[derive(Clone, Debug, Default)]
struct Counts {
    egress: u64,
    ingress: u64,
    peak: u64,
    peak_by_class: BTreeMap<String, u64>,
    allowance_exceeded: Option<u64>,
    resolver: Option<Arc<VpcResolver>>,
}

impl Interfaces {
    /// At most `limit` interfaces are distinguished.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            by_name: BTreeMap::new(),
            limit,
            silence_ns: None,
        }
    }

    pub(super) fn forget_after(&mut self, silence_ns: u64) {
        self.silence_ns = Some(silence_ns);
    }

    /// False: there are too many interfaces.
    pub(super) fn add(&mut self, sample: &InterfaceSample) -> bool {
        let egress: u64 = sample.egress.iter().sum();
        let ingress: u64 = sample.ingress.iter().sum();
        let larger = if egress >= ingress {
            &sample.egress
        } else {
            &sample.ingress
        };
        // A shorter sample has no more than its count; a longer one only a mean.
        let per_second =
            |count: u64| (u128::from(count) * u128::from(SECOND) / u128::from(sample.interval_ns.max(SECOND))) as u64;
        let counts = Counts {
            egress,
            ingress,
            peak: per_second(egress.max(ingress)),
            peak_by_class: by_class(larger, per_second),
            allowance_exceeded: sample.allowance_exceeded,
            resolver: sample.resolver.clone(),
        };
        self.merge(&sample.name, &counts, sample.time)
    }

    pub(super) fn add_recorded(&mut self, summary: &InterfaceSummary, time: Time) -> bool {
        let counts = Counts {
            egress: summary.egress_packets,
            ingress: summary.ingress_packets,
            peak: summary.peak_packets_per_s,
            peak_by_class: summary.peak_by_class.clone(),
            allowance_exceeded: summary.allowance_exceeded,
            resolver: summary.vpc_resolver.clone(),
        };
        self.merge(&Arc::from(summary.name.as_str()), &counts, time)
    }

    fn merge(&mut self, name: &Arc<str>, counts: &Counts, time: Time) -> bool {
        if self.by_name.len() >= self.limit && !self.by_name.contains_key(name) {
            if let Some(silence_ns) = self.silence_ns {
                self.by_name.retain(|_, both| time.since(both.last) < silence_ns);
            }
            if self.by_name.len() >= self.limit {
                return false;
            }
        }
        let both = self.by_name.entry(name.clone()).or_default();
        both.last = both.last.max(time);
        both.interval.merge(counts);
        both.total.merge(counts);
        true
    }

    pub(super) fn end_interval(&mut self) {
        for both in self.by_name.values_mut() {
            both.interval = Counts::default();
        }
    }

    pub(super) fn summary(&self, total: bool) -> Vec<InterfaceSummary> {
        self.by_name
            .iter()
            .map(|(name, both)| {
                let counts = if total { &both.total } else { &both.interval };
                InterfaceSummary {
                    name: name.to_string(),
                    egress_packets: counts.egress,
                    ingress_packets: counts.ingress,
                    peak_packets_per_s: counts.peak,
                    quota_share: counts.peak as f64 / QUOTA_PACKETS_PER_S as f64,
                    allowance_exceeded: counts.allowance_exceeded,
                    peak_by_class: counts.peak_by_class.clone(),
                    vpc_resolver: counts.resolver.clone(),
                }
            })
            .collect()
    }
}

impl Counts {
    fn merge(&mut self, more: &Self) {
        // Counts from a file may be anything.
        self.egress = self.egress.saturating_add(more.egress);
        self.ingress = self.ingress.saturating_add(more.ingress);
        if more.peak > self.peak {
            self.peak = more.peak;
            self.peak_by_class.clone_from(&more.peak_by_class);
        }
        if self.resolver.is_none() {
            self.resolver.clone_from(&more.resolver);
        }
        self.allowance_exceeded = match (self.allowance_exceeded, more.allowance_exceeded) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            (a, b) => a.or(b),
        };
    }
}

fn by_class(counts: &[u64; TRAFFIC_CLASSES], per_second: impl Fn(u64) -> u64) -> BTreeMap<String, u64> {
    CLASSES
        .iter()
        .zip(counts)
        .filter(|(_, count)| **count > 0)
        .map(|(class, count)| ((*class).to_owned(), per_second(*count)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(egress: [u64; 4], ingress: [u64; 4], interval_ns: u64) -> InterfaceSample {
        InterfaceSample {
            time: Time(10 * SECOND),
            name: "eth0".into(),
            interval_ns,
            egress,
            ingress,
            allowance_exceeded: None,
            resolver: None,
        }
    }

    #[test]
    fn the_peak_is_one_window_of_the_larger_direction() {
        let mut interfaces = Interfaces::new(256);
        interfaces.add(&sample([100, 0, 0, 0], [50, 0, 0, 0], SECOND));
        interfaces.add(&sample([10, 500, 2, 0], [1, 1, 1, 0], SECOND));
        interfaces.add(&sample([1024, 0, 0, 0], [0; 4], 4 * SECOND));
        let summary = &interfaces.summary(true)[0];
        assert_eq!((summary.egress_packets, summary.ingress_packets), (1636, 53));
        assert_eq!(summary.peak_packets_per_s, 512);
        assert!((summary.quota_share - 0.5).abs() < 1e-9);
        assert_eq!(summary.peak_by_class["dns"], 500);
        assert_eq!(summary.allowance_exceeded, None);
        interfaces.end_interval();
        assert_eq!(interfaces.summary(false)[0].egress_packets, 0);
    }
}
