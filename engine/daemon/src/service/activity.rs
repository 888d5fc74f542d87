//! Use of a session: what holds off its idle timeout.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Requests, connections and running background commands of a session.
#[derive(Debug)]
pub(super) struct Activity {
    /// How many there are, and when that changed last.
    state: Mutex<(usize, Instant)>,
}

impl Activity {
    /// Of a session that was used just now.
    pub fn new() -> Self {
        Self { state: Mutex::new((0, Instant::now())) }
    }

    /// When the session counts as idle: `None` while something is open.
    pub fn idle_since(&self) -> Option<Instant> {
        let (open, last) = *self.state.lock();
        (open == 0).then_some(last)
    }

    /// How long the session lives if it is not used from now on.
    pub fn left(&self, idle_timeout: Duration) -> Duration {
        let idle = self.idle_since().map_or(Duration::ZERO, |since| since.elapsed());
        idle_timeout.saturating_sub(idle)
    }

    /// Counts one more as long as the guard lives.
    pub fn open(self: &Arc<Self>) -> ActivityGuard {
        self.change(|open| *open += 1);
        ActivityGuard(self.clone())
    }

    /// Counts as use at this moment.
    pub fn touch(&self) {
        self.change(|_| {});
    }

    fn change(&self, change: impl FnOnce(&mut usize)) {
        let mut state = self.state.lock();
        change(&mut state.0);
        state.1 = Instant::now();
    }
}

/// Guard that holds off the idle timeout of a session while it lives.
#[derive(Debug)]
pub struct ActivityGuard(Arc<Activity>);

impl Drop for ActivityGuard {
    fn drop(&mut self) {
        self.0.change(|open| *open -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_idle_only_while_nothing_is_open() {
        let long_ago = Instant::now() - Duration::from_secs(1);
        let activity = Arc::new(Activity { state: Mutex::new((0, long_ago)) });
        assert_eq!(activity.idle_since(), Some(long_ago));
        let (first, second) = (activity.open(), activity.open());
        assert_eq!(activity.idle_since(), None);
        drop(first);
        assert_eq!(activity.idle_since(), None);
        drop(second);
        assert!(activity.idle_since().is_some_and(|since| since > long_ago));
    }
}
