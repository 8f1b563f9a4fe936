//! Events per second over the last minute, in event time.

use crate::record::{SECOND, Time};

/// Seconds that are kept.
const SECONDS: usize = 60;
/// Seconds that the rate is the mean of.
const WINDOW: u64 = 10;

/// One counter a second; older seconds fall out.
#[derive(Clone, Debug)]
pub struct Rate {
    counts: [u32; SECONDS],
    /// Newest second that is counted, since 1970.
    newest: u64,
    first: Option<u64>,
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            counts: [0; SECONDS],
            newest: 0,
            first: None,
        }
    }
}

impl Rate {
    pub fn add(&mut self, time: Time) {
        let second = time.0 / SECOND;
        if second > self.newest {
            let gone = (second - self.newest).min(SECONDS as u64);
            for late in 0..gone {
                self.counts[((second - late) % SECONDS as u64) as usize] = 0;
            }
            self.newest = second;
        }
        self.first = Some(self.first.map_or(second, |first| first.min(second)));
        if self.newest - second < SECONDS as u64 {
            let count = &mut self.counts[(second % SECONDS as u64) as usize];
            *count = count.saturating_add(1);
        }
    }

    fn at(&self, second: u64) -> u64 {
        let known = second <= self.newest && self.newest - second < SECONDS as u64;
        if known {
            u64::from(self.counts[(second % SECONDS as u64) as usize])
        } else {
            0
        }
    }

    /// Mean of the last 10 s, or of the time since the first event if that is less.
    pub fn per_s(&self, now: Time) -> f64 {
        let Some(first) = self.first else {
            return 0.0;
        };
        let second = now.0 / SECOND;
        let window = (second.saturating_sub(first) + 1).min(WINDOW);
        let count: u64 = (0..window).map(|back| self.at(second.saturating_sub(back))).sum();
        count as f64 / window as f64
    }

    /// Counts of the last seconds, oldest first.
    pub fn last(&self, now: Time, seconds: usize) -> Vec<u64> {
        let second = now.0 / SECOND;
        (0..seconds.min(SECONDS) as u64)
            .rev()
            .map(|back| self.at(second.saturating_sub(back)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time(seconds * SECOND)
    }

    #[test]
    fn a_burst_is_seen_and_forgotten() {
        let mut rate = Rate::default();
        for _ in 0..30 {
            rate.add(at(1000));
        }
        assert!((rate.per_s(at(1000)) - 30.0).abs() < 1e-9);
        assert!((rate.per_s(at(1004)) - 6.0).abs() < 1e-9);
        assert!((rate.per_s(at(1009)) - 3.0).abs() < 1e-9);
        assert!(rate.per_s(at(1010)).abs() < 1e-9);
        assert_eq!(rate.last(at(1001), 3), [0, 30, 0]);
    }

    #[test]
    fn late_and_far_events_do_no_harm() {
        let mut rate = Rate::default();
        rate.add(at(1000));
        rate.add(at(990));
        rate.add(at(1));
        assert_eq!(rate.last(at(1000), 60).iter().sum::<u64>(), 2);
        rate.add(Time(u64::MAX));
        assert_eq!(rate.last(Time(u64::MAX), 60).iter().sum::<u64>(), 1);
        assert!(rate.per_s(at(0)) >= 0.0);
    }
}
