//! Whose turn it is among files that are merged by time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::record::Time;

/// A file's clock never runs backwards, regardless of its records: their order within a file is kept.
pub(super) struct Order {
    clocks: Vec<Time>,
    waiting: BinaryHeap<Reverse<(Time, usize)>>,
}

impl Order {
    pub(super) fn new(files: usize) -> Self {
        Self {
            clocks: vec![Time::default(); files],
            waiting: BinaryHeap::new(),
        }
    }

    /// The next of this file is of that time.
    pub(super) fn push(&mut self, file: usize, time: Time) {
        let clock = self.follow(file, time);
        self.waiting.push(Reverse((clock, file)));
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
    pub(super) fn is_next(&mut self, file: usize, time: Time) -> bool {
        let clock = self.follow(file, time);
        self.waiting.peek().is_none_or(|Reverse(first)| (clock, file) < *first)
    }

    fn follow(&mut self, file: usize, time: Time) -> Time {
        let clock = &mut self.clocks[file];
        *clock = time.max(*clock);
        *clock
    }
}
