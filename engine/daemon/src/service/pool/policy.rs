//! Pool policy: how many standbys to keep, as pure functions of what was observed.
//!
//! While a replacement is made, `m = rate x time to make one` requests come on average. The time is
//! taken twice, because several replacements are made at once and slow each other down. Requests
//! come at random: with arrivals as a Poisson process, `m + 3 sqrt(m)` is exceeded about once in a
//! thousand times. The rate is an average that fades over half a minute, so that a pool grows with
//! the first seconds of a rush and shrinks some minutes after it.

use std::time::Duration;

/// Time constant of the observed rate of requests.
pub(super) const RATE_CONSTANT: Duration = Duration::from_secs(30);
/// What the making of a standby is taken for before one was made.
pub(super) const MAKING_UNKNOWN: Duration = Duration::from_secs(1);
/// Memory a standby is taken for before one was measured, in bytes.
pub(super) const MEMORY_UNKNOWN: u64 = 40 << 20;

/// How often the time to make a standby is taken; see above.
const LEAD: f64 = 2.0;
const DEVIATIONS: f64 = 3.0;
/// Fewer expected requests than this are none.
const NEGLIGIBLE: f64 = 0.01;

/// How many standbys to keep when `rate` requests per second come and one takes `making` to make.
/// Never less than `floor`, unless `ceiling` is, and never more than `ceiling`.
pub(super) fn target(rate: f64, making: Duration, floor: usize, ceiling: usize) -> usize {
    let expected = rate * making.as_secs_f64() * LEAD;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not a number counts as none; a float beyond usize becomes its largest value"
    )]
    let wanted = if expected > NEGLIGIBLE {
        (expected + DEVIATIONS * expected.sqrt()).ceil() as usize
    } else {
        0
    };
    wanted.max(floor).min(ceiling)
}

/// Most standbys of a pool that has `room` bytes, when each takes `each` bytes.
pub(super) fn ceiling(max_standbys: usize, room: u64, each: u64) -> usize {
    max_standbys.min(usize::try_from(room / each.max(1)).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn follows_the_demand() {
        let making = Duration::from_millis(250);
        assert_eq!(target(0.0, making, 2, 32), 2);
        // 8 per second: 4 come in twice the time, 6 more for chance.
        assert_eq!(target(8.0, making, 2, 32), 10);
        assert_eq!(target(1000.0, making, 2, 32), 32);
        // After ten minutes of rest, nothing is left of 8 per second.
        let rested = 8.0 * (-600.0 / RATE_CONSTANT.as_secs_f64()).exp();
        assert_eq!(target(rested, making, 0, 32), 0);
    }

    #[test]
    fn memory_bounds_the_ceiling() {
        assert_eq!(ceiling(32, 100 << 20, 30 << 20), 3);
        assert_eq!(ceiling(2, 100 << 20, 30 << 20), 2);
        assert_eq!(ceiling(32, 0, 0), 0);
    }

    proptest! {
        #[test]
        fn stays_within_bounds_and_never_falls_with_rising_demand(
            rate in 0.0f64..1e9, more in 0.0f64..1e9, millis in 0u64..1_000_000, floor in 0usize..50, ceiling in 0usize..50,
        ) {
            let making = Duration::from_millis(millis);
            let n = target(rate, making, floor, ceiling);
            prop_assert!(n <= ceiling && n >= floor.min(ceiling));
            prop_assert!(target(rate + more, making, floor, ceiling) >= n);
            prop_assert!(target(rate, making * 2, floor, ceiling) >= n);
        }
    }

    #[test]
    fn odd_rates_are_no_demand() {
        for rate in [f64::NAN, -1.0, f64::NEG_INFINITY] {
            assert_eq!(target(rate, Duration::from_secs(1), 1, 9), 1);
        }
        assert_eq!(target(f64::INFINITY, Duration::from_secs(1), 1, 9), 9);
    }
}
