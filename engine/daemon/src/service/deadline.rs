//! Deadline of a request for a session: how long it may still wait.

use std::time::{Duration, Instant};

/// The deadline of a request, by the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    asked: Instant,
    limit: Duration,
}

impl Deadline {
    /// Creates a deadline `limit` after `asked`, when the request came.
    pub fn new(asked: Instant, limit: Duration) -> Self {
        Self { asked, limit }
    }

    /// Returns how long the request has waited.
    pub fn waited(&self) -> Duration {
        self.asked.elapsed()
    }

    /// Returns how long the request may still wait.
    pub fn left(&self) -> Duration {
        self.limit.saturating_sub(self.waited())
    }
}
