//! Keeps the hosts of a fleet's traces apart: what happens on one is no evidence about another.

use std::collections::BTreeSet;

use lru::LruCache;
use rustc_hash::FxHashMap;

use crate::detectors::{self, DetectorConfig, Detectors, Observation};
use crate::host_facts::HostFacts;
use crate::record::{Finding, Host, LossCounts, Of, Record, SECOND, Start, Summary, Time};

/// Different capabilities that recorded runs lacked, and different filters.
const MAX_MISSING: usize = 32;
/// Records that are further apart are no evidence that the time between them was observed.
pub const MAX_GAP_NS: u64 = 3600 * SECOND;

/// One set of detectors a host. Beyond the bound, the host that was silent longest is finished as at the end of a trace.
pub struct HostDetectors {
    config: DetectorConfig,
    limits: detectors::Limits,
    /// Facts about the host that this program runs on; `None` offline.
    own: Option<HostFacts>,
    /// Whose detectors were asked for last: records of one host come in a row, and need no look-up.
    current: Option<OfHost>,
    /// All others.
    hosts: LruCache<Host, Box<Detectors>>,
    now: Time,
    evicted: u64,
}

impl HostDetectors {
    /// With the default bounds.
    pub fn new(config: DetectorConfig, own: Option<HostFacts>) -> Self {
        Self::with_limits(config, detectors::Limits::DEFAULT, own)
    }

    pub fn with_limits(config: DetectorConfig, limits: detectors::Limits, own: Option<HostFacts>) -> Self {
        Self {
            config,
            limits,
            own,
            current: None,
            // Unbounded to the cache: `turn_to` keeps the bound and finishes who has to go.
            hosts: LruCache::unbounded(),
            now: Time::default(),
            evicted: 0,
        }
    }

    pub fn observe(&mut self, host: &Host, observation: &Observation<'_>, out: &mut Vec<Record<Finding>>) {
        self.of(host, out).observe(observation, out);
    }

    pub fn observe_summary(&mut self, summary: Of<'_, Summary>, out: &mut Vec<Record<Finding>>) {
        self.of(summary.host, out).observe_summary(summary, out);
    }

    /// The start of a recorded run, with what it knew of its host.
    pub fn recorded(&mut self, start: Of<'_, Start>, out: &mut Vec<Record<Finding>>) {
        self.of(start.host, out).recorded(&start);
    }

    /// Facts of the host that this program runs on; `None` offline.
    pub fn own(&self) -> Option<&HostFacts> {
        self.own.as_ref()
    }

    pub fn advance(&mut self, now: Time, out: &mut Vec<Record<Finding>>) {
        self.now = now;
        for detectors in all(&mut self.current, &mut self.hosts) {
            detectors.advance(now, out);
        }
    }

    pub fn finish(&mut self, now: Time, out: &mut Vec<Record<Finding>>) {
        for detectors in all(&mut self.current, &mut self.hosts) {
            detectors.finish(now, out);
        }
    }

    /// Takes over other thresholds.
    pub fn reconfigure(&mut self, config: DetectorConfig) {
        let before = std::mem::replace(&mut self.config, config);
        let Self {
            config, current, hosts, ..
        } = self;
        for detectors in all(current, hosts) {
            detectors.reconfigure(&before, config);
        }
    }

    /// Entries evicted from bounded tables, and hosts.
    pub fn evicted(&self) -> u64 {
        let others = self.hosts.iter().map(|(_, detectors)| detectors.evicted()).sum::<u64>();
        let current = self.current.as_ref().map_or(0, |(_, detectors)| detectors.evicted());
        self.evicted + others + current
    }

    fn of(&mut self, host: &Host, out: &mut Vec<Record<Finding>>) -> &mut Detectors {
        let again = self
            .current
            .as_ref()
            .is_some_and(|(current, _)| Host::ptr_eq(current, host) || current == host);
        if !again {
            self.turn_to(host, out);
        }
        let Self {
            current,
            config,
            limits,
            own,
            ..
        } = self;
        &mut current
            .get_or_insert_with(|| (host.clone(), Box::new(fresh(config, *limits, own.as_ref(), host))))
            .1
    }

    fn turn_to(&mut self, host: &Host, out: &mut Vec<Record<Finding>>) {
        let next = self.hosts.pop_entry(host);
        if let Some((before, detectors)) = std::mem::replace(&mut self.current, next) {
            self.hosts.put(before, detectors);
        }
        let new = self.current.is_none();
        if new
            && self.hosts.len() >= self.limits.hosts
            && let Some((_, mut silent)) = self.hosts.pop_lru()
        {
            silent.finish(self.now, out);
            self.evicted += 1 + silent.evicted();
        }
    }
}

type OfHost = (Host, Box<Detectors>);

/// In the order in which they were asked for, the newest first.
fn all<'a>(
    current: &'a mut Option<OfHost>,
    hosts: &'a mut LruCache<Host, Box<Detectors>>,
) -> impl Iterator<Item = &'a mut Detectors> {
    let current = current.iter_mut().map(|(_, detectors)| detectors);
    let hosts = hosts.iter_mut().map(|(_, detectors)| detectors);
    current.chain(hosts).map(AsMut::as_mut)
}

fn fresh(config: &DetectorConfig, limits: detectors::Limits, own: Option<&HostFacts>, host: &Host) -> Detectors {
    let facts = own.filter(|own| own.name == *host).cloned();
    let unknown = || HostFacts {
        name: host.clone(),
        ..HostFacts::default()
    };
    Detectors::with_limits(config, limits, facts.unwrap_or_else(unknown))
}

/// Losses and coverage recorded in the traces of earlier runs.
#[derive(Debug)]
pub struct RecordedHosts {
    limit: usize,
    /// Records of hosts beyond it.
    evicted: u64,
    hosts: Vec<(Host, Recorded)>,
    /// Index into `hosts`.
    indices: FxHashMap<Host, usize>,
    /// The one that was asked for last: records of one host come in a row.
    last: Option<(Host, usize)>,
    /// Loss of runs that have ended.
    before: LossCounts,
    /// Runs beyond the first of each host.
    restarts: u64,
    /// Coverage gaps of any run.
    missing: BTreeSet<String>,
    /// Filters of any run.
    filters: BTreeSet<String>,
    /// Runs whose last record of loss is not there.
    unended: u64,
}

#[derive(Debug, Default)]
struct Recorded {
    started: bool,
    /// Records of it have been read, up to this time.
    last: Option<Time>,
    /// Time that its records prove to be observed.
    covered_ns: u64,
    /// The longest time without a record.
    gap_ns: u64,
    exchanges: bool,
    /// Exchanges, connects or drops have come since the last record of loss.
    awaits_loss: bool,
    /// Counts since the run's start, so the latest replaces those before.
    loss: LossCounts,
}

impl Recorded {
    /// The time from `from` to `to` was observed.
    fn covers(&mut self, from: Time, to: Time) {
        let Some(last) = self.last else {
            self.last = Some(to);
            self.covered_ns = to.since(from);
            return;
        };
        let gap = from.since(last);
        if gap > MAX_GAP_NS {
            self.gap_ns = self.gap_ns.max(gap);
            self.covered_ns = self.covered_ns.saturating_add(to.since(from));
        } else {
            self.covered_ns = self.covered_ns.saturating_add(to.since(last));
        }
        self.last = Some(last.max(to));
    }
}

impl RecordedHosts {
    /// At most `limit` hosts are distinguished.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            evicted: 0,
            hosts: Vec::new(),
            indices: FxHashMap::default(),
            last: None,
            before: LossCounts::default(),
            restarts: 0,
            missing: BTreeSet::new(),
            filters: BTreeSet::new(),
            unended: 0,
        }
    }

    /// A record of this host has been read, which bears this time. `observed`: it is an exchange, connect or drop.
    pub fn sees(&mut self, host: &Host, time: Time, observed: bool) {
        if let Some(recorded) = self.of(host) {
            recorded.exchanges |= observed;
            recorded.awaits_loss |= observed;
            recorded.covers(time, time);
        }
    }

    /// A summary of this host's interval has been read.
    pub fn summarized(&mut self, summary: Of<'_, Summary>) {
        if let Some(recorded) = self.of(summary.host) {
            recorded.covers(summary.from, summary.to.max(summary.from));
        }
    }

    /// The longest time without a record between two of one host, where it is too long to have been observed.
    pub fn longest_gap(&self) -> Option<(&Host, u64)> {
        let gaps = self.hosts.iter().map(|(host, recorded)| (host, recorded.gap_ns));
        gaps.filter(|(_, gap)| *gap > 0).max_by_key(|(_, gap)| *gap)
    }

    /// Hosts of which no run's start was read: what their observer could not see, and what it left out, is unknown.
    pub fn without_start(&self) -> impl Iterator<Item = &Host> {
        let unknown = self.hosts.iter().filter(|(_, recorded)| !recorded.started);
        unknown.map(|(host, _)| host)
    }

    /// Runs without a final loss record.
    pub fn runs_without_loss(&self) -> u64 {
        let open = self.hosts.iter().filter(|(_, recorded)| recorded.awaits_loss);
        self.unended + open.count() as u64
    }

    /// Filters of any run, as the start records name them.
    pub fn filters(&self) -> impl Iterator<Item = &str> {
        self.filters.iter().map(String::as_str)
    }

    /// The host that was watched for the shortest time, and that time in nanoseconds.
    pub fn shortest(&self) -> Option<(&Host, u64)> {
        self.hosts
            .iter()
            .map(|(host, recorded)| (host, recorded.covered_ns))
            .min_by(|a, b| a.1.cmp(&b.1).then_with(|| a.0.cmp(b.0)))
    }

    /// Whether an exchange, connect or drop of this host has been read.
    pub fn has_exchanges(&self, host: &Host) -> bool {
        self.indices
            .get(host)
            .is_some_and(|index| self.hosts[*index].1.exchanges)
    }

    pub fn loses(&mut self, loss: Of<'_, LossCounts>) {
        let mut ended = LossCounts::default();
        if let Some(recorded) = self.of(loss.host) {
            let counts = *loss.body;
            // Counts only grow within a run: this is another one, whose start was not recorded.
            if !recorded.loss.is_within(counts) {
                ended = recorded.loss;
            }
            recorded.loss = counts;
            recorded.awaits_loss = false;
        }
        if ended.any() {
            self.before = self.before.plus(ended);
            self.restarts += 1;
        }
    }

    /// A run begins on this host.
    pub fn starts(&mut self, start: Of<'_, Start>) {
        if let Some(recorded) = self.of(start.host) {
            let again = std::mem::replace(&mut recorded.started, true);
            let loss = std::mem::take(&mut recorded.loss);
            let unended = std::mem::take(&mut recorded.awaits_loss);
            self.restarts += u64::from(again);
            self.unended += u64::from(unended);
            self.before = self.before.plus(loss);
        }
        for filter in &start.filters {
            if self.filters.len() < MAX_MISSING {
                self.filters.insert(filter.clone());
            }
        }
        for missing in &start.missing {
            if self.missing.len() < MAX_MISSING {
                self.missing
                    .insert(format!("{}: {}", missing.capability, missing.blinds));
            }
        }
    }

    /// Runs beyond the first of each host.
    pub fn restarts_seen(&self) -> u64 {
        self.restarts
    }

    /// Coverage gaps of any run.
    pub fn missing(&self) -> impl Iterator<Item = &str> {
        self.missing.iter().map(String::as_str)
    }

    pub fn loss(&self) -> LossCounts {
        let own = LossCounts {
            evicted: self.evicted,
            ..LossCounts::default()
        };
        self.hosts
            .iter()
            .fold(self.before.plus(own), |sum, (_, recorded)| sum.plus(recorded.loss))
    }

    fn of(&mut self, host: &Host) -> Option<&mut Recorded> {
        if let Some((last, index)) = &self.last
            && Host::ptr_eq(last, host)
        {
            return Some(&mut self.hosts[*index].1);
        }
        let index = match self.indices.get(host) {
            Some(index) => *index,
            None if self.hosts.len() >= self.limit => {
                self.evicted += 1;
                return None;
            }
            None => {
                self.indices.insert(host.clone(), self.hosts.len());
                self.hosts.push((host.clone(), Recorded::default()));
                self.hosts.len() - 1
            }
        };
        self.last = Some((host.clone(), index));
        Some(&mut self.hosts[index].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Mode;

    fn of<B>(host: &str, body: B) -> Record<B> {
        Record {
            time: Time(0),
            host: host.into(),
            body,
        }
    }

    fn loss(host: &str, ring_buffer: u64) -> Record<LossCounts> {
        let counts = LossCounts {
            ring_buffer,
            ..LossCounts::default()
        };
        of(host, counts)
    }

    #[test]
    fn loss_is_the_latest_of_each_run_added_up() {
        let mut hosts = RecordedHosts::new(2);
        hosts.loses(loss("a", 1).by_ref());
        hosts.loses(loss("a", 5).by_ref());
        hosts.loses(loss("b", 2).by_ref());
        let start = Start {
            version: String::new(),
            kernel: None,
            mode: Mode::Live,
            endpoints: Vec::new(),
            interfaces: Vec::new(),
            attached: Vec::new(),
            missing: Vec::new(),
            filters: Vec::new(),
            confinement: None,
            netns: None,
            boot_time: None,
            nat_rules: None,
            cloud: None,
            network_tool: None,
            node_owner: None,
        };
        hosts.starts(of("a", start.clone()).by_ref());
        assert_eq!(hosts.restarts_seen(), 0);
        hosts.loses(loss("a", 3).by_ref());
        assert_eq!(hosts.loss().ring_buffer, 10);
        hosts.starts(of("a", start.clone()).by_ref());
        assert_eq!(hosts.restarts_seen(), 1);
        hosts.loses(loss("b", u64::MAX).by_ref());
        assert_eq!(hosts.loss().ring_buffer, u64::MAX);
    }
}
