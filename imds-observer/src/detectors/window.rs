//! Counts over a sliding time, in constant space and whatever order the times come in.

use arrayvec::ArrayVec;

use crate::record::Time;

/// Occurrences in the last `N` bins of `WIDTH_NS` each. What is older than that is forgotten, also if it comes late.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bins<const N: usize, const WIDTH_NS: u64> {
    /// Number of the newest bin since the epoch.
    newest: u64,
    counts: [u32; N],
    /// Sum of all counts.
    sum: u64,
}

impl<const N: usize, const WIDTH_NS: u64> Bins<N, WIDTH_NS> {
    pub(super) fn new() -> Self {
        Self {
            newest: 0,
            counts: [0; N],
            sum: 0,
        }
    }

    pub(super) fn add(&mut self, time: Time, count: u32) {
        let bin = time.0 / WIDTH_NS;
        self.roll(bin);
        if self.newest - bin < N as u64 {
            let slot = &mut self.counts[(bin % N as u64) as usize];
            let before = std::mem::replace(slot, slot.saturating_add(count));
            self.sum += u64::from(*slot - before);
        }
    }

    /// Makes `bin` part of the window.
    fn roll(&mut self, bin: u64) {
        if bin <= self.newest {
            return;
        }
        if bin - self.newest >= N as u64 {
            self.counts = [0; N];
            self.sum = 0;
        } else {
            for stale in self.newest + 1..=bin {
                let gone = std::mem::take(&mut self.counts[(stale % N as u64) as usize]);
                self.sum -= u64::from(gone);
            }
        }
        self.newest = bin;
    }

    /// In all bins, as of `now`.
    pub(super) fn total(&mut self, now: Time) -> u64 {
        self.roll(now.0 / WIDTH_NS);
        self.sum
    }

    /// In all bins, as of the newest time.
    pub(super) fn sum(&self) -> u64 {
        self.sum
    }

    /// In the newest `bins` bins, and in the emptiest of the parts of `part` bins that these fall into.
    pub(super) fn newest(&self, bins: usize, part: usize) -> (u64, u64) {
        let (mut all, mut least, mut in_part) = (0, u64::MAX, 0);
        for age in 0..bins.min(N) {
            let slot = (self.newest.wrapping_sub(age as u64) % N as u64) as usize;
            in_part += u64::from(self.counts[slot]);
            if (age + 1) % part.max(1) == 0 {
                all += in_part;
                least = least.min(in_part);
                in_part = 0;
            }
        }
        (all + in_part, least)
    }
}

/// The same with the time of the oldest occurrence that is counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dated<const N: usize, const WIDTH_NS: u64> {
    bins: Bins<N, WIDTH_NS>,
    /// Time of the first count in each non-empty bin.
    firsts: [Time; N],
}

impl<const N: usize, const WIDTH_NS: u64> Dated<N, WIDTH_NS> {
    pub(super) fn new() -> Self {
        Self {
            bins: Bins::new(),
            firsts: [Time(0); N],
        }
    }

    pub(super) fn add(&mut self, time: Time) {
        let slot = (time.0 / WIDTH_NS % N as u64) as usize;
        self.bins.roll(time.0 / WIDTH_NS);
        let empty = self.bins.counts[slot] == 0;
        let before = self.bins.sum;
        self.bins.add(time, 1);
        if self.bins.sum > before {
            let first = &mut self.firsts[slot];
            *first = if empty { time } else { time.min(*first) };
        }
    }

    /// How many there were in the newest `bins` bins, and when the first of them was.
    pub(super) fn newest(&self, bins: usize) -> (u64, Option<Time>) {
        let (mut all, mut first) = (0, None);
        for age in 0..bins.min(N) {
            let slot = (self.bins.newest.wrapping_sub(age as u64) % N as u64) as usize;
            if self.bins.counts[slot] > 0 {
                all += u64::from(self.bins.counts[slot]);
                first = Some(self.firsts[slot]);
            }
        }
        (all, first)
    }
}

/// Occurrences without a long pause.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    first: Time,
    last: Time,
    count: u64,
}

impl Run {
    pub(super) fn new() -> Self {
        Self {
            first: Time(0),
            last: Time(0),
            count: 0,
        }
    }

    /// A pause longer than `pause_ns` ends the run before it.
    pub(super) fn add(&mut self, time: Time, pause_ns: u64) {
        if self.count == 0 || time.since(self.last) > pause_ns {
            *self = Self {
                first: time,
                last: time,
                count: 1,
            };
            return;
        }
        // A late observation belongs to the window unless it is much older.
        if self.first.since(time) <= pause_ns {
            self.first = self.first.min(time);
            self.last = self.last.max(time);
            self.count += 1;
        }
    }

    /// The beginning and the count of what a rule rests on that found `count` occurrences from `first` on: of the whole run, if it began earlier.
    pub(super) fn widen(&self, first: Time, count: u64) -> (Time, u64) {
        if self.first <= first {
            (self.first, count.max(self.count))
        } else {
            (first, count)
        }
    }
}

/// The last `N` times, in milliseconds since a base that fits any run of 49 days; a later one moves the base.
#[derive(Clone, Debug)]
pub(super) struct Recent<const N: usize> {
    base: Time,
    /// Sorted, oldest first.
    times: ArrayVec<u32, N>,
}

impl<const N: usize> Recent<N> {
    pub(super) fn new() -> Self {
        Self {
            base: Time(0),
            times: ArrayVec::new(),
        }
    }

    pub(super) fn add(&mut self, time: Time) {
        let offset_ms = |base: Time| u32::try_from(time.since(base) / 1_000_000);
        let offset = match offset_ms(self.base) {
            Ok(offset) if !self.times.is_empty() => offset,
            _ => {
                self.times.clear();
                // Room for what comes late.
                self.base = time.minus_ns(3600 * crate::record::SECOND);
                offset_ms(self.base).unwrap_or(0)
            }
        };
        let position = if self.times.last().is_none_or(|last| *last <= offset) {
            self.times.len()
        } else {
            self.times.partition_point(|earlier| *earlier <= offset)
        };
        if self.times.len() == N {
            if position == 0 {
                return;
            }
            self.times.remove(0);
            self.times.insert(position - 1, offset);
        } else {
            self.times.insert(position, offset);
        }
    }

    /// The oldest, up to a millisecond before it.
    pub(super) fn oldest(&self) -> Option<Time> {
        let oldest = self.times.first()?;
        Some(self.base.plus_ns(u64::from(*oldest) * 1_000_000))
    }

    /// From the oldest to the newest, once there are `N`.
    pub(super) fn span_ms(&self) -> Option<u32> {
        (self.times.len() == N).then(|| self.times[N - 1] - self.times[0])
    }

    fn gaps_ms(&self) -> impl Iterator<Item = u32> {
        self.times.windows(2).map(|pair| pair[1] - pair[0])
    }

    /// Whether [`Self::median_gap_ms`] is below `ms`, which takes less than working it out.
    pub(super) fn median_gap_is_below(&self, ms: u32) -> bool {
        self.gaps_ms().filter(|gap| *gap < ms).count() > self.times.len().saturating_sub(1) / 2
    }

    /// Between neighbors; 0 if there are fewer than two.
    pub(super) fn median_gap_ms(&self) -> u32 {
        let mut gaps: ArrayVec<u32, N> = self.gaps_ms().collect();
        if gaps.is_empty() {
            return 0;
        }
        let middle = gaps.len() / 2;
        *gaps.select_nth_unstable(middle).1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::SECOND;

    fn at(seconds: u64) -> Time {
        Time(1_700_000_000 * SECOND + seconds * SECOND)
    }

    #[test]
    fn bins_forget_what_is_old_and_take_what_is_late() {
        let mut bins = Bins::<6, { 10 * SECOND }>::new();
        bins.add(at(0), 1);
        bins.add(at(30), 1);
        bins.add(at(12), 1);
        assert_eq!(bins.total(at(35)), 3);
        assert_eq!(bins.total(at(65)), 2);
        assert_eq!(bins.total(at(1000)), 0);
        bins.add(at(5), 1);
        assert_eq!(bins.total(at(1000)), 0);
    }

    #[test]
    fn dated_bins_know_the_oldest_that_counts() {
        let mut bins = Dated::<6, { 10 * SECOND }>::new();
        for seconds in [5, 3, 12, 31] {
            bins.add(at(seconds));
        }
        assert_eq!(bins.newest(6), (4, Some(at(3))));
        assert_eq!(bins.newest(1), (1, Some(at(31))));
        bins.add(at(64));
        assert_eq!(bins.newest(6), (3, Some(at(12))));
        bins.add(at(1));
        assert_eq!(bins.newest(6), (3, Some(at(12))), "too late to count");
    }

    #[test]
    fn a_run_ends_with_a_pause() {
        let mut run = Run::new();
        for seconds in [0, 10, 11, 12] {
            run.add(at(seconds), 2 * SECOND);
        }
        assert_eq!(run.widen(at(11), 2), (at(10), 3));
        assert_eq!(
            run.widen(at(9), 5),
            (at(9), 5),
            "the rule looks further back than the run"
        );
    }

    #[test]
    fn recent_sorts_what_comes_late() {
        let mut recent = Recent::<3>::new();
        for seconds in [10, 30, 20, 0] {
            recent.add(at(seconds));
        }
        assert_eq!(recent.span_ms(), Some(20_000));
        assert_eq!(recent.median_gap_ms(), 10_000);
        recent.add(at(40));
        assert_eq!(recent.span_ms(), Some(20_000));
    }

    proptest! {
        #[test]
        fn below_is_what_the_median_says(seconds in proptest::collection::vec(0..40_u64, 2..12), ms in 0..12_000_u32) {
            let mut recent = Recent::<8>::new();
            for seconds in seconds {
                recent.add(at(seconds));
            }
            prop_assert_eq!(recent.median_gap_is_below(ms), recent.median_gap_ms() < ms);
        }
    }
}
