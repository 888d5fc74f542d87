//! Guard of what is under way: nothing of it is left when the guard has been dropped.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long is waited; it catches what hangs.
const LIMIT: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(5);

/// Guard of everything that has a [`Hold`] of it. Dropping it waits until all of them have been
/// dropped: the runtime's other threads end what is under way, and still have a runtime for that.
#[derive(Debug, Default)]
pub struct Guard {
    holds: Arc<()>,
}

/// Part of something that is under way.
#[derive(Debug, Clone)]
pub struct Hold {
    _holds: Arc<()>,
}

impl Guard {
    /// Returns a hold.
    pub fn hold(&self) -> Hold {
        Hold { _holds: self.holds.clone() }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let begun = Instant::now();
        while Arc::strong_count(&self.holds) > 1 && begun.elapsed() < LIMIT {
            std::thread::sleep(INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn the_last_hold_ends_the_wait() {
        let guard = Guard::default();
        let hold = guard.hold();
        let holds = [hold.clone(), hold];
        let (say, said) = channel();
        let work = std::thread::spawn(move || {
            for hold in holds {
                std::thread::sleep(INTERVAL * 4);
                say.send(()).unwrap();
                drop(hold);
            }
        });
        drop(guard);
        assert_eq!(said.try_iter().count(), 2);
        work.join().unwrap();
    }
}
