//! Where the adding up is done: at once, or on a thread of its own, which takes what was observed in the same order and so comes to the same.

use std::panic;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::Summarizer;
use crate::record::{Record, Time};
use crate::source::InterfaceSample;

/// Records that are handed over at once: each time costs a wake-up, and what waits should still be in a cache.
const BATCH: usize = 256;
/// Batches that wait to be added up. When there are as many, the pipeline waits.
const WAITING: usize = 4;
/// Records that were added up and wait for somebody who can use their memory, and batches of them; what is more is let go.
const MAX_SPENT: usize = 1024;
const SPENT_BATCHES: usize = 8;

/// A summarizer, and what it is still to see.
pub struct Sums {
    place: Place,
    spent: Vec<Arc<Record>>,
}

enum Place {
    Here(Box<Summarizer>),
    Aside(Aside),
}

struct Aside {
    observed: Vec<Arc<Record>>,
    work: SyncSender<Work>,
    spent: Receiver<Vec<Arc<Record>>>,
    /// Until it has ended.
    thread: Option<JoinHandle<Box<Summarizer>>>,
}

enum Work {
    Records(Vec<Arc<Record>>),
    Rare(Box<dyn FnOnce(&mut Summarizer) + Send>),
    End,
}

impl Sums {
    /// Adds up at once.
    pub fn at_once(summarizer: Summarizer) -> Self {
        Self {
            place: Place::Here(Box::new(summarizer)),
            spent: Vec::new(),
        }
    }

    /// Adds up on another thread until somebody wants to know: for traces, which come faster than one thread can handle them.
    pub fn aside(summarizer: Summarizer) -> Self {
        let mut summarizer = Box::new(summarizer);
        let (work, todo) = sync_channel(WAITING);
        let (done, spent) = sync_channel(SPENT_BATCHES);
        let thread = thread::spawn(move || {
            for work in todo {
                match work {
                    Work::Records(records) => {
                        for record in &records {
                            summarizer.observe(record);
                        }
                        // If nobody fetches them they are let go.
                        let _ = done.try_send(records);
                    }
                    Work::Rare(work) => work(&mut summarizer),
                    Work::End => break,
                }
            }
            summarizer
        });
        Self {
            place: Place::Aside(Aside {
                observed: Vec::with_capacity(BATCH),
                work,
                spent,
                thread: Some(thread),
            }),
            spent: Vec::new(),
        }
    }

    pub fn observe(&mut self, record: Arc<Record>) {
        match &mut self.place {
            Place::Here(summarizer) => {
                summarizer.observe(&record);
                if self.spent.len() < MAX_SPENT {
                    self.spent.push(record);
                }
            }
            Place::Aside(aside) => {
                aside.observed.push(record);
                if aside.observed.len() == BATCH {
                    aside.hand_over();
                }
            }
        }
    }

    pub fn begin(&mut self, time: Time) {
        self.rarely(move |summarizer| summarizer.begin(time));
    }

    pub fn interface(&mut self, sample: &InterfaceSample) {
        let sample = sample.clone();
        self.rarely(move |summarizer| summarizer.interface(&sample));
    }

    /// Some of the records that were added up, so that their memory can be used again.
    pub fn spent(&mut self) -> Option<Vec<Arc<Record>>> {
        if let Place::Aside(aside) = &self.place
            && let Ok(spent) = aside.spent.try_recv()
        {
            return Some(spent);
        }
        (!self.spent.is_empty()).then(|| std::mem::take(&mut self.spent))
    }

    /// With everything added up that was observed. From here on it is done at once.
    pub fn settled(&mut self) -> &mut Summarizer {
        if let Place::Aside(aside) = &mut self.place {
            self.place = Place::Here(aside.end());
        }
        match &mut self.place {
            Place::Here(summarizer) => summarizer,
            Place::Aside(_) => unreachable!("it was just put here"),
        }
    }

    /// What was counted but not kept apart, as far as it is known: of what is added up aside, only once that is settled.
    pub fn evicted(&self) -> u64 {
        match &self.place {
            Place::Here(summarizer) => summarizer.evicted(),
            Place::Aside(_) => 0,
        }
    }

    fn rarely(&mut self, work: impl FnOnce(&mut Summarizer) + Send + 'static) {
        match &mut self.place {
            Place::Here(summarizer) => work(summarizer),
            Place::Aside(aside) => {
                aside.hand_over();
                aside.send(Work::Rare(Box::new(work)));
            }
        }
    }
}

impl Aside {
    fn hand_over(&mut self) {
        let records = std::mem::replace(&mut self.observed, Vec::with_capacity(BATCH));
        self.send(Work::Records(records));
    }

    /// It fails only if the thread has panicked, and [`Self::end`] tells that.
    fn send(&self, work: Work) {
        let _ = self.work.send(work);
    }

    fn end(&mut self) -> Box<Summarizer> {
        self.hand_over();
        self.send(Work::End);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(summarizer)) => summarizer,
            Some(Err(panic)) => panic::resume_unwind(panic),
            None => unreachable!("ended twice"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Limits;
    use super::*;
    use crate::source::ndjson::parse;

    fn exchange(who: usize, ms: u64) -> Arc<Record> {
        let line = format!(
            r#"{{"record":"exchange","schema":1,"time":"2026-01-01T00:00:{:02}.{:03}000000Z","host":"a","process":null,"container":null,"connection":{{"id":"{ms}","local":"10.0.0.{who}:{ms}","remote":"169.254.169.254:80","exchange":1}},"request":{{"method":"GET","path":"/latest/{}","dialect":"aws","imds_version":"v2","token":"t{}","token_ttl_s":null,"user_agent":null,"ttl":64,"forwarded":false}},"response":{{"status":200,"ttl":1,"delivered":true,"server":null}},"outcome":"answered","latency_ns":{}}}"#,
            ms / 1000,
            ms % 1000,
            ms % 50,
            ms % 9,
            100_000 + ms * 13,
        );
        Arc::new(parse(line.as_bytes()).unwrap())
    }

    /// More groups and paths than are kept apart, so that the order counts.
    fn sum_up(mut sums: Sums) -> (crate::record::Summary, u64) {
        let sample = InterfaceSample {
            time: Time(1_767_225_600_000_000_000),
            name: "eth0".into(),
            interval_ns: 1_000_000_000,
            egress: [1, 2, 3, 4],
            ingress: [0; 4],
            allowance_exceeded: None,
        };
        let mut spent = 0;
        for ms in 0..3000 {
            if ms % 1000 == 7 {
                sums.interface(&sample);
            }
            sums.observe(exchange(ms as usize * 7 % 13, ms));
            spent += sums.spent().map_or(0, |records| records.len());
        }
        let summarizer = sums.settled();
        let total = summarizer.total(Time(1_767_225_700_000_000_000));
        assert!(spent > 0, "records come back");
        assert!(sums.evicted() > 0);
        (total, sums.evicted())
    }

    #[test]
    fn aside_comes_to_the_same_as_at_once() {
        let limits = Limits {
            groups: 8,
            paths: 4,
            ..Limits::default()
        };
        let summarizer = || Summarizer::new("a".into(), limits).without_intervals();
        let (at_once, aside) = (sum_up(Sums::at_once(summarizer())), sum_up(Sums::aside(summarizer())));
        assert_eq!(at_once, aside);
        assert_eq!(at_once.0.processes.len(), 8);
    }

    #[test]
    fn what_is_added_up_later_counts_too() {
        let mut sums = Sums::aside(Summarizer::new("a".into(), Limits::default()));
        for ms in 0..10 {
            sums.observe(exchange(1, ms));
            let summarizer = sums.settled();
            assert_eq!(summarizer.total(Time(u64::MAX / 2)).processes[0].requests, ms + 1);
        }
    }
}
