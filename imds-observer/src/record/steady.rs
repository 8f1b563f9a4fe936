//! A wall clock that doesn't leap. A step forwards would time out all requests that wait for their response, a step backwards would put new events
//! before old ones.
//!
//! While observing, a [`Time`] is the boot-time clock plus a number. Small differences from the wall clock change that number in steps too small to
//! judge by. A larger one is a step of the wall clock: it changes no `Time`, only how each is written from then on ([`written_ns`]). Thus time is
//! continuous in everything that judges, and records have the wall clock's time.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::Time;

/// Largest change of the number at one look at the wall clock.
const SLEW_NS: u64 = 1_000_000;
/// A larger difference is a step: slewing would take more than eight minutes.
const STEP_NS: u64 = 500_000_000;

/// Continuous time minus boot-time clock; 0: not observing.
static OFFSET: AtomicU64 = AtomicU64::new(0);
/// All steps together: written time minus continuous time.
static STEPPED: AtomicI64 = AtomicI64::new(0);

/// Result of comparing the clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// Continuous time minus boot-time clock, from now on.
    pub(crate) offset_ns: u64,
    /// Nanoseconds by which the wall clock was stepped since the last look, and that [`step`] has not been called with yet.
    pub(crate) stepped_ns: Option<i64>,
}

/// From now on [`Time::now`] follows the boot-time clock. Nanoseconds between both clocks.
pub(crate) fn begin() -> u64 {
    if let Some(boot) = boot_ns() {
        STEPPED.store(0, Ordering::Relaxed);
        OFFSET.store(Time::wall().since(Time(boot)), Ordering::Relaxed);
    }
    OFFSET.load(Ordering::Relaxed)
}

/// Looks at the wall clock again.
pub(crate) fn follow() -> Look {
    let offset = OFFSET.load(Ordering::Relaxed);
    let Some(boot) = boot_ns().filter(|_| offset != 0) else {
        return Look {
            offset_ns: offset,
            stepped_ns: None,
        };
    };
    let look = look(offset, stepped_ns(), Time::wall().since(Time(boot)));
    OFFSET.store(look.offset_ns, Ordering::Relaxed);
    look
}

/// From now on times are written with this step as well.
pub(crate) fn step(by_ns: i64) {
    STEPPED.store(stepped_ns().saturating_add(by_ns), Ordering::Relaxed);
}

/// All steps together.
pub(crate) fn stepped_ns() -> i64 {
    STEPPED.load(Ordering::Relaxed)
}

/// Nanoseconds since the Unix epoch, by the wall clock as it is set now.
pub(super) fn written_ns(time: Time) -> u64 {
    time.0.saturating_add_signed(stepped_ns())
}

/// `None`: not observing.
pub(super) fn now() -> Option<Time> {
    let offset = OFFSET.load(Ordering::Relaxed);
    (offset != 0)
        .then(boot_ns)?
        .map(|boot| Time(boot.saturating_add(offset)))
}

/// `wanted`: wall clock minus boot-time clock.
fn look(offset: u64, stepped: i64, wanted: u64) -> Look {
    let continuous = wanted.saturating_add_signed(stepped.saturating_neg());
    let ahead = continuous.wrapping_sub(offset).cast_signed();
    if ahead.unsigned_abs() >= STEP_NS {
        return Look {
            offset_ns: offset,
            stepped_ns: Some(ahead),
        };
    }
    Look {
        offset_ns: continuous.clamp(offset.saturating_sub(SLEW_NS), offset.saturating_add(SLEW_NS)),
        stepped_ns: None,
    }
}

fn boot_ns() -> Option<u64> {
    let boot = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).ok()?;
    Some(std::time::Duration::from(boot).as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFSET: u64 = 1_700_000_000_000_000_000;
    const HOUR: i64 = 3_600_000_000_000;

    fn slewed(offset_ns: u64) -> Look {
        Look {
            offset_ns,
            stepped_ns: None,
        }
    }

    #[test]
    fn a_small_difference_is_followed_slowly() {
        assert_eq!(look(OFFSET, 0, OFFSET + 7), slewed(OFFSET + 7));
        assert_eq!(look(OFFSET, 0, OFFSET - 10), slewed(OFFSET - 10));
        assert_eq!(look(OFFSET, 0, OFFSET + STEP_NS - 1), slewed(OFFSET + SLEW_NS));
        assert_eq!(look(OFFSET, 0, OFFSET - STEP_NS + 1), slewed(OFFSET - SLEW_NS));
    }

    #[test]
    fn a_step_moves_no_time_that_judges() {
        for step in [HOUR, -HOUR, STEP_NS as i64, -(STEP_NS as i64)] {
            let wanted = OFFSET.saturating_add_signed(step);
            let found = look(OFFSET, 0, wanted);
            assert_eq!(found.offset_ns, OFFSET);
            assert_eq!(found.stepped_ns, Some(step));
            // Once it is written, it is no step any more, and small differences are followed again.
            assert_eq!(look(OFFSET, step, wanted), slewed(OFFSET));
            assert_eq!(look(OFFSET, step, wanted + 7), slewed(OFFSET + 7));
        }
    }

    #[test]
    fn a_clock_of_1970_that_is_set_is_a_step() {
        let step = OFFSET as i64 - 5;
        assert_eq!(look(5, 0, OFFSET).stepped_ns, Some(step));
        assert_eq!(look(5, step, OFFSET), slewed(5));
        assert_eq!(look(OFFSET, 0, 5).stepped_ns, Some(-step));
    }
}
