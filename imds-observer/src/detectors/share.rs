//! Which part of a client's requests shows a fault: one lost packet of thousands is no cause for an alarm.

use std::collections::VecDeque;

use crate::record::Time;

/// Occurrences that are remembered: the share is that of the newest.
const REMEMBERED: usize = 8;
/// An occurrence before that belongs to another incident.
const RECENT_NS: u64 = 900 * crate::record::SECOND;

/// The newest occurrences of one client.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// When, and how many requests the client had made by then.
    newest: VecDeque<(Time, u64)>,
}

/// How often, of how many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Recent {
    pub(super) occurrences: u64,
    /// Requests since the first of them, the first one included.
    pub(super) of: u64,
    /// When the first of them was.
    pub(super) since: Time,
}

impl Recent {
    /// Too many for a coincidence.
    pub(super) fn is_pattern(self) -> bool {
        self.occurrences >= 3 || self.occurrences == 2 && self.of == 2
    }

    /// A part that the client can't work around.
    pub(super) fn is_large(self) -> bool {
        self.occurrences >= 3 && self.occurrences * 4 >= self.of
    }
}

impl Share {
    /// One more, when the client has made so many requests.
    pub(super) fn add(&mut self, time: Time, requests: u64) -> Recent {
        self.newest.retain(|(before, _)| time.since(*before) <= RECENT_NS);
        if self.newest.len() == REMEMBERED {
            self.newest.pop_front();
        }
        self.newest.push_back((time, requests));
        let (since, first) = self.newest.front().copied().unwrap_or((time, requests));
        let occurrences = self.newest.len() as u64;
        Recent {
            occurrences,
            of: (requests.saturating_sub(first) + 1).max(occurrences),
            since,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time(1_000_000_000_000 + seconds * crate::record::SECOND)
    }

    #[test]
    fn the_share_is_of_the_requests_since_the_first_occurrence() {
        let mut share = Share::default();
        assert!(!share.add(at(0), 500).is_pattern());
        assert!(share.add(at(1), 501).is_pattern());
        let third = share.add(at(2), 600);
        assert_eq!((third.occurrences, third.of, third.since), (3, 101, at(0)));
        assert!(third.is_pattern() && !third.is_large());
    }

    #[test]
    fn all_requests_are_a_large_share_and_what_is_long_ago_does_not_count() {
        let mut share = Share::default();
        for n in 0..20 {
            assert_eq!(share.add(at(n), n).is_large(), n >= 2, "{n}");
        }
        assert_eq!(share.add(at(5000), 21).occurrences, 1);
    }
}
