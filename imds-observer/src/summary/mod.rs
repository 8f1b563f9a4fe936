//! Adds up who asked what, how often and how fast: the `summary` records.
//!
//! Two tallies are kept for each group of processes: one for the interval, one for the whole run. Groups beyond the bound are counted in
//! `other_requests`; distinct tokens, processes and paths of a group are counted up to bounds stated below.

mod interfaces;
mod paths;
pub(crate) mod tally;

use std::collections::hash_map::Entry;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHasher};

use crate::callers::ByCaller;
use crate::record::workload::{self, Group};
use crate::record::{Connect, Container, Exchange, Host, Kind, Process, ProcessSummary, SCHEMA, Summary, Time};
use crate::source::InterfaceSample;
use interfaces::Interfaces;
use tally::Tally;

/// Adds up; bounded by the number of groups and of paths tracked in each.
#[derive(Debug)]
pub struct Summarizer {
    host: Host,
    groups: FxHashMap<u64, Row>,
    callers: ByCaller<u64>,
    max_groups: usize,
    max_paths: usize,
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
    workload: Option<String>,
    interval: Tally,
    total: Tally,
}

impl Summarizer {
    pub fn new(host: Host, max_groups: usize, max_paths: usize) -> Self {
        Self {
            host,
            groups: FxHashMap::default(),
            callers: ByCaller::default(),
            max_groups,
            max_paths,
            interfaces: Interfaces::default(),
            other: (0, 0),
            evicted: 0,
            started: None,
            interval_started: None,
            busy: false,
            intervals: true,
        }
    }

    /// Nobody will ask for [`Self::interval`].
    #[must_use]
    pub fn without_intervals(self) -> Self {
        Self {
            intervals: false,
            ..self
        }
    }

    /// Counting begins; without it, the first observation begins it.
    pub fn begin(&mut self, time: Time) {
        self.started.get_or_insert(time);
        self.interval_started.get_or_insert(time);
    }

    pub fn exchange(&mut self, exchange: &Exchange) {
        self.begin(exchange.time);
        self.busy = true;
        let local = exchange.connection.local.as_deref();
        let (process, container) = (exchange.process.as_ref(), exchange.container.as_ref());
        let intervals = self.intervals;
        if let Some(row) = self.row(&exchange.host, process, container, local) {
            if intervals {
                row.interval.exchange(exchange);
            }
            row.total.exchange(exchange);
        } else {
            self.other.0 += 1;
            self.other.1 += 1;
        }
    }

    pub fn connect(&mut self, connect: &Connect) {
        self.begin(connect.time);
        self.busy = true;
        let local = connect.connection.local.as_deref();
        if let Some(row) = self.row(
            &connect.host,
            connect.process.as_ref(),
            connect.container.as_ref(),
            local,
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
    pub fn recorded(&mut self, summary: &Summary) {
        self.begin(summary.from);
        for interface in &summary.interfaces {
            self.evicted += u64::from(!self.interfaces.add_recorded(interface));
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
    ) -> Option<&mut Row> {
        let of = |local| {
            let mut hasher = FxHasher::default();
            Group::of(process.map(Arc::as_ref), container.map(Arc::as_ref), local).hash_into(&mut hasher);
            hasher.finish()
        };
        let group = if process.is_some() || container.is_some() {
            *self.callers.get(process, container, || of(None))
        } else {
            of(local)
        };
        let mut hasher = FxHasher::default();
        (host, group).hash(&mut hasher);
        let key = hasher.finish();
        let full = self.groups.len() >= self.max_groups;
        let row = match self.groups.entry(key) {
            Entry::Occupied(row) => row.into_mut(),
            Entry::Vacant(_) if full => {
                self.evicted += 1;
                return None;
            }
            Entry::Vacant(place) => place.insert(Row {
                process: None,
                container: None,
                workload: workload::workload(process.map(Arc::as_ref), container.map(Arc::as_ref)),
                interval: Tally::new(self.max_paths),
                total: Tally::new(self.max_paths),
            }),
        };
        newest(&mut row.process, process);
        newest(&mut row.container, container);
        Some(row)
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
                    workload: row.workload.clone(),
                    ..tally.summary(interval_ns)
                })
            })
            .collect();
        processes.sort_by(|a, b| {
            let pid = |row: &ProcessSummary| row.process.as_ref().map(|process| process.pid);
            (b.requests, b.failed_connects)
                .cmp(&(a.requests, a.failed_connects))
                .then_with(|| a.workload.cmp(&b.workload))
                .then_with(|| pid(a).cmp(&pid(b)))
        });
        Summary {
            record: Kind::Summary,
            schema: SCHEMA,
            time: to,
            host: self.host.clone(),
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
