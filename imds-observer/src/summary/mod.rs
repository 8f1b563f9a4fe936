//! Adds up who asked what, how often and how fast: the `summary` records.
//!
//! Two tallies are kept for each group of processes: one for the interval, one for the whole run. Groups beyond the bound are counted in
//! `other_requests`; distinct tokens, processes and paths of a group are counted up to bounds: see [`Limits`]. Live, groups that have been
//! silent for long make room for new ones, and the total counts them in `other_requests` from then on; of a trace the total is over all.

pub(crate) mod distinct;
mod interfaces;
mod paths;
pub(crate) mod tally;

use std::collections::hash_map::Entry;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::event::InterfaceSample;
use crate::record::workload::{self, Group};
use crate::record::{
    Body, ByCaller, Connect, Container, Exchange, Host, Of, Process, ProcessSummary, Record, Summary, Time,
};
use distinct::Budget;
use interfaces::Interfaces;
use tally::Tally;

/// Bounds of a [`Summarizer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Groups that have a row of their own.
    pub groups: usize,
    /// Paths that are counted in each.
    pub paths: usize,
    /// Tokens, and processes, distinguished in each; beyond, these counts stop. 32 times as many in all, and 128 more in each.
    pub distinct: usize,
    /// Interfaces that are distinguished.
    pub interfaces: usize,
    /// Capacity of the cache of callers' groups. One more clears it.
    pub callers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            groups: 512,
            paths: 32,
            distinct: 4_096,
            interfaces: 256,
            callers: 2_048,
        }
    }
}

/// Adds up, see the module.
#[derive(Debug)]
pub struct Summarizer {
    groups: FxHashMap<u64, Row>,
    /// The hash is a row's identity, and its key is random: two callers with one hash can't be computed.
    hashing: RandomState,
    callers: ByCaller<u64>,
    limits: Limits,
    distinct: Budget,
    /// After which a silent group makes room for another one.
    silence_ns: Option<u64>,
    /// No group has been silent for so long before.
    full_until: Time,
    interfaces: Interfaces,
    /// Requests of groups beyond the bound: in this interval, and in all.
    other: (u64, u64),
    evicted: u64,
    started: Option<Time>,
    interval_started: Option<Time>,
    /// Whether anything came since the last interval's end.
    busy: bool,
    /// Whether anybody asks for intervals; without, they are not added up.
    intervals: bool,
}

#[derive(Debug)]
struct Row {
    /// Newest member.
    process: Option<Arc<Process>>,
    container: Option<Arc<Container>>,
    /// Address of a client without other known properties.
    address: Option<String>,
    workload: Option<String>,
    last: Time,
    interval: Tally,
    total: Tally,
}

impl Summarizer {
    pub fn new(limits: Limits) -> Self {
        Self {
            groups: FxHashMap::default(),
            hashing: RandomState::new(),
            callers: ByCaller::new(limits.callers),
            limits,
            distinct: Budget::new(limits.distinct),
            silence_ns: None,
            full_until: Time::default(),
            interfaces: Interfaces::new(limits.interfaces),
            other: (0, 0),
            evicted: 0,
            started: None,
            interval_started: None,
            busy: false,
            intervals: true,
        }
    }

    /// [`Self::interval`] will not be called.
    #[must_use]
    pub fn without_intervals(self) -> Self {
        Self {
            intervals: false,
            ..self
        }
    }

    /// When all rows are used, rows of groups that were idle for this long are dropped. For long-running use: pods are created and deleted.
    #[must_use]
    pub fn forgetting_after(mut self, silence: Duration) -> Self {
        let silence_ns = silence.as_nanos() as u64;
        self.silence_ns = Some(silence_ns);
        self.interfaces.forget_after(silence_ns);
        self
    }

    /// Counting begins; without it, the first observation begins it.
    pub fn begin(&mut self, time: Time) {
        self.started.get_or_insert(time);
        self.interval_started.get_or_insert(time);
    }

    /// Adds up what adds up; of other kinds there is nothing.
    pub fn observe(&mut self, record: &Record) {
        match &record.body {
            Body::Exchange(exchange) => self.exchange(record.with(exchange)),
            Body::Connect(connect) => self.connect(record.with(connect)),
            Body::Summary(summary) if !summary.total => self.recorded(summary),
            _ => {}
        }
    }

    pub fn exchange(&mut self, exchange: Of<'_, Exchange>) {
        self.begin(exchange.time);
        self.busy = true;
        let local = exchange.connection.local.as_deref();
        let (process, container) = (exchange.process.as_ref(), exchange.container.as_ref());
        let intervals = self.intervals;
        if let Some(row) = self.row(exchange.host, process, container, local, exchange.time) {
            if intervals {
                row.interval.exchange(&exchange);
            }
            row.total.exchange(&exchange);
        } else {
            self.other.0 += 1;
            self.other.1 += 1;
        }
    }

    fn connect(&mut self, connect: Of<'_, Connect>) {
        self.begin(connect.time);
        self.busy = true;
        let local = connect.connection.local.as_deref();
        if let Some(row) = self.row(
            connect.host,
            connect.process.as_ref(),
            connect.container.as_ref(),
            local,
            connect.time,
        ) {
            row.interval.failed_connects += 1;
            row.total.failed_connects += 1;
        }
    }

    pub fn interface(&mut self, sample: &InterfaceSample) {
        self.begin(sample.time.minus_ns(sample.interval_ns));
        self.evicted += u64::from(!self.interfaces.add(sample));
    }

    /// Takes over the interfaces of an interval that was summed up earlier; the processes come with the exchanges.
    fn recorded(&mut self, summary: &Summary) {
        self.begin(summary.from);
        for interface in &summary.interfaces {
            self.evicted += u64::from(!self.interfaces.add_recorded(interface, summary.to));
        }
    }

    /// Anything since the last interval?
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// The interval ends at `to` and the next begins.
    pub fn interval(&mut self, to: Time) -> Summary {
        let from = self.interval_started.replace(to).unwrap_or(to);
        let summary = self.summary(from, to, false);
        self.other.0 = 0;
        self.busy = false;
        for row in self.groups.values_mut() {
            row.interval.clear();
        }
        self.interfaces.end_interval();
        summary
    }

    /// The whole run so far.
    pub fn total(&self, to: Time) -> Summary {
        self.summary(self.started.unwrap_or(to), to, true)
    }

    /// Groups, processes and paths that were counted but not kept apart.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn row(
        &mut self,
        host: &Host,
        process: Option<&Arc<Process>>,
        container: Option<&Arc<Container>>,
        local: Option<&str>,
        time: Time,
    ) -> Option<&mut Row> {
        let hashing = &self.hashing;
        let of = |local| {
            let mut hasher = hashing.build_hasher();
            Group::of(process.map(Arc::as_ref), container.map(Arc::as_ref), local).hash_into(&mut hasher);
            hasher.finish()
        };
        let group = if process.is_some() || container.is_some() {
            *self.callers.get(process, container, || of(None))
        } else {
            of(local)
        };
        let key = self.hashing.hash_one((host, group));
        if self.groups.len() >= self.limits.groups && !self.groups.contains_key(&key) {
            self.forget_silent(time);
        }
        let full = self.groups.len() >= self.limits.groups;
        let row = match self.groups.entry(key) {
            Entry::Occupied(row) => row.into_mut(),
            Entry::Vacant(_) if full => {
                self.evicted += 1;
                return None;
            }
            Entry::Vacant(place) => place.insert(Row {
                process: None,
                container: None,
                address: if process.is_some() || container.is_some() {
                    None
                } else {
                    local.map(|local| local.rsplit_once(':').map_or(local, |(address, _)| address).to_owned())
                },
                workload: workload::workload(process.map(Arc::as_ref), container.map(Arc::as_ref)),
                last: time,
                interval: Tally::new(self.limits.paths, &self.distinct),
                total: Tally::new(self.limits.paths, &self.distinct),
            }),
        };
        row.last = time;
        newest(&mut row.process, process);
        newest(&mut row.container, container);
        Some(row)
    }

    /// Makes room. What a row counted stays in the total, and what it counted since the interval began in that: as requests of others.
    fn forget_silent(&mut self, now: Time) {
        let Some(silence_ns) = self.silence_ns else { return };
        // Unless the clock was set back.
        if now < self.full_until && self.full_until.since(now) <= silence_ns {
            return;
        }
        let mut oldest = now;
        let other = &mut self.other;
        self.groups.retain(|_, row| {
            let keep = now.since(row.last) < silence_ns;
            if keep {
                oldest = oldest.min(row.last);
            } else {
                other.0 += row.interval.requests;
                other.1 += row.total.requests;
            }
            keep
        });
        // Not each newcomer of a crowd looks at all rows again.
        self.full_until = oldest.plus_ns(silence_ns);
    }

    fn summary(&self, from: Time, to: Time, total: bool) -> Summary {
        let interval_ns = to.since(from);
        let mut processes: Vec<ProcessSummary> = self
            .groups
            .values()
            .filter_map(|row| {
                let tally = if total { &row.total } else { &row.interval };
                (!tally.is_empty()).then(|| ProcessSummary {
                    process: row.process.clone(),
                    container: row.container.clone(),
                    address: row.address.clone(),
                    workload: row.workload.clone(),
                    ..tally.summary(interval_ns)
                })
            })
            .collect();
        processes.sort_by(|a, b| {
            let pid = |row: &ProcessSummary| row.process.as_ref().map(|process| process.pid);
            let id = |row: &ProcessSummary| {
                row.container
                    .as_ref()
                    .map_or(String::new(), |container| container.id.clone())
            };
            (b.requests, b.failed_connects)
                .cmp(&(a.requests, a.failed_connects))
                .then_with(|| a.workload.cmp(&b.workload))
                .then_with(|| pid(a).cmp(&pid(b)))
                .then_with(|| id(a).cmp(&id(b)))
        });
        Summary {
            total,
            from,
            to,
            interval_ns,
            processes,
            interfaces: self.interfaces.summary(total),
            other_requests: if total { self.other.1 } else { self.other.0 },
        }
    }
}

/// Takes over what is known, without touching a count of references that other threads touch too where nothing changes.
fn newest<T>(kept: &mut Option<Arc<T>>, new: Option<&Arc<T>>) {
    match (&kept, new) {
        (_, None) => {}
        (Some(kept), Some(new)) if Arc::ptr_eq(kept, new) => {}
        (_, Some(new)) => *kept = Some(new.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::SECOND;

    const HOUR: u64 = 3600 * SECOND;
    const BEGIN: Time = Time(1_772_366_400 * SECOND);

    /// By this program of its own, at this time.
    fn exchange(name: usize, time: Time) -> Record<Exchange> {
        Record {
            time,
            ..Record::example(&format!("app{name}"), 200)
        }
    }

    fn summarizer(groups: usize) -> Summarizer {
        let limits = Limits {
            groups,
            ..Limits::default()
        };
        Summarizer::new(limits)
    }

    fn requests(summary: &Summary) -> u64 {
        summary.processes.iter().map(|row| row.requests).sum::<u64>() + summary.other_requests
    }

    #[test]
    fn after_months_the_living_have_rows_and_the_sums_are_right() {
        let mut summarizer = summarizer(64).forgetting_after(Duration::from_secs(3600));
        let mut made = 0;
        // Three months: each hour ten new pods ask once and are gone; one agent asks all the time.
        for hour in 0..90 * 24_u64 {
            for minute in (0..60).step_by(6) {
                let now = BEGIN.plus_ns(hour * HOUR + minute * 60 * SECOND);
                summarizer.exchange(exchange(0, now).by_ref());
                summarizer.exchange(exchange(1 + (hour * 10 + minute / 6) as usize, now).by_ref());
                made += 2;
                if minute == 54 {
                    let interval = summarizer.interval(now.plus_ns(SECOND));
                    assert_eq!(interval.processes.len(), 11, "hour {hour}");
                    assert_eq!((requests(&interval), interval.other_requests), (20, 0), "hour {hour}");
                }
            }
        }
        assert_eq!(summarizer.evicted(), 0, "nothing that lives was left out");
        let total = summarizer.total(BEGIN.plus_ns(90 * 24 * HOUR));
        assert!(total.processes.len() <= 64);
        assert_eq!(
            total.processes[0].requests,
            90 * 24 * 10,
            "the agent has its row all the time"
        );
        assert_eq!(requests(&total), made);
    }

    #[test]
    fn who_comes_back_after_long_silence_is_counted_once() {
        let mut summarizer = summarizer(1).forgetting_after(Duration::from_secs(3600));
        summarizer.exchange(exchange(1, BEGIN).by_ref());
        // Too early: the row is kept.
        summarizer.exchange(exchange(2, BEGIN.plus_ns(HOUR - 1)).by_ref());
        assert_eq!(summarizer.evicted(), 1);
        summarizer.exchange(exchange(2, BEGIN.plus_ns(HOUR)).by_ref());
        summarizer.exchange(exchange(1, BEGIN.plus_ns(3 * HOUR)).by_ref());
        assert_eq!(summarizer.evicted(), 1);
        let total = summarizer.total(BEGIN.plus_ns(3 * HOUR));
        assert_eq!((total.processes.len(), total.other_requests), (1, 3));
        let interval = summarizer.interval(BEGIN.plus_ns(3 * HOUR));
        assert_eq!(requests(&interval), 4);
    }

    #[test]
    fn a_trace_is_summed_up_over_its_whole_length() {
        let mut summarizer = summarizer(2).without_intervals();
        for day in 0..30 {
            summarizer.exchange(exchange(day as usize, BEGIN.plus_ns(day * 24 * HOUR)).by_ref());
        }
        let total = summarizer.total(BEGIN.plus_ns(30 * 24 * HOUR));
        let names: Vec<_> = total
            .processes
            .iter()
            .filter_map(|row| row.workload.as_deref())
            .collect();
        assert_eq!((names, total.other_requests), (vec!["app0", "app1"], 28));
        assert_eq!(summarizer.evicted(), 28);
    }
}
