//! Whose turn it is among files that are merged by time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::record::steps::Steps;
use crate::record::{Record, Time};

/// A file's clock never runs backwards, regardless of its records: their order within a file is kept. Steps that a file reports are no time to it.
pub(super) struct Order {
    clocks: Vec<Time>,
    steps: Vec<Steps>,
    waiting: BinaryHeap<Reverse<(Time, usize)>>,
}

impl Order {
    pub(super) fn new(files: usize) -> Self {
        Self {
            clocks: vec![Time::default(); files],
            steps: (0..files).map(|_| Steps::default()).collect(),
            waiting: BinaryHeap::new(),
        }
    }

    /// The next of this file is of that time.
    pub(super) fn push(&mut self, file: usize, time: Time) {
        let clock = self.follow(file, time);
        self.waiting.push(Reverse((clock, file)));
    }

    /// The next of this file is this record.
    pub(super) fn push_record(&mut self, file: usize, record: &Record) {
        let time = self.steps[file].settled(record);
        self.push(file, time);
    }

    /// This record of the file was taken; what comes after it may be on another clock.
    pub(super) fn took(&mut self, file: usize, record: &Record) {
        self.steps[file].follow(record);
    }

    /// Whose next is the first of all.
    pub(super) fn pop(&mut self) -> Option<usize> {
        self.waiting.pop().map(|Reverse((_, file))| file)
    }

    /// No source waits, so the last one popped has no bound.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether the next of this file, which was popped, goes before all that wait.
    pub(super) fn is_next(&mut self, file: usize, record: &Record) -> bool {
        let clock = self.follow(file, self.steps[file].settled(record));
        self.waiting.peek().is_none_or(|Reverse(first)| (clock, file) < *first)
    }

    fn follow(&mut self, file: usize, time: Time) -> Time {
        let clock = &mut self.clocks[file];
        *clock = time.max(*clock);
        *clock
    }
}
