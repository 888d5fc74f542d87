//! The wall clock of a guest, kept right by the engine.

use crate::wire::reply;
use mayfly_protocol::{GuestError, Reply};
use nix::time::{ClockId, clock_gettime};
use std::io;
use std::time::Duration;

/// Adds `adjust_ns` to the wall clock, and reads it.
pub fn adjust(guest: bool, adjust_ns: i64) -> Reply<u64> {
    if adjust_ns != 0 {
        if !guest {
            return Err(GuestError::new("the clock is adjusted in a guest only"));
        }
        reply("adjust the clock", change(adjust_ns))?;
    }
    let now = reply("read the clock", clock_gettime(ClockId::CLOCK_REALTIME).map_err(Into::into))?;
    // A clock before 1970 has been set so by somebody in the guest.
    let now = if now.tv_sec() < 0 { Duration::ZERO } else { Duration::from(now) };
    Ok(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

/// Steps the clock (`ADJ_SETOFFSET`, clock_adjtime(2)).
///
/// It is not slewed: the kernel ends a slew when it next counts time, and a guest that sleeps counts
/// it seldom. Meanwhile its clock goes on too fast or too slowly, by up to 0.5 ms a second.
fn change(by: i64) -> io::Result<()> {
    // SAFETY: a timex is integers, for which zeros are a valid value.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    timex.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
    (timex.time.tv_sec, timex.time.tv_usec) = split(by);
    // SAFETY: the kernel reads and writes one timex.
    match unsafe { libc::clock_adjtime(libc::CLOCK_REALTIME, &raw mut timex) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Whole seconds, rounded down, and the nanoseconds above them: the kernel takes no negative ones.
fn split(nanoseconds: i64) -> (i64, i64) {
    (nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_back_has_no_negative_nanoseconds() {
        assert_eq!(split(1_500_000_000), (1, 500_000_000));
        assert_eq!(split(-1), (-1, 999_999_999));
        assert_eq!(split(-2_000_000_000), (-2, 0));
        for by in [i64::MIN, i64::MAX] {
            let (seconds, nanoseconds) = split(by);
            assert_eq!(i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds), by.into());
        }
    }

    #[test]
    fn the_clock_of_a_host_is_read_and_left_alone() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let read = Duration::from_nanos(adjust(false, 0).unwrap());
        assert!(read >= now, "{read:?} {now:?}");
        adjust(false, 1).unwrap_err();
    }
}
