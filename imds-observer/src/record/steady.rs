//! A wall clock that doesn't leap. A step forwards would time out all requests that wait for their response, a step backwards would put new events
//! before old ones.
//!
//! While observing, time is the boot-time clock plus a number, which follows the wall clock in steps too small to judge by.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Time;

/// Largest change of the number at one look at the wall clock.
const SLEW_NS: u64 = 5_000_000;
/// A difference that won't be made up for in hours, and is reported.
const STEP_NS: u64 = 10_000_000_000;

/// Wall clock minus boot-time clock; 0: not observing.
static OFFSET: AtomicU64 = AtomicU64::new(0);

/// From now on [`Time::now`] follows the boot-time clock. Nanoseconds between both clocks.
pub(crate) fn begin() -> u64 {
    if let Some(boot) = boot_ns() {
        OFFSET.store(Time::wall().since(Time(boot)), Ordering::Relaxed);
    }
    OFFSET.load(Ordering::Relaxed)
}

/// Looks at the wall clock again: nanoseconds between both clocks from now on, and the seconds that the wall clock is ahead if it was stepped.
pub(crate) fn follow() -> (u64, Option<i64>) {
    let used = OFFSET.load(Ordering::Relaxed);
    let Some(boot) = boot_ns().filter(|_| used != 0) else {
        return (used, None);
    };
    let wanted = Time::wall().since(Time(boot));
    let next = towards(used, wanted);
    OFFSET.store(next, Ordering::Relaxed);
    let ahead = wanted.wrapping_sub(used).cast_signed();
    (
        next,
        (used.abs_diff(wanted) >= STEP_NS).then_some(ahead / 1_000_000_000),
    )
}

/// `None`: not observing.
pub(super) fn now() -> Option<Time> {
    let offset = OFFSET.load(Ordering::Relaxed);
    (offset != 0)
        .then(boot_ns)?
        .map(|boot| Time(boot.saturating_add(offset)))
}

fn towards(used: u64, wanted: u64) -> u64 {
    wanted.clamp(used.saturating_sub(SLEW_NS), used.saturating_add(SLEW_NS))
}

fn boot_ns() -> Option<u64> {
    let boot = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).ok()?;
    Some(std::time::Duration::from(boot).as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_difference_is_followed_and_a_large_one_slowly() {
        assert_eq!(towards(1_000_000_000, 1_000_000_007), 1_000_000_007);
        assert_eq!(towards(1_000_000_000, 999_999_990), 999_999_990);
        assert_eq!(towards(1_000_000_000, 3_600_000_000_000), 1_000_000_000 + SLEW_NS);
        assert_eq!(towards(3_600_000_000_000, 1), 3_600_000_000_000 - SLEW_NS);
        assert_eq!(towards(1, 0), 0);
    }
}
