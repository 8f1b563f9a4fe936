//! Files of earlier observation, as one source: our own NDJSON and captures, many at once, merged by time.
//!
//! An exchange is written when it has ended but bears the time at which it began, so lines are not sorted by `time`. Within a file their
//! order is kept as it is: it is the order in which the live observer learnt things, and detectors must see the same. Between files, the one
//! whose next event *ended* first goes first; a file's clock never runs backwards. So little is held in memory: of a file of records, what its
//! threads have read ahead.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::capture::{Broken, Capture, Next, Read};
use super::input::{Format, Input};
use super::ndjson::Skip;
use super::ndjson::ahead::{Ahead, Spares};
use super::{Event, Limits, Source, SourceFacts, SourceState};
use crate::record::{Host, LossCounts, Missing, Mode, Record, Time};

/// Events handed on at once.
const BATCH: usize = 1024;
/// The host of a capture, which doesn't tell it; `--host` does.
const UNKNOWN_HOST: &str = "unknown";

/// What was read so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InputCounts {
    pub files: u64,
    /// Lines that gave a record, and packets.
    pub records: u64,
    /// Lines that gave no record, and places where a capture broke off.
    pub skipped: u64,
    /// What was skipped without last lines that were merely cut off.
    pub broken: u64,
}

impl InputCounts {
    fn skip(&mut self, skip: &Skip) {
        self.skipped += 1;
        self.broken += u64::from(*skip != Skip::CutOff);
    }

    fn breaks_off(&mut self, capture: &Capture, at: u64, why: &Broken) {
        self.skipped += 1;
        self.broken += 1;
        tracing::warn!("{}:{at}: {why}", capture.name);
    }
}

/// See the module's text.
pub struct Traces {
    traces: Vec<Trace>,
    /// Next event of each trace that has one.
    next: Vec<Option<Event>>,
    clocks: Vec<Time>,
    order: BinaryHeap<Reverse<(Time, usize)>>,
    spares: Spares,
    /// Whose next event is still to be read, because reading it might have meant waiting.
    behind: Option<usize>,
    counts: InputCounts,
    /// Of each capture, as last told.
    losses: Vec<LossCounts>,
    host: Option<Host>,
    from: Option<Time>,
    captures: bool,
}

enum Trace {
    Records(Box<Ahead>),
    Capture(Box<Capture>),
}

impl Traces {
    /// With the default bounds.
    pub fn new(inputs: Vec<Input>, endpoints: &[IpAddr]) -> Self {
        Self::with_limits(inputs, endpoints, &Limits::default())
    }

    /// Reads each input's first event. `endpoints`: where IMDS is in captures.
    pub fn with_limits(inputs: Vec<Input>, endpoints: &[IpAddr], limits: &Limits) -> Self {
        let (files, spares) = (inputs.len(), Spares::new(limits));
        let traces: Vec<Trace> = inputs
            .into_iter()
            .map(|input| match input.format {
                Format::Ndjson => Trace::Records(Box::new(Ahead::new(input, files, &spares))),
                Format::Pcap | Format::Pcapng => Trace::Capture(Box::new(Capture::new(input, endpoints, limits))),
            })
            .collect();
        let mut source = Self {
            next: traces.iter().map(|_| None).collect(),
            clocks: vec![Time::default(); traces.len()],
            losses: vec![LossCounts::default(); traces.len()],
            counts: InputCounts {
                files: traces.len() as u64,
                ..InputCounts::default()
            },
            captures: traces.iter().any(|trace| matches!(trace, Trace::Capture(_))),
            traces,
            spares,
            order: BinaryHeap::new(),
            behind: None,
            host: None,
            from: None,
        };
        for index in 0..source.traces.len() {
            source.refill(index);
        }
        source.from = source.next.iter().flatten().filter_map(Event::time).min();
        let mut hosts = source.next.iter().flatten().filter_map(|event| match event {
            Event::Record(record) => Some(record.host()),
            _ => None,
        });
        source.host = match hosts.next() {
            Some(first) if hosts.all(|host| host == first) => Some(first.clone()),
            Some(_) => Some("several".into()),
            None => source.captures.then(|| UNKNOWN_HOST.into()),
        };
        source
    }

    pub fn counts(&self) -> InputCounts {
        let packets = self.traces.iter().map(|trace| match trace {
            Trace::Capture(capture) => capture.packets(),
            Trace::Records(_) => 0,
        });
        let mut counts = self.counts;
        counts.records += packets.sum::<u64>();
        counts
    }

    fn refill(&mut self, index: usize) {
        let event = loop {
            let event = match &mut self.traces[index] {
                Trace::Records(reader) => match reader.next_record() {
                    None => break None,
                    Some(Ok(record)) => {
                        self.counts.records += 1;
                        Event::Record(record)
                    }
                    Some(Err(skip)) => {
                        self.counts.skip(&skip);
                        continue;
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
                        self.counts.breaks_off(capture, at, &why);
                        continue;
                    }
                },
            };
            break Some(event);
        };
        // One trace alone has nothing to be merged with.
        if let Some(event) = &event
            && self.traces.len() > 1
        {
            let settled = match event {
                Event::Record(record) => record.settled(),
                event => event.time().unwrap_or_default(),
            };
            self.clocks[index] = self.clocks[index].max(settled);
            self.order.push(Reverse((self.clocks[index], index)));
        }
        self.next[index] = event;
    }

    fn is_ready(&mut self, index: usize) -> bool {
        match &mut self.traces[index] {
            Trace::Records(reader) => reader.is_ready(),
            Trace::Capture(capture) => capture.is_ready(),
        }
    }
}

/// One file alone, which has nothing to be merged with: its records go on as they come.
fn records_of_one(
    reader: &mut Ahead,
    first: Option<Event>,
    counts: &mut InputCounts,
    out: &mut Vec<Event>,
) -> SourceState {
    let before = out.len();
    out.extend(first);
    loop {
        // What has been read is handed on without looking whether more is there.
        for _ in 0..reader.buffered().max(1) {
            match reader.next_record() {
                Some(Ok(record)) => {
                    counts.records += 1;
                    out.push(Event::Record(record));
                }
                Some(Err(skip)) => counts.skip(&skip),
                None if out.len() == before => return SourceState::End,
                None => return SourceState::More,
            }
        }
        let read = out.len() - before;
        if read >= BATCH || read > 0 && !reader.is_ready() {
            return SourceState::More;
        }
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
            Read::Broken { at, why } => counts.breaks_off(capture, at, &why),
            Read::End if read == 0 => return SourceState::End,
            Read::End => return SourceState::More,
        }
    }
}

impl Source for Traces {
    fn start(&self) -> SourceFacts {
        let missing = self.captures.then(|| Missing {
            capability: "processes".to_owned(),
            why: "a capture tells them only in ptcpdump's comments".to_owned(),
            blinds: "which process sent a request".to_owned(),
        });
        SourceFacts {
            mode: Mode::Offline,
            host: self.host.clone(),
            time: self.from,
            kernel: None,
            endpoints: Vec::new(),
            interfaces: Vec::new(),
            attached: Vec::new(),
            missing: missing.into_iter().collect(),
            confinement: None,
        }
    }

    fn next_batch(&mut self, _: Duration, out: &mut Vec<Event>) -> anyhow::Result<SourceState> {
        if let [trace] = &mut self.traces[..] {
            // The first was read to see what the trace is of.
            let first = self.next[0].take();
            return Ok(match trace {
                Trace::Records(reader) => records_of_one(reader, first, &mut self.counts, out),
                Trace::Capture(capture) => packets_of_one(capture, first, &mut self.counts, out),
            });
        }
        if let Some(index) = self.behind.take() {
            self.refill(index);
        }
        for _ in 0..BATCH {
            let Some(Reverse((_, index))) = self.order.pop() else {
                return Ok(SourceState::End);
            };
            let Some(event) = self.next[index].take() else {
                return Ok(SourceState::End);
            };
            out.push(event);
            if !self.is_ready(index) {
                self.behind = Some(index);
                break;
            }
            self.refill(index);
        }
        Ok(SourceState::More)
    }

    fn take_back(&mut self, mut records: Vec<Arc<Record>>) {
        records.retain(|record| matches!(**record, Record::Exchange(_)) && Arc::strong_count(record) == 1);
        self.spares.give(records);
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::ndjson::MAX_LINE_BYTES;
    use super::*;

    const LOSS: &str = r#"{"record":"loss","schema":1,"time":"2026-01-01T00:00:01.000000000Z","host":"a","ring_buffer":0,"unparsed":0,"truncated":0,"evicted":0,"unattributed":0}"#;

    fn loss(host: &str, second: u32) -> String {
        LOSS.replace("00:01.", &format!("00:{second:02}."))
            .replace("\"a\"", &format!("\"{host}\""))
    }

    fn source(files: &[String]) -> Traces {
        Traces::new(
            files
                .iter()
                .map(|text| Input::new("t".into(), Box::new(io::Cursor::new(text.clone()))).unwrap())
                .collect(),
            &[],
        )
    }

    fn times(source: &mut Traces) -> Vec<u64> {
        let mut out = Vec::new();
        while source.next_batch(Duration::ZERO, &mut out).unwrap() != SourceState::End {}
        let second = |event: &Event| event.time().unwrap().0 / 1_000_000_000 % 60;
        out.iter().map(second).collect()
    }

    #[test]
    fn files_are_merged_and_each_keeps_its_order() {
        let one = [loss("a", 1), loss("a", 5), loss("a", 4), loss("a", 9)].join("\n");
        let two = [loss("a", 2), loss("a", 3), loss("a", 8)].join("\n");
        let mut source = source(&[one, two]);
        assert_eq!(times(&mut source), [1, 2, 3, 5, 4, 8, 9]);
        assert_eq!(source.counts().records, 7);
        assert_eq!(source.counts().skipped, 0);
    }

    #[test]
    fn what_is_no_record_is_counted_and_passed_over() {
        let lines = [
            loss("a", 1),
            "nonsense".into(),
            "{\"record\":\"novelty\",\"schema\":1}".into(),
            loss("a", 2).replace("\"schema\":1", "\"schema\":7"),
            loss("a", 2).replace("\"evicted\":0,", ""),
            "x".repeat(MAX_LINE_BYTES + 10),
            "{\"Records\":[]}".into(),
            String::new(),
            loss("a", 3),
            LOSS[..60].to_owned(),
        ]
        .join("\n");
        let mut source = source(&[lines]);
        assert_eq!(times(&mut source), [1, 3]);
        let wanted = InputCounts {
            files: 1,
            records: 2,
            skipped: 7,
            broken: 6,
        };
        assert_eq!(source.counts(), wanted);
    }

    #[test]
    fn trace_of_one_host_bears_its_name() {
        assert_eq!(source(&[loss("a", 1), loss("a", 2)]).start().host.as_deref(), Some("a"));
        assert_eq!(
            source(&[loss("a", 1), loss("b", 2)]).start().host.as_deref(),
            Some("several")
        );
        assert_eq!(source(&[String::new()]).start().host, None);
    }
}
