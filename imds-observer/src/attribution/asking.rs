//! When to ask the worker, when to ask again, and how long a record waits for it.

use std::time::Duration;

use crate::record::Time;

/// After a question that found nothing: a log tree may appear a second after its container.
const FIRST_RETRY_NS: u64 = 50_000_000;
/// A container that has no names anywhere is asked for this rarely.
const LAST_RETRY_NS: u64 = 60_000_000_000;

/// One question's state.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// When the answer was first needed; waiting starts here.
    needed: Option<Time>,
    outstanding: bool,
    tries: u32,
    next: Time,
}

impl Asking {
    /// Whether to ask now. The clock may have been set back: then yes.
    pub(super) fn is_due(&self, now: Time) -> bool {
        !self.outstanding && (now >= self.next || self.next.since(now) > LAST_RETRY_NS)
    }

    /// `accepted`: whether the queue took it.
    pub(super) fn asked(&mut self, accepted: bool) {
        self.outstanding = accepted;
    }

    /// The answer was that nothing is there yet.
    pub(super) fn found_nothing(&mut self, now: Time) {
        self.outstanding = false;
        let wait = FIRST_RETRY_NS.saturating_shl(self.tries).min(LAST_RETRY_NS);
        self.next = now.plus_ns(wait);
        self.tries += 1;
    }

    /// Whether a record that needs the answer should still wait for it.
    pub(super) fn is_worth_waiting(&mut self, now: Time, patience: Duration) -> bool {
        let needed = *self.needed.get_or_insert(now);
        still_within(needed, now, patience)
    }
}

/// Less than `patience` after `since`; not if the clock was set back.
pub(super) fn still_within(since: Time, now: Time, patience: Duration) -> bool {
    now >= since && now.since(since) < patience.as_nanos() as u64
}

trait SaturatingShift {
    fn saturating_shl(self, by: u32) -> Self;
}

impl SaturatingShift for u64 {
    fn saturating_shl(self, by: u32) -> Self {
        self.saturating_mul(1_u64.checked_shl(by).unwrap_or(Self::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_get_rarer_and_waiting_ends() {
        let patience = Duration::from_millis(200);
        let mut asking = Asking::default();
        let mut now = Time(1_000_000_000_000);
        assert!(asking.is_due(now) && asking.is_worth_waiting(now, patience));
        asking.asked(true);
        assert!(!asking.is_due(now), "one at a time");
        for wait_ms in [50, 100, 200, 400] {
            asking.found_nothing(now);
            assert!(!asking.is_due(now.plus_ns((wait_ms - 1) * 1_000_000)));
            now = now.plus_ns(wait_ms * 1_000_000);
            assert!(asking.is_due(now));
        }
        assert!(!asking.is_worth_waiting(now, patience));
        for _ in 0..100 {
            asking.found_nothing(now);
        }
        assert!(asking.is_due(now.plus_ns(LAST_RETRY_NS)));
        // A refused question is asked again at once.
        let mut refused = Asking::default();
        refused.asked(false);
        assert!(refused.is_due(now));
        // An hour back.
        assert!(asking.is_due(now.minus_ns(3_600_000_000_000)));
        assert!(!still_within(now, now.minus_ns(1), patience));
    }
}
