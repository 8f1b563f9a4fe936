//! Captures, and files of records beside them, merged by time.

use std::net::IpAddr;

use super::capture::{Broken, Capture, Next, Read};
use super::input::{Format, Input};
use super::ndjson::file::{File, Reader};
use super::ndjson::written::Callers;
use super::order::Order;
use super::traces::InputCounts;
use super::{Limits, SourceState};
use crate::event::Event;
use crate::record::LossCounts;

/// Events handed on at once.
const BATCH: usize = 1024;

/// See the module.
pub(super) struct Merged {
    traces: Vec<Trace>,
    /// Next event of each trace that has one.
    next: Vec<Option<Event>>,
    order: Order,
    reader: Reader,
    /// Whose next event is still to be read, because reading it might have meant waiting.
    behind: Option<usize>,
    counts: InputCounts,
    /// Per capture, as last reported.
    losses: Vec<LossCounts>,
}

enum Trace {
    Records(Box<File>),
    Capture(Box<Capture>),
}

impl Merged {
    /// Reads each input's first event.
    pub(super) fn new(inputs: Vec<Input>, endpoints: &[IpAddr], limits: &Limits) -> Self {
        let files = inputs.len();
        let traces: Vec<Trace> = inputs
            .into_iter()
            .map(|input| match input.format {
                Format::Ndjson => Trace::Records(Box::new(File::new(input, files, limits.read_ahead_bytes))),
                Format::Pcap | Format::Pcapng => Trace::Capture(Box::new(Capture::new(input, endpoints, limits))),
            })
            .collect();
        let mut merged = Self {
            next: traces.iter().map(|_| None).collect(),
            order: Order::new(files),
            reader: Reader::new(Callers::new(limits.callers)),
            behind: None,
            counts: InputCounts::default(),
            losses: vec![LossCounts::default(); files],
            traces,
        };
        for index in 0..files {
            merged.refill(index);
        }
        merged
    }

    /// The first event of each, before any is taken.
    pub(super) fn firsts(&self) -> impl Iterator<Item = &Event> + Clone {
        self.next.iter().flatten()
    }

    pub(super) fn counts(&self) -> InputCounts {
        let mut counts = self.counts;
        for trace in &self.traces {
            match trace {
                Trace::Records(file) => file.count_skipped(&mut counts),
                Trace::Capture(capture) => counts.records += capture.packets(),
            }
        }
        counts
    }

    pub(super) fn next_batch(&mut self, out: &mut Vec<Event>) -> SourceState {
        // The first was read to see what the trace is of.
        if let [Trace::Capture(capture)] = &mut self.traces[..] {
            return packets_of_one(capture, self.next[0].take(), &mut self.counts, out);
        }
        if let Some(index) = self.behind.take() {
            self.refill(index);
        }
        for _ in 0..BATCH {
            let Some(index) = self.order.pop() else {
                return SourceState::End;
            };
            let Some(event) = self.next[index].take() else {
                return SourceState::End;
            };
            if let Event::Record(record) = &event {
                self.order.took(index, record);
            }
            out.push(event);
            let is_ready = match &self.traces[index] {
                Trace::Records(file) => file.is_ready(),
                Trace::Capture(capture) => capture.is_ready(),
            };
            if !is_ready {
                self.behind = Some(index);
                break;
            }
            self.refill(index);
        }
        SourceState::More
    }

    pub(super) fn take_back(&mut self, events: &mut Vec<Event>) {
        self.reader.take_back(events.drain(..).filter_map(Event::into_record));
    }

    fn refill(&mut self, index: usize) {
        let event = loop {
            let event = match &mut self.traces[index] {
                Trace::Records(file) => match file.next_record(&mut self.reader) {
                    None => break None,
                    Some(record) => {
                        self.counts.records += 1;
                        Event::Record(record)
                    }
                },
                Trace::Capture(capture) => match capture.next_event() {
                    Next::End => break None,
                    Next::Event(Event::Loss(loss)) => {
                        self.losses[index] = loss;
                        // Counts are absolute, so those of all captures go as one.
                        Event::Loss(
                            self.losses
                                .iter()
                                .fold(LossCounts::default(), |sum, loss| sum.plus(*loss)),
                        )
                    }
                    Next::Event(event) => event,
                    Next::Broken { at, why } => {
                        breaks_off(&mut self.counts, capture, at, &why);
                        continue;
                    }
                },
            };
            break Some(event);
        };
        match &event {
            Some(Event::Record(record)) => self.order.push_record(index, record),
            Some(event) => self.order.push(index, event.settled().unwrap_or_default()),
            None => {}
        }
        self.next[index] = event;
    }
}

/// One capture alone.
fn packets_of_one(
    capture: &mut Capture,
    first: Option<Event>,
    counts: &mut InputCounts,
    out: &mut Vec<Event>,
) -> SourceState {
    let before = out.len();
    out.extend(first);
    loop {
        let read = out.len() - before;
        if read >= BATCH || read > 0 && !capture.is_ready() {
            return SourceState::More;
        }
        match capture.next_events(out) {
            Read::Events => {}
            Read::Broken { at, why } => breaks_off(counts, capture, at, &why),
            Read::End if read == 0 => return SourceState::End,
            Read::End => return SourceState::More,
        }
    }
}

fn breaks_off(counts: &mut InputCounts, capture: &Capture, at: u64, why: &Broken) {
    counts.skipped += 1;
    counts.broken += 1;
    tracing::warn!("{}:{at}: {why}", capture.name);
}
