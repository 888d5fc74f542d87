//! Jumps of the host's wall clock: it was set, or the host was suspended meanwhile.

use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::sync::watch;

/// In the year 2223.
const NEVER: TimeSpec = TimeSpec::new(8_000_000_000, 0);
/// Pause after a failed wait, so that one that always fails keeps nobody busy.
const PAUSE: Duration = Duration::from_secs(60);

/// Returns a receiver that changes at each jump from now on; never where the kernel does not tell.
///
/// One thread of the process waits for a timer that never expires and that the kernel cancels at a
/// jump (`TFD_TIMER_CANCEL_ON_SET` in timerfd_create(2)); it does nothing between jumps.
pub(super) fn subscribe() -> watch::Receiver<u64> {
    static JUMPS: OnceLock<watch::Sender<u64>> = OnceLock::new();
    JUMPS.get_or_init(start).subscribe()
}

fn start() -> watch::Sender<u64> {
    let sender = watch::Sender::new(0);
    let of_thread = sender.clone();
    let spawned = thread::Builder::new().name("clock-jumps".to_owned()).spawn(move || {
        loop {
            match wait() {
                Ok(()) => of_thread.send_modify(|jumps| *jumps += 1),
                Err(error) => {
                    tracing::warn!(%error, "cannot watch this host's clock; sessions follow a jump of it within 70 s");
                    thread::sleep(PAUSE);
                }
            }
        }
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread could be started; sessions follow a jump of this host's clock within 70 s");
    }
    sender
}

/// Waits for the next jump.
fn wait() -> nix::Result<()> {
    let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC)?;
    let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
    timer.set(Expiration::OneShot(NEVER), flags)?;
    // Also returns when it is cancelled.
    timer.wait()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_hears_of_a_jump_that_there_is_not() {
        let (first, second) = (subscribe(), subscribe());
        assert!(!first.has_changed().unwrap() && !second.has_changed().unwrap());
    }
}
