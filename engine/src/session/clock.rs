//! Keeps the wall clock of a running session's guest with that of the host.
//!
//! A guest counts time by itself from the moment it is told. It falls behind while its VMM is
//! paused or the host is suspended, does not hear of a step of the host's clock, and under software
//! emulation counts by a frequency that was measured when its golden was built. So the engine asks
//! now and then, and tells the guest by how much to change its clock. Between these looks nothing
//! corrects the clock.

mod jumps;

use std::time::Duration;

use mayfly_guest::channel::{ChannelError, ClockOffset, GuestClock};
use mayfly_host::time_scale::scaled;
use rand::RngExt;
use tokio::task::AbortHandle;
use tracing::Instrument;

use super::state::{SessionState, StateCell};

/// When a new session is looked at first. By then a short one has ended, which has its clock from
/// its identity.
const FIRST: Duration = Duration::from_millis(500);
/// Time between two looks, give or take a sixth, so that sessions which began together are not
/// looked at together; twice as long for a clock that keeps time. In 35 s a clock whose frequency
/// is 0.1 % off, which is the most that a golden may be, is wrong by 35 ms.
const INTERVAL: Duration = Duration::from_secs(30);
/// After a measurement that is not good enough, as of a guest or host that is very busy, the next
/// look comes so soon; after each further one twice as late, up to [`INTERVAL`].
const RETRY: Duration = Duration::from_secs(2);
/// Sessions are looked at within this time after a jump of the host's clock.
const SPREAD: Duration = Duration::from_millis(500);
/// Bound on one exchange with the guest.
const LIMIT: Duration = Duration::from_secs(5);
/// Measurements of one look, of which the best counts.
const MEASUREMENTS: usize = 4;
/// A measurement with an error of at most this is good enough not to take another: each costs some
/// milliseconds of a processor under software emulation.
const GOOD: Duration = Duration::from_millis(3);
/// One with more than this is not good enough.
const POOR: Duration = Duration::from_millis(10);
/// How far behind a clock may be, in nanoseconds. It is stepped, since a guest that sleeps cannot be
/// slewed, and a step forward harms nobody.
const BEHIND: i64 = 2_000_000;
/// How far ahead a clock may be, in nanoseconds: it goes back for more only.
const AHEAD: i64 = 10_000_000;
/// A clock that was off by no more than this, in nanoseconds, is looked at half as often.
const STEADY: u64 = 5_000_000;

/// Keeps the clock until it is dropped.
#[derive(Debug)]
pub(super) struct ClockKeeper(AbortHandle);

impl Drop for ClockKeeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ClockKeeper {
    pub fn start(clock: GuestClock, state: StateCell) -> Self {
        Self(tokio::spawn(keep(clock, state).in_current_span()).abort_handle())
    }
}

async fn keep(clock: GuestClock, state: StateCell) {
    let mut jumps = jumps::subscribe();
    let mut states = state.subscribe();
    let mut retry = RETRY;
    let mut wait = FIRST;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            Ok(()) = jumps.changed() => tokio::time::sleep(random_part(SPREAD)).await,
            // While it was paused its clock stood still.
            Ok(()) = states.changed() => {
                if *states.borrow_and_update() != SessionState::Running {
                    continue;
                }
            }
        }
        if state.get() != SessionState::Running {
            wait = INTERVAL;
            continue;
        }
        let looked = tokio::time::timeout(scaled(LIMIT), look(&clock)).await;
        wait = match looked {
            Ok(Ok(offset)) if offset.error <= POOR => {
                retry = RETRY;
                let interval = interval(offset);
                interval * 5 / 6 + random_part(interval / 3)
            }
            // The session is about to end.
            Ok(Err(ChannelError::Closed { .. } | ChannelError::Protocol { .. })) => return,
            other => {
                tracing::debug!(?other, "the guest's clock could not be measured well");
                let wait = retry;
                retry = (retry * 2).min(INTERVAL);
                wait
            }
        };
    }
}

/// The time until the next look after one that found the clock `offset` off.
fn interval(offset: ClockOffset) -> Duration {
    let is_steady = offset.nanoseconds.unsigned_abs() <= STEADY;
    if is_steady { 2 * INTERVAL } else { INTERVAL }
}

fn random_part(of: Duration) -> Duration {
    of.mul_f64(rand::rng().random())
}

/// Measures the guest's clock, and has it corrected when it is off for sure. Returns what was
/// measured.
async fn look(clock: &GuestClock) -> Result<ClockOffset, ChannelError> {
    let mut best = clock.offset().await?;
    for _ in 1..MEASUREMENTS {
        if best.error <= GOOD {
            break;
        }
        let next = clock.offset().await?;
        if next.error < best.error {
            best = next;
        }
    }
    if let Some(correction) = correction(best) {
        clock.adjust(correction).await?;
        tracing::debug!(correction, error = ?best.error, "the guest's clock was corrected");
    }
    Ok(best)
}

/// By how many nanoseconds a clock is to be changed; `None` where it may be right.
fn correction(measured: ClockOffset) -> Option<i64> {
    let ClockOffset { nanoseconds, error } = measured;
    let is_off = !(-BEHIND..=AHEAD).contains(&nanoseconds)
        && u128::from(nanoseconds.unsigned_abs()) > error.as_nanos();
    is_off.then(|| nanoseconds.saturating_neg())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_keeps_time_is_looked_at_half_as_often() {
        let after = |nanoseconds| interval(ClockOffset { nanoseconds, error: Duration::ZERO });
        assert_eq!((after(-4_000_000), after(6_000_000)), (2 * INTERVAL, INTERVAL));
        assert_eq!(after(i64::MIN), INTERVAL);
    }

    #[test]
    fn a_clock_is_corrected_only_when_it_is_off_for_sure() {
        let measured = |nanoseconds, micros| {
            correction(ClockOffset { nanoseconds, error: Duration::from_micros(micros) })
        };
        assert_eq!(measured(-5_000_000, 900), Some(5_000_000));
        assert_eq!(measured(11_000_000, 900), Some(-11_000_000));
        assert_eq!(measured(9_000_000, 900), None, "it does not go back for little");
        assert_eq!(measured(-5_000_000_000, 900), Some(5_000_000_000));
        assert_eq!(measured(-5_000_000, 6_000), None);
        assert_eq!(measured(-1_900_000, 1), None);
        assert_eq!(measured(i64::MIN, 1), Some(i64::MAX));
        assert_eq!(measured(0, 0), None);
    }
}
