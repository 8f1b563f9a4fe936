//! The numbers behind the metrics.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::record::workload::workload;
use crate::record::{
    Body, Code, Connect, ConnectOutcome, Container, Dialect, Exchange, ExchangeOutcome, Finding, FindingState,
    ImdsVersion, LossCounts, PacketDirection, PacketDrop, Process, Record, Severity, Start, Summary, Time,
};

use super::Limits;

/// Everyone beyond the bound.
pub(super) const OTHER: &str = "other";
/// Callers of whom neither process nor container is known.
const UNKNOWN: &str = "unknown";

/// Upper bounds of the latency buckets, seconds. IMDS answers within 1 ms; clients wait for 1 s, the most patient for 5 s.
pub(super) const BUCKETS_S: [f64; 14] = [
    0.000_2, 0.000_3, 0.000_4, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0,
];

pub(super) const VERSIONS: [Option<ImdsVersion>; 5] = [
    Some(ImdsVersion::Token),
    Some(ImdsVersion::V2),
    Some(ImdsVersion::V1),
    Some(ImdsVersion::Other),
    None,
];
pub(super) const OUTCOMES: [ExchangeOutcome; 6] = [
    ExchangeOutcome::Answered,
    ExchangeOutcome::Lost,
    ExchangeOutcome::Unanswered,
    ExchangeOutcome::Reset,
    ExchangeOutcome::Closed,
    ExchangeOutcome::Open,
];
pub(super) const CONNECT_OUTCOMES: [ConnectOutcome; 6] = [
    ConnectOutcome::Refused,
    ConnectOutcome::NoRoute,
    ConnectOutcome::HostUnreachable,
    ConnectOutcome::Denied,
    ConnectOutcome::Timeout,
    ConnectOutcome::Error,
];

#[derive(Debug, Default)]
pub(super) struct Totals {
    limits: Limits,
    /// After which a silent workload makes room for another one.
    silence_ns: u64,
    /// No workload has been silent for so long before.
    full_until: Time,
    pub(super) start: Option<Begun>,
    pub(super) workloads: HashMap<String, Workload>,
    /// Packets of IMDS flows that the kernel dropped, by reason and direction.
    pub(super) dropped: BTreeMap<(String, &'static str), u64>,
    /// Findings that were opened.
    pub(super) findings: BTreeMap<(&'static str, &'static str), u64>,
    open: HashMap<(Code, String), Severity>,
    pub(super) interfaces: BTreeMap<String, Interface>,
    pub(super) loss: LossCounts,
    pub(super) records: BTreeMap<&'static str, u64>,
}

#[derive(Debug)]
pub(super) struct Begun {
    pub(super) time: Time,
    pub(super) version: String,
    pub(super) kernel: String,
    pub(super) missing: Vec<String>,
}

#[derive(Debug, Default)]
pub(super) struct Workload {
    last: Time,
    /// Few kinds each, so a search is short.
    pub(super) exchanges: Vec<(Asked, u64)>,
    /// `None`: those beyond the bound.
    pub(super) statuses: BTreeMap<Option<u16>, u64>,
    /// By bucket, the last for what is longer.
    pub(super) latency: [u64; BUCKETS_S.len() + 1],
    pub(super) latency_sum_s: f64,
    pub(super) lost_seconds: f64,
    pub(super) failed_connects: [u64; CONNECT_OUTCOMES.len()],
}

/// Key by which exchanges are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// Index into [`VERSIONS`].
    pub(super) version: usize,
    /// Index into [`OUTCOMES`].
    pub(super) outcome: usize,
    pub(super) dialect: Dialect,
}

impl Workload {
    fn count(&mut self, asked: Asked) {
        match self.exchanges.iter_mut().find(|(of, _)| *of == asked) {
            Some((_, count)) => *count += 1,
            None => self.exchanges.push((asked, 1)),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Interface {
    pub(super) egress: u64,
    pub(super) ingress: u64,
    /// Peak of the last interval, packets per second.
    pub(super) peak_per_s: u64,
    pub(super) quota_share: f64,
    /// The driver's own count since the start, if it has one.
    pub(super) allowance_exceeded: Option<u64>,
}

impl Totals {
    pub(super) fn new(limits: Limits, silence: Duration) -> Self {
        Self {
            limits,
            silence_ns: silence.as_nanos() as u64,
            ..Self::default()
        }
    }

    pub(super) fn observe(&mut self, record: &Record) {
        *self.records.entry(record.kind().as_str()).or_default() += 1;
        match &record.body {
            Body::Start(start) => self.begin(record.time, start),
            Body::Exchange(exchange) => self.exchange(record.time, exchange),
            Body::Connect(connect) => self.connect(record.time, connect),
            Body::Drop(drop) => self.dropped(drop),
            Body::Finding(finding) => self.finding(finding),
            Body::Summary(summary) => self.summary(summary),
            Body::Loss(loss) => self.loss = *loss,
        }
    }

    /// Open findings by code and severity.
    pub(super) fn open_findings(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        let mut counts = BTreeMap::new();
        for ((code, _), severity) in &self.open {
            *counts.entry((code.as_str(), severity.as_str())).or_default() += 1;
        }
        counts
    }

    fn begin(&mut self, time: Time, start: &Start) {
        let mut missing: Vec<String> = start.missing.iter().map(|missing| missing.capability.clone()).collect();
        missing.sort_unstable();
        missing.dedup();
        missing.truncate(self.limits.names);
        self.start = Some(Begun {
            time,
            version: start.version.clone(),
            kernel: start.kernel.clone().unwrap_or_default(),
            missing,
        });
    }

    fn exchange(&mut self, time: Time, exchange: &Exchange) {
        let statuses = self.limits.statuses;
        let workload = self.of(exchange.process.as_deref(), exchange.container.as_deref(), time);
        let version = VERSIONS
            .iter()
            .position(|version| *version == exchange.request.imds_version)
            .unwrap_or(VERSIONS.len() - 1);
        if let Some(outcome) = OUTCOMES.iter().position(|outcome| *outcome == exchange.outcome) {
            workload.count(Asked {
                version,
                outcome,
                dialect: exchange.request.dialect,
            });
        }
        if let Some(status) = exchange.response.as_ref().and_then(|response| response.status) {
            let full = workload.statuses.len() >= statuses && !workload.statuses.contains_key(&Some(status));
            *workload.statuses.entry((!full).then_some(status)).or_default() += 1;
        }
        let waited_s = exchange.waited_ns.unwrap_or(0) as f64 / 1e9;
        if exchange.outcome != ExchangeOutcome::Answered {
            workload.lost_seconds += waited_s;
        } else if let Some(latency_ns) = exchange.latency_ns {
            let latency_s = latency_ns as f64 / 1e9;
            workload.latency[BUCKETS_S.partition_point(|bound| *bound < latency_s)] += 1;
            workload.latency_sum_s += latency_s;
        }
    }

    fn connect(&mut self, time: Time, connect: &Connect) {
        let workload = self.of(connect.process.as_deref(), connect.container.as_deref(), time);
        workload.lost_seconds += connect.elapsed_ns as f64 / 1e9;
        if let Some(outcome) = CONNECT_OUTCOMES.iter().position(|outcome| *outcome == connect.outcome) {
            workload.failed_connects[outcome] += 1;
        }
    }

    fn dropped(&mut self, drop: &PacketDrop) {
        let direction = match drop.direction {
            PacketDirection::Request => "request",
            PacketDirection::Response => "response",
        };
        let reason = drop.reason.as_deref().unwrap_or(UNKNOWN);
        let known = self.dropped.contains_key(&(reason.to_owned(), direction));
        let reason = if known || self.dropped.len() < self.limits.names {
            reason
        } else {
            OTHER
        };
        *self.dropped.entry((reason.to_owned(), direction)).or_default() += 1;
    }

    fn finding(&mut self, finding: &Finding) {
        let key = (finding.code, finding.subject.key.clone());
        match finding.state {
            FindingState::Resolved => {
                self.open.remove(&key);
            }
            FindingState::Open | FindingState::Update => {
                if finding.state == FindingState::Open {
                    let counted = (finding.code.as_str(), finding.severity.as_str());
                    *self.findings.entry(counted).or_default() += 1;
                }
                if self.open.len() < self.limits.open_findings || self.open.contains_key(&key) {
                    self.open.insert(key, finding.severity);
                }
            }
        }
    }

    fn summary(&mut self, summary: &Summary) {
        // The total repeats the intervals.
        if summary.total {
            return;
        }
        for seen in &summary.interfaces {
            let full = self.interfaces.len() >= self.limits.names && !self.interfaces.contains_key(&seen.name);
            let name = if full { OTHER } else { seen.name.as_str() };
            let interface = self.interfaces.entry(name.to_owned()).or_default();
            interface.egress += seen.egress_packets;
            interface.ingress += seen.ingress_packets;
            interface.peak_per_s = seen.peak_packets_per_s;
            interface.quota_share = seen.quota_share;
            if let Some(grown) = seen.allowance_exceeded {
                *interface.allowance_exceeded.get_or_insert(0) += grown;
            }
        }
    }

    fn of(&mut self, process: Option<&Process>, container: Option<&Container>, now: Time) -> &mut Workload {
        let name = workload(process, container).unwrap_or_else(|| UNKNOWN.to_owned());
        let is_full =
            |state: &Self| state.distinguished() >= state.limits.workloads && !state.workloads.contains_key(&name);
        if is_full(self) {
            self.forget_silent(now);
        }
        let full = is_full(self);
        let workload = self
            .workloads
            .entry(if full { OTHER.to_owned() } else { name })
            .or_default();
        workload.last = now;
        workload
    }

    /// Without the one that all others share.
    fn distinguished(&self) -> usize {
        self.workloads.len() - usize::from(self.workloads.contains_key(OTHER))
    }

    /// Makes room. What the silent counted is not added to `other`: to Prometheus that would be requests that are made now. A series that
    /// ends is none, and one that comes back begins at 0, as after a restart.
    fn forget_silent(&mut self, now: Time) {
        // Not each newcomer of a crowd looks at all of them again, unless the clock was set back.
        if now < self.full_until && self.full_until.since(now) <= self.silence_ns {
            return;
        }
        let (mut oldest, silence_ns) = (now, self.silence_ns);
        self.workloads.retain(|name, workload| {
            let keep = name == OTHER || now.since(workload.last) < silence_ns;
            if keep && name != OTHER {
                oldest = oldest.min(workload.last);
            }
            keep
        });
        self.full_until = oldest.plus_ns(silence_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(name: &str, status: u16, second: u64) -> Record {
        let mut exchange = Record::example(name, status);
        exchange.time = exchange.time.plus_ns(second * 1_000_000_000);
        exchange.into()
    }

    const HOUR: Duration = Duration::from_secs(3600);

    fn state() -> Totals {
        Totals::new(Limits::default(), HOUR)
    }

    fn sum(state: &Totals) -> u64 {
        let all = state
            .workloads
            .values()
            .flat_map(|workload| &workload.exchanges)
            .map(|(_, count)| count);
        all.sum()
    }

    fn of(state: &Totals, workload: &str) -> u64 {
        let workload = state.workloads.get(workload);
        workload.map_or(0, |workload| workload.exchanges.iter().map(|(_, count)| count).sum())
    }

    #[test]
    fn workloads_are_bounded_and_the_silent_make_room() {
        let mut state = state();
        for number in 0..1000 {
            state.observe(&exchange(&format!("app{number}"), 200, 0));
        }
        assert_eq!(state.workloads.len(), Limits::default().workloads + 1);
        assert_eq!(sum(&state), 1000, "nothing is lost");
        state.observe(&exchange("late", 200, 2 * 3600));
        assert!(state.workloads.contains_key("late") && state.workloads.contains_key(OTHER));
        assert_eq!(state.workloads.len(), 2);
    }

    /// Prometheus takes a counter that goes down for a restart, and what it then shows for new.
    #[test]
    fn no_series_goes_down_but_by_ending() {
        let mut state = state();
        let mut before: BTreeMap<String, u64> = BTreeMap::new();
        let mut ended = 0;
        // Three months: five new workloads an hour, two requests each; one that asks all the time.
        for hour in 0..90 * 24 {
            for minute in (0..60).step_by(6) {
                let second = hour * 3600 + minute * 60;
                state.observe(&exchange("agent", 200, second));
                state.observe(&exchange(&format!("job{}", hour * 5 + minute / 6 % 5), 200, second + 1));
            }
            let now: BTreeMap<String, u64> = state
                .workloads
                .keys()
                .map(|name| (name.clone(), of(&state, name)))
                .collect();
            for (name, count) in &before {
                match now.get(name) {
                    Some(later) => assert!(later >= count, "{name}: {count}, then {later}"),
                    None => ended += 1,
                }
            }
            before = now;
        }
        assert_eq!(of(&state, "agent"), 90 * 24 * 10);
        assert_eq!(of(&state, OTHER), 0, "the living have their own");
        assert!(
            ended > 10_000 && state.workloads.len() <= Limits::default().workloads,
            "{ended}"
        );
    }

    #[test]
    fn others_are_never_forgotten() {
        let mut state = state();
        for number in 0..1000 {
            state.observe(&exchange(&format!("app{number}"), 200, 0));
        }
        let others = of(&state, OTHER);
        for number in 0..1000 {
            state.observe(&exchange(&format!("next{number}"), 200, 9 * 3600));
        }
        assert_eq!(of(&state, OTHER), 2 * others);
        // The clock is set back for a day: who is new waits an hour at most, not a day.
        state.observe(&exchange("app1", 200, 0));
        assert!(state.full_until > Time(0));
    }

    #[test]
    fn a_servers_statuses_are_bounded() {
        let mut state = state();
        for status in 100..600 {
            state.observe(&exchange("app", status, 0));
        }
        let statuses = &state.workloads["app"].statuses;
        assert_eq!(statuses.len(), Limits::default().statuses + 1);
        assert_eq!(statuses.values().sum::<u64>(), 500);
    }
}
