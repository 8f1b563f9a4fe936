//! Reads files of records on several threads, of which each handles what it has read, in turn.
//!
//! Handling has an order, so it is one after the other, and it is more than half of the work. Were it one thread's, each record would change
//! processors on its way there and again on its way back, and its texts with it, which costs as much as reading and handling together. Here
//! it is what handling remembers that changes processors, once a turn.

use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::super::input::Input;
use super::file::{File, Files, Reader};
use super::written::Callers;
use crate::record::Record;
use crate::source::traces::InputCounts;
use crate::source::{Handle, Limits, Then};

/// Bytes of a turn, about: with fewer, what handling remembers changes processors more often; with more, records leave the caches.
const TURN_BYTES: usize = 1024 * 1024;
/// More would only wait: one reads, one handles, one adds up.
const MOST_THREADS: usize = 3;

/// See the module.
pub(in crate::source) struct Turns {
    files: Files,
    turn_bytes: usize,
    /// No thread may wait for a pipe while another ends the run.
    threads: usize,
    reader: Reader,
    /// Records that were handled.
    records: u64,
}

impl Turns {
    /// Reads the first records of each.
    pub(in crate::source) fn new(inputs: Vec<Input>, limits: &Limits) -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let waits = inputs.iter().any(|input| input.waits);
        let count = inputs.len();
        let files = inputs
            .into_iter()
            .map(|input| File::new(input, count, limits.read_ahead_bytes / 2))
            .collect();
        let mut reader = Reader::new(Callers::new(limits.callers));
        Self {
            files: Files::new(files, &mut reader),
            turn_bytes: TURN_BYTES.min(limits.read_ahead_bytes / 2 / MOST_THREADS),
            threads: if waits { 1 } else { processors.min(MOST_THREADS) },
            reader,
            records: 0,
        }
    }

    /// The first record of each file that has one.
    pub(in crate::source) fn firsts(&self) -> impl Iterator<Item = &Record> + Clone {
        self.files.files().iter().filter_map(File::next).map(AsRef::as_ref)
    }

    /// But for the number of files.
    pub(in crate::source) fn counts(&self) -> InputCounts {
        let mut counts = InputCounts {
            records: self.records,
            ..InputCounts::default()
        };
        for file in self.files.files() {
            file.count_skipped(&mut counts);
        }
        counts
    }

    /// The next records without any other thread. Empty: there are no more.
    pub(in crate::source) fn next_batch(&mut self) -> Vec<Arc<Record>> {
        let mut records = Vec::new();
        self.files.read(&mut self.reader, 1, &mut records);
        self.records += records.len() as u64;
        records
    }

    pub(in crate::source) fn take_back(&mut self, records: impl Iterator<Item = Arc<Record>>) {
        self.reader.take_back(records);
    }

    /// All that there is, or until `handle` has enough.
    pub(in crate::source) fn take(&mut self, handle: Handle<'_>, then: Then<'_>) {
        let stages = Stages {
            turn_bytes: self.turn_bytes,
            reading: Mutex::new((&mut self.files, 0)),
            handling: Turn::new((&mut self.records, handle)),
            after: Mutex::new(then),
        };
        thread::scope(|scope| {
            for _ in 1..self.threads {
                let (stages, mut reader) = (&stages, self.reader.another());
                scope.spawn(move || stages.take_turns(&mut reader));
            }
            stages.take_turns(&mut self.reader);
        });
    }
}

/// Each has one batch at a time, and each batch passes all of them in order.
struct Stages<'a> {
    turn_bytes: usize,
    /// With the number of the next batch.
    reading: Mutex<(&'a mut Files, u64)>,
    /// With the number of records.
    handling: Turn<(&'a mut u64, Handle<'a>)>,
    after: Mutex<Then<'a>>,
}

impl Stages<'_> {
    fn take_turns(&self, reader: &mut Reader) {
        let _unless_it_panics = EndsInPanic(&self.handling);
        let mut records = Vec::new();
        loop {
            let number = {
                let (files, next) = &mut *lock(&self.reading);
                if !files.read(reader, self.turn_bytes, &mut records) {
                    return;
                }
                *next += 1;
                *next - 1
            };
            let Some(mut handling) = self.handling.wait_for(number) else {
                return;
            };
            let (_, (count, handle)) = &mut *handling;
            **count += records.len() as u64;
            let next = match handle(&records) {
                ControlFlow::Continue(()) => number + 1,
                ControlFlow::Break(()) => OVER,
            };
            // Locked while it is still this one's turn: the next can't be before it.
            let mut after = lock(&self.after);
            self.handling.pass(handling, next);
            after(&records);
            drop(after);
            reader.take_back(records.drain(..));
        }
    }
}

/// The shared value, and the number of the batch that may use it.
struct Turn<T> {
    held: Mutex<(u64, T)>,
    passed: Condvar,
}

/// The hand-off has ended.
const OVER: u64 = u64::MAX;

impl<T> Turn<T> {
    fn new(held: T) -> Self {
        Self {
            held: Mutex::new((0, held)),
            passed: Condvar::new(),
        }
    }

    /// `None`: there are no more turns.
    fn wait_for(&self, number: u64) -> Option<MutexGuard<'_, (u64, T)>> {
        let mut held = lock(&self.held);
        while held.0 != number {
            if held.0 == OVER {
                return None;
            }
            held = self.passed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        Some(held)
    }

    fn pass(&self, mut held: MutexGuard<'_, (u64, T)>, number: u64) {
        if held.0 != OVER {
            held.0 = number;
        }
        drop(held);
        self.passed.notify_all();
    }
}

/// Ends the hand-off if a thread panics.
struct EndsInPanic<'a, T>(&'a Turn<T>);

impl<T> Drop for EndsInPanic<'_, T> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.pass(lock(&self.0.held), OVER);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::record::{Host, LossCounts, Time};

    /// Lines of records in two files, distinguished by their times, in alternating runs of a chunk each.
    fn turns(lines: u64) -> Turns {
        let mut texts = [Vec::new(), Vec::new()];
        for time in 0..lines {
            let text = &mut texts[usize::from(time % 50 > 20)];
            let loss = Record {
                time: Time(time),
                host: Host::from("a"),
                body: LossCounts::default(),
            };
            serde_json::to_writer(&mut *text, &loss).unwrap();
            text.push(b'\n');
            if time % 100 == 50 {
                text.extend_from_slice(b"nonsense\n");
            }
        }
        let limits = Limits {
            read_ahead_bytes: 1,
            ..Limits::default()
        };
        let inputs = texts.map(|text| Input::new("t".into(), Box::new(io::Cursor::new(text))).unwrap());
        Turns::new(inputs.into(), &limits)
    }

    const COUNTS: InputCounts = InputCounts {
        files: 0,
        records: 5000,
        skipped: 50,
        broken: 50,
    };

    fn times(records: &[Arc<Record>]) -> impl Iterator<Item = u64> {
        records.iter().map(|record| record.time.0)
    }

    #[test]
    fn whoever_reads_them_both_stages_get_all_in_their_order() {
        let (mut handled, mut after, mut batches) = (Vec::new(), Vec::new(), 0);
        let mut turns = turns(5000);
        let mut handle = |records: &[Arc<Record>]| {
            batches += 1;
            handled.extend(times(records));
            ControlFlow::Continue(())
        };
        turns.take(&mut handle, &mut |records| after.extend(times(records)));
        assert!(handled.iter().copied().eq(0..5000));
        assert_eq!(handled, after);
        assert!(batches > 50, "{batches}");
        assert_eq!(turns.counts(), COUNTS);
    }

    #[test]
    fn batch_by_batch_it_is_the_same() {
        let mut turns = turns(5000);
        let mut all = Vec::new();
        loop {
            let records = turns.next_batch();
            if records.is_empty() {
                break;
            }
            all.extend(times(&records));
            turns.take_back(records.into_iter());
        }
        assert!(all.into_iter().eq(0..5000));
        assert_eq!(turns.counts(), COUNTS);
    }

    #[test]
    fn who_has_enough_gets_no_more() {
        let (mut batches, mut after) = (0, 0);
        let mut handle = |_: &[Arc<Record>]| {
            batches += 1;
            if batches < 7 {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        turns(5000).take(&mut handle, &mut |_| after += 1);
        assert_eq!((batches, after), (7, 7));
    }

    #[test]
    fn nobody_waits_for_one_that_panicked() {
        let mut batches = 0;
        let mut handle = |_: &[Arc<Record>]| {
            batches += 1;
            assert!(batches < 7, "of course");
            ControlFlow::Continue(())
        };
        let mut turns = turns(5000);
        let ended = catch_unwind(AssertUnwindSafe(|| turns.take(&mut handle, &mut |_| {})));
        assert!(ended.is_err());
        assert_eq!(batches, 7);
        let ended = catch_unwind(AssertUnwindSafe(|| {
            self::turns(5000).take(&mut |_| ControlFlow::Continue(()), &mut |records| {
                assert!(times(records).all(|time| time != 3000), "of course");
            });
        }));
        assert!(ended.is_err());
    }
}
