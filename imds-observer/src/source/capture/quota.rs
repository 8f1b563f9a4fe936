//! Link-local packets of a capture, by interface and second: what counts against the quota.

use std::net::IpAddr;
use std::sync::Arc;

use imds_observer_common::{TRAFFIC_CLASSES, TrafficClass};
use rustc_hash::FxHashMap;

use crate::event::InterfaceSample;
use crate::record::{SECOND, Time, VpcResolver};

const ASSUMED_FROM: &str = "a private IPv4 address that ends in .2 and is sent DNS";

/// A packet that counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    pub(super) egress: bool,
    pub(super) class: TrafficClass,
    /// Set where the packet counts only because this address is taken for the VPC resolver.
    pub(super) resolver: Option<IpAddr>,
}

/// Number in the capture, and the kernel's index if the link layer has it.
type Key = (u32, u32);

#[derive(Debug)]
pub(super) struct Quota {
    windows: FxHashMap<Key, InterfaceSample>,
    limit: usize,
    evicted: u64,
}

impl Quota {
    /// At most `limit` interfaces are counted at once; packets of others are counted as evicted.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            windows: FxHashMap::default(),
            limit,
            evicted: 0,
        }
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Counts a packet; a second that is over goes to `report`.
    pub(super) fn count(
        &mut self,
        key: Key,
        time: Time,
        packet: Counted,
        name: impl FnOnce() -> Arc<str>,
        report: impl FnOnce(InterfaceSample),
    ) {
        if !self.windows.contains_key(&key) {
            if self.windows.len() >= self.limit {
                self.evicted += 1;
                return;
            }
            self.windows.insert(key, empty(name(), time));
        }
        let Some(window) = self.windows.get_mut(&key) else {
            return;
        };
        // `time` of a sample is the end of its window.
        if time >= window.time {
            let name = window.name.clone();
            let over = std::mem::replace(window, empty(name, time));
            report(over);
        }
        let Counted {
            egress,
            class,
            resolver,
        } = packet;
        if let Some(address) = resolver
            && window.resolver.is_none()
        {
            window.resolver = Some(Arc::new(VpcResolver {
                address: address.to_string(),
                assumed_from: ASSUMED_FROM.to_owned(),
            }));
        }
        let side = if egress {
            &mut window.egress
        } else {
            &mut window.ingress
        };
        side[class as usize] += 1;
    }

    pub(super) fn finish(&mut self, report: impl FnMut(InterfaceSample)) {
        let mut left: Vec<_> = self.windows.drain().map(|(_, window)| window).collect();
        left.sort_by(|a, b| (a.time, &a.name).cmp(&(b.time, &b.name)));
        left.into_iter().for_each(report);
    }
}

fn empty(name: Arc<str>, time: Time) -> InterfaceSample {
    InterfaceSample {
        time: Time(time.0 - time.0 % SECOND).plus_ns(SECOND),
        name,
        interval_ns: SECOND,
        egress: [0; TRAFFIC_CLASSES],
        ingress: [0; TRAFFIC_CLASSES],
        allowance_exceeded: None,
        resolver: None,
    }
}
