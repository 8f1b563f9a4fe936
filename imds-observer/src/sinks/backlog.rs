//! Items that wait for a writer, up to a count and a size in bytes: those of a lower rank are dropped for others, the oldest first.

use std::collections::VecDeque;

use super::Item;
use crate::record::Kind;

/// How long a kind of record is kept: 0 goes first.
const RANKS: usize = 3;

fn rank(kind: Kind) -> usize {
    match kind {
        Kind::Exchange => 0,
        Kind::Connect | Kind::Drop | Kind::Summary => 1,
        Kind::Finding | Kind::Loss | Kind::Start => 2,
    }
}

pub(super) struct Backlog<I> {
    waiting: VecDeque<I>,
    /// Bytes of the waiting items.
    bytes: usize,
    /// How many of them are of each rank.
    ranks: [usize; RANKS],
    limit: usize,
    limit_bytes: usize,
}

impl<I: Item> Backlog<I> {
    pub(super) fn new(limit: usize, limit_bytes: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            bytes: 0,
            ranks: [0; RANKS],
            limit,
            limit_bytes,
        }
    }

    pub(super) fn limit_bytes(&mut self, bytes: usize) {
        self.limit_bytes = bytes;
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns the number of items that are dropped, which may include this one.
    pub(super) fn push(&mut self, item: I) -> u64 {
        let mut dropped = 0;
        // One at a time, but several small items may have to go for a large one.
        while self.waiting.len() >= self.limit || self.bytes + item.bytes() > self.limit_bytes {
            dropped += 1;
            if !self.drop_below(rank(item.kind())) {
                return dropped;
            }
        }
        self.ranks[rank(item.kind())] += 1;
        self.bytes += item.bytes();
        self.waiting.push_back(item);
        dropped
    }

    /// Drops the oldest item of the lowest rank, if that is below `than`.
    fn drop_below(&mut self, than: usize) -> bool {
        let Some(lowest) = self.ranks[..than].iter().position(|count| *count > 0) else {
            return false;
        };
        let oldest = self.waiting.iter().position(|item| rank(item.kind()) == lowest);
        let Some(gone) = oldest.and_then(|at| self.waiting.remove(at)) else {
            return false;
        };
        self.ranks[lowest] -= 1;
        self.bytes -= gone.bytes();
        true
    }

    /// Moves the oldest `most` items to `batch`.
    pub(super) fn take(&mut self, most: usize, batch: &mut Vec<I>) {
        let count = self.waiting.len().min(most);
        for item in self.waiting.drain(..count) {
            self.ranks[rank(item.kind())] -= 1;
            self.bytes -= item.bytes();
            batch.push(item);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::record::Record;

    /// An item of a kind, with its size in bytes.
    #[derive(Debug, PartialEq)]
    struct Sized(Kind, usize);

    impl Item for Sized {
        fn of(record: &Arc<Record>) -> Self {
            Self(record.body.kind(), 1)
        }

        fn kind(&self) -> Kind {
            self.0
        }

        fn bytes(&self) -> usize {
            self.1
        }
    }

    #[test]
    fn lower_ranks_are_dropped_first_and_equal_ones_never() {
        let mut backlog = Backlog::new(2, usize::MAX);
        assert_eq!(backlog.push(Sized(Kind::Drop, 1)), 0);
        assert_eq!(backlog.push(Sized(Kind::Exchange, 1)), 0);
        assert_eq!(backlog.push(Sized(Kind::Exchange, 2)), 1, "itself");
        assert_eq!(backlog.push(Sized(Kind::Finding, 1)), 1, "the exchange");
        assert_eq!(backlog.push(Sized(Kind::Loss, 1)), 1, "the drop");
        assert_eq!(backlog.push(Sized(Kind::Start, 1)), 1, "itself");
        let mut batch = Vec::new();
        backlog.take(9, &mut batch);
        assert_eq!(batch, [Sized(Kind::Finding, 1), Sized(Kind::Loss, 1)]);
        assert!(backlog.is_empty());
    }

    #[test]
    fn bytes_are_bounded_whatever_the_count() {
        let mut backlog = Backlog::new(usize::MAX, 10);
        for _ in 0..3 {
            assert_eq!(backlog.push(Sized(Kind::Exchange, 3)), 0);
        }
        assert_eq!(backlog.push(Sized(Kind::Exchange, 3)), 1);
        assert_eq!(
            backlog.push(Sized(Kind::Finding, 7)),
            2,
            "two small ones for a large one"
        );
        assert_eq!((backlog.len(), backlog.bytes), (2, 10));
        let mut batch = Vec::new();
        backlog.take(1, &mut batch);
        assert_eq!((batch.len(), backlog.len(), backlog.bytes), (1, 1, 7));
    }
}
