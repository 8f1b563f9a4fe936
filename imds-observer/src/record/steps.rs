//! Steps of the wall clock that a trace reports. Records after one have the new time, records before it the old one: on one continuous clock a
//! step is no time that has passed.

use std::collections::HashMap;
use std::sync::Arc;

use super::by_caller::ByCaller;
use super::{Body, Host, Process, Record, Time};

/// Hosts whose steps are followed. Beyond, a step is a leap of the trace's time.
const HOSTS: usize = 4_096;
/// Processes whose start times on the continuous clock are cached.
const PROCESSES: usize = 2_048;

/// The continuous clock of each host: the one that its first record has.
#[derive(Debug)]
pub(crate) struct Steps {
    /// All steps of a host together, of those that have any.
    hosts: HashMap<Host, i64>,
    processes: ByCaller<Arc<Process>>,
}

impl Default for Steps {
    fn default() -> Self {
        Self {
            hosts: HashMap::new(),
            processes: ByCaller::new(PROCESSES),
        }
    }
}

impl Steps {
    /// Counts a step that the record reports. The record itself has the new time.
    pub(crate) fn follow(&mut self, record: &Record) {
        let by_ns = step_of(record);
        if by_ns == 0 {
            return;
        }
        self.processes = ByCaller::new(PROCESSES);
        let host = &record.host;
        if let Some(stepped) = self.hosts.get_mut(host) {
            *stepped = stepped.saturating_add(by_ns);
        } else if self.hosts.len() < HOSTS {
            self.hosts.insert(host.clone(), by_ns);
        }
    }

    /// When the record's subject ended, on the continuous clock. The step that the record itself reports needn't have been followed yet.
    pub(crate) fn settled(&self, record: &Record) -> Time {
        let settled = record.settled();
        let step = step_of(record);
        if step == 0 && self.hosts.is_empty() {
            return settled;
        }
        undone(settled, self.stepped(&record.host).saturating_add(step))
    }

    /// The record on the continuous clock; `None`: it is on it already.
    pub(crate) fn undo(&mut self, record: &Arc<Record>) -> Option<Arc<Record>> {
        let stepped = self.stepped(&record.host);
        if stepped == 0 {
            return None;
        }
        let mut record = Record::clone(record);
        move_times(&mut record, stepped.saturating_neg());
        if let Some((process, ..)) = record.body.traffic_mut() {
            self.undo_process(process, stepped);
        }
        Some(Arc::new(record))
    }

    /// Gives a record of this run the time that its host's records have now.
    pub(crate) fn redo(&self, record: &mut Record) {
        let stepped = self.stepped(&record.host);
        if stepped != 0 {
            move_times(record, stepped);
        }
    }

    fn stepped(&self, host: &Host) -> i64 {
        if self.hosts.is_empty() {
            return 0;
        }
        self.hosts.get(host).copied().unwrap_or(0)
    }

    fn undo_process(&mut self, process: &mut Option<Arc<Process>>, stepped: i64) {
        let Some(shared) = process else { return };
        let moved = self.processes.get(Some(shared), None, || {
            let mut process = Process::clone(shared);
            process.start_time = process.start_time.map(|time| undone(time, stepped));
            Arc::new(process)
        });
        *shared = Arc::clone(moved);
    }
}

/// Nanoseconds by which the wall clock was stepped right before this record; 0: not.
fn step_of(record: &Record) -> i64 {
    match &record.body {
        Body::Loss(loss) => loss.clock_step_ns,
        _ => 0,
    }
}

fn undone(time: Time, stepped: i64) -> Time {
    moved(time, stepped.saturating_neg())
}

fn moved(time: Time, by_ns: i64) -> Time {
    Time(time.0.saturating_add_signed(by_ns))
}

/// All times but those of processes.
fn move_times(record: &mut Record, by_ns: i64) {
    record.time = moved(record.time, by_ns);
    let more = match &mut record.body {
        Body::Finding(finding) => [&mut finding.first_seen, &mut finding.last_seen],
        Body::Summary(summary) => [&mut summary.from, &mut summary.to],
        _ => return,
    };
    for time in more {
        *time = moved(*time, by_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Exchange, LossCounts};

    const HOUR: i64 = 3_600_000_000_000;
    const NOON: u64 = 1_767_268_800_000_000_000;

    fn step(host: &str, time: u64, by_ns: i64) -> Record {
        let counts = LossCounts {
            clock_step_ns: by_ns,
            ..LossCounts::default()
        };
        Record {
            time: Time(time),
            host: host.into(),
            body: Body::Loss(counts),
        }
    }

    fn exchange(host: &str, time: u64) -> Arc<Record> {
        let mut exchange = Record::<Exchange>::example("app", 200);
        exchange.time = Time(time);
        exchange.host = host.into();
        exchange.latency_ns = None;
        exchange.waited_ns = None;
        let mut process = Process::clone(exchange.process.as_ref().unwrap());
        process.start_time = Some(Time(time - 5));
        exchange.process = Some(Arc::new(process));
        Arc::new(exchange.into())
    }

    #[test]
    fn time_is_continuous_over_steps_in_both_directions() {
        let mut steps = Steps::default();
        let mut written = NOON;
        for (passed, by_ns) in [(10, 5 * HOUR), (20, -3 * HOUR), (30, -3 * HOUR)] {
            written = written.saturating_add_signed(by_ns);
            let report = step("a", written + passed, by_ns);
            assert_eq!(steps.settled(&report), Time(NOON + passed));
            steps.follow(&report);
            let record = exchange("a", written + passed + 1);
            assert_eq!(steps.settled(&record), Time(NOON + passed + 1));
            let undone = steps
                .undo(&record)
                .map_or(Record::clone(&record), |record| Record::clone(&record));
            assert_eq!(undone.time, Time(NOON + passed + 1));
            let Body::Exchange(undone) = undone.body else { panic!() };
            assert_eq!(undone.process.unwrap().start_time, Some(Time(NOON + passed - 4)));
        }
    }

    #[test]
    fn steps_of_one_host_move_no_other() {
        let mut steps = Steps::default();
        steps.follow(&step("a", NOON, HOUR));
        let other = exchange("b", NOON);
        assert_eq!(steps.settled(&other), Time(NOON));
        assert_eq!(steps.undo(&other), None);
    }

    #[test]
    fn any_step_is_followed_without_overflow() {
        let mut steps = Steps::default();
        for by_ns in [i64::MIN, i64::MIN, i64::MAX, i64::MAX, i64::MAX, 1] {
            let report = step("a", NOON, by_ns);
            steps.settled(&report);
            steps.follow(&report);
            let record = exchange("a", NOON);
            steps.undo(&record);
            steps.redo(&mut Record::clone(&record));
        }
    }
}
