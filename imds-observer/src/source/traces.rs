//! Files of earlier observation, as one source: our own NDJSON and captures, many at once, merged by time.
//!
//! An exchange is written when it has ended but bears the time at which it began, so lines are not sorted by `time`. Within a file their
//! order is kept as it is: it is the order in which the live observer learnt things, and detectors must see the same. Between files, the one
//! whose next event *ended* first goes first; a file's clock never runs backwards. So little is held in memory: of each file, what was read at once.

use std::net::IpAddr;
use std::time::Duration;

use super::input::{Format, Input};
use super::merged::Merged;
use super::ndjson::turns::Turns;
use super::{Handle, Limits, Source, SourceFacts, SourceState, Then};
use crate::event::Event;
use crate::record::{Host, Missing, Mode, Record, Time};

/// Host of a capture, which doesn't contain it; set by `--host`.
const UNKNOWN_HOST: &str = "unknown";

/// Counts of what was read so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InputCounts {
    pub files: u64,
    /// Lines that gave a record, and packets.
    pub records: u64,
    /// Lines that gave no record, and places where a capture broke off.
    pub skipped: u64,
    /// Skipped lines, without last lines that were merely truncated.
    pub broken: u64,
}

/// See the module's text.
pub struct Traces {
    inputs: Inputs,
    files: u64,
    /// Files beside these that could not be read at all.
    unreadable: u64,
    host: Option<Host>,
    from: Option<Time>,
}

enum Inputs {
    /// Records only.
    Records(Box<Turns>),
    Merged(Box<Merged>),
}

impl Traces {
    /// With the default bounds.
    pub fn new(inputs: Vec<Input>, endpoints: &[IpAddr]) -> Self {
        Self::with_limits(inputs, endpoints, &Limits::default())
    }

    /// Reads each input's first event. `endpoints`: where IMDS is in captures.
    pub fn with_limits(inputs: Vec<Input>, endpoints: &[IpAddr], limits: &Limits) -> Self {
        let files = inputs.len() as u64;
        if inputs.iter().all(|input| input.format == Format::Ndjson) {
            let turns = Turns::new(inputs, limits);
            let firsts = turns.firsts();
            Self {
                files,
                unreadable: 0,
                host: host_of(firsts.clone()),
                from: firsts.map(|record| record.time).min(),
                inputs: Inputs::Records(Box::new(turns)),
            }
        } else {
            let merged = Merged::new(inputs, endpoints, limits);
            let firsts = merged.firsts();
            let records = firsts.clone().filter_map(|event| match event {
                Event::Record(record) => Some(&**record),
                _ => None,
            });
            Self {
                files,
                unreadable: 0,
                host: host_of(records).or_else(|| Some(UNKNOWN_HOST.into())),
                from: firsts.filter_map(Event::time).min(),
                inputs: Inputs::Merged(Box::new(merged)),
            }
        }
    }

    /// Counts this number of further files as skipped, because they could not be read at all.
    #[must_use]
    pub fn beside_unreadable(mut self, files: u64) -> Self {
        self.unreadable = files;
        self
    }

    pub fn counts(&self) -> InputCounts {
        let mut counts = self.read_counts();
        counts.files += self.unreadable;
        counts.skipped += self.unreadable;
        counts.broken += self.unreadable;
        counts
    }

    fn read_counts(&self) -> InputCounts {
        let files = self.files;
        match &self.inputs {
            Inputs::Records(turns) => InputCounts {
                files,
                ..turns.counts()
            },
            Inputs::Merged(merged) => InputCounts {
                files,
                ..merged.counts()
            },
        }
    }
}

fn host_of<'a>(mut records: impl Iterator<Item = &'a Record>) -> Option<Host> {
    let first = &records.next()?.host;
    let several = records.any(|record| record.host != *first);
    Some(if several { "several".into() } else { first.clone() })
}

impl Source for Traces {
    fn start(&self) -> SourceFacts {
        let captures = matches!(self.inputs, Inputs::Merged(_));
        let missing = captures.then(|| Missing {
            capability: "processes".to_owned(),
            why: "a capture has it only in comments written by ptcpdump".to_owned(),
            blinds: "the process of a request".to_owned(),
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
            filters: Vec::new(),
            confinement: None,
        }
    }

    fn next_batch(&mut self, _: Duration, out: &mut Vec<Event>) -> anyhow::Result<SourceState> {
        Ok(match &mut self.inputs {
            Inputs::Records(turns) => {
                let records = turns.next_batch();
                let ended = records.is_empty();
                out.extend(records.into_iter().map(Event::Record));
                if ended { SourceState::End } else { SourceState::More }
            }
            Inputs::Merged(merged) => merged.next_batch(out),
        })
    }

    fn take_back(&mut self, events: &mut Vec<Event>) {
        match &mut self.inputs {
            Inputs::Records(turns) => turns.take_back(events.drain(..).filter_map(Event::into_record)),
            Inputs::Merged(merged) => merged.take_back(events),
        }
    }

    fn in_turns(&mut self, handle: Handle<'_>, then: Then<'_>) -> bool {
        match &mut self.inputs {
            Inputs::Records(turns) => {
                turns.take(handle, then);
                true
            }
            Inputs::Merged(_) => false,
        }
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
