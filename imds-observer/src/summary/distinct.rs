//! How many distinct values were there? In bounded memory for each row and for all rows together.

use std::hash::{BuildHasher as _, Hash};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustc_hash::{FxBuildHasher, FxHashSet};

/// Values that each counter distinguishes whatever the others do.
const OWN: usize = 128;
/// Values that all counters may distinguish beyond, in limits of one counter.
const SHARED: usize = 32;

/// The limit of one counter, and what all counters of a table have left. Limits multiply: without a share, many rows hold more than the service
/// may.
#[derive(Clone, Debug, Default)]
pub(crate) struct Budget {
    most: usize,
    left: Arc<AtomicUsize>,
}

impl Budget {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            left: Arc::new(AtomicUsize::new(most.saturating_mul(SHARED))),
        }
    }

    fn take_one(&self) -> bool {
        let less = |left: usize| left.checked_sub(1);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }

    /// How many of them were left.
    fn take_up_to(&self, values: usize) -> usize {
        let less = |left: usize| Some(left.saturating_sub(values));
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        before.unwrap_or_default().min(values)
    }

    fn give_back(&self, values: usize) {
        self.left.fetch_add(values, Ordering::Relaxed);
    }
}

/// Counts distinct values, up to a limit.
#[derive(Debug)]
pub(super) struct Distinct {
    seen: FxHashSet<u64>,
    /// The same comes many times in a row.
    last: Option<u64>,
    /// Values that were taken from the budget.
    taken: usize,
    budget: Budget,
}

impl Distinct {
    pub(super) fn new(budget: Budget) -> Self {
        Self {
            seen: FxHashSet::default(),
            last: None,
            taken: 0,
            budget,
        }
    }

    pub(super) fn insert(&mut self, value: &(impl Hash + ?Sized)) {
        let hash = FxBuildHasher.hash_one(value);
        let count = self.seen.len();
        if self.last == Some(hash) || count >= self.budget.most || self.seen.contains(&hash) {
            return;
        }
        if count >= OWN {
            if !self.budget.take_one() {
                return;
            }
            self.taken += 1;
        }
        self.seen.insert(hash);
        self.last = Some(hash);
    }

    pub(super) fn count(&self) -> u64 {
        self.seen.len() as u64
    }

    /// Keeps the memory of its own share.
    pub(super) fn clear(&mut self) {
        self.budget.give_back(std::mem::take(&mut self.taken));
        self.seen.clear();
        self.seen.shrink_to(OWN);
        self.last = None;
    }
}

/// A copy holds as much again, and takes of it what the budget still has.
impl Clone for Distinct {
    fn clone(&self) -> Self {
        Self {
            seen: self.seen.clone(),
            last: self.last,
            taken: self.budget.take_up_to(self.taken),
            budget: self.budget.clone(),
        }
    }
}

impl Drop for Distinct {
    fn drop(&mut self) {
        self.budget.give_back(self.taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(counter: &mut Distinct, values: usize) -> u64 {
        for value in 0..values {
            counter.insert(&value);
            counter.insert(&value);
        }
        counter.count()
    }

    #[test]
    fn one_counter_stops_at_its_limit_and_counts_each_value_once() {
        let mut counter = Distinct::new(Budget::new(1_000));
        assert_eq!(fill(&mut counter, 200), 200);
        assert_eq!(fill(&mut counter, 200), 200);
        assert_eq!(fill(&mut counter, 5_000), 1_000);
    }

    #[test]
    fn many_counters_share_what_is_beyond_their_own() {
        let budget = Budget::new(1_000);
        let mut counters: Vec<Distinct> = (0..100).map(|_| Distinct::new(budget.clone())).collect();
        let total: u64 = counters.iter_mut().map(|counter| fill(counter, 5_000)).sum();
        assert_eq!(total as usize, 100 * OWN + SHARED * 1_000);
        assert!(counters.iter().all(|counter| counter.count() >= OWN as u64));
        // Cleared and dropped entries are available to others.
        counters[0].clear();
        counters.remove(1);
        let last = counters.last_mut().unwrap();
        assert_eq!(fill(last, 5_000), 1_000);
        drop(counters);
        assert_eq!(budget.left.load(Ordering::Relaxed), SHARED * 1_000);
    }

    #[test]
    fn copies_give_back_no_more_than_they_took() {
        let budget = Budget::new(1_000);
        let left = || budget.left.load(Ordering::Relaxed);
        let whole = left();
        let mut counters: Vec<Distinct> = (0..100).map(|_| Distinct::new(budget.clone())).collect();
        for counter in &mut counters {
            fill(counter, 5_000);
        }
        assert_eq!(left(), 0);
        let copies = counters.clone();
        assert_eq!(left(), 0);
        drop(copies);
        assert_eq!(left(), 0, "the budget was empty when they were made");
        let full = counters[0].count() as usize - OWN;
        drop(counters.remove(0));
        assert_eq!(left(), full);
        let mut copy = counters[0].clone();
        assert_eq!(left(), 0);
        copy.clear();
        copy.clear();
        assert_eq!(left(), full);
        drop((copy, counters));
        assert_eq!(left(), whole);
    }
}
