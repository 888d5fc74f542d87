//! Settings of a pager process.

use std::time::Duration;

/// The smallest byte budget, in chunks of the largest image in use. One guest instruction touches a
/// handful of pages (its own code, operands, page tables); they must be resident together or the
/// guest makes no progress.
pub const MIN_BUDGET_CHUNKS: u64 = 64;

/// Settings of a pager process.
#[derive(Debug, Clone)]
pub struct PagerConfig {
    /// Bytes of page cache to keep over all images of the host. Above it the coldest chunks are
    /// punched out, see the crate's eviction policy in `cache`. Never less than
    /// [`MIN_BUDGET_CHUNKS`] chunks; exceeded only by the chunks being filled at the moment and by
    /// chunks pinned by a copy.
    pub budget_bytes: u64,
    /// Threads that read, verify and place chunks; at least 1.
    pub fill_threads: usize,
    /// Leave [`crate::serve`] when no connection has been open for this long. `None`: never.
    pub idle_exit: Option<Duration>,
    /// Fill the recorded working set in the background when a session attaches.
    pub prefetch: bool,
    /// How long the thread of a session may be at one piece of the pager's own work, which takes
    /// microseconds. Then the process ends: other sessions would wait as well, and go on waiting. A
    /// thread that waits for its VMM is not at the pager's own work; after three tenths of this
    /// time its session fails.
    pub stall_limit: Duration,
}

impl Default for PagerConfig {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            budget_bytes: 4 << 30,
            fill_threads: threads.clamp(2, 16),
            idle_exit: None,
            prefetch: true,
            stall_limit: Duration::from_secs(10),
        }
    }
}
