//! Counters of a session and of the host, and the form in which they are reported.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Live counters. Each is exact; a snapshot of several is not one instant.
pub(crate) struct Counters {
    pub faults: AtomicU64,
    pub fills: AtomicU64,
    pub bytes_filled: AtomicU64,
    pub zero_pages: AtomicU64,
    pub bytes_copied: AtomicU64,
    pub prefetch_fills: AtomicU64,
    pub evictions: AtomicU64,
    pub failures: AtomicU64,
    pub hash_nanos: AtomicU64,
    wait: Mutex<Histogram<u64>>,
}

impl Counters {
    pub fn new() -> Self {
        // Two digits over 1 ns to 60 s: 28 KiB and an error of at most 1 %.
        let wait =
            Histogram::new_with_bounds(1, 60_000_000_000, 2).expect("constant bounds are valid");
        Self {
            faults: AtomicU64::new(0),
            fills: AtomicU64::new(0),
            bytes_filled: AtomicU64::new(0),
            zero_pages: AtomicU64::new(0),
            bytes_copied: AtomicU64::new(0),
            prefetch_fills: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            hash_nanos: AtomicU64::new(0),
            wait: Mutex::new(wait),
        }
    }

    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
    }

    pub fn waited(&self, wait: Duration) {
        let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        self.wait.lock().saturating_record(nanos.max(1));
    }

    pub fn snapshot(&self) -> CounterSnapshot {
        let wait = self.wait.lock();
        CounterSnapshot {
            faults: self.faults.load(Relaxed),
            fills: self.fills.load(Relaxed),
            bytes_filled: self.bytes_filled.load(Relaxed),
            zero_pages: self.zero_pages.load(Relaxed),
            bytes_copied: self.bytes_copied.load(Relaxed),
            prefetch_fills: self.prefetch_fills.load(Relaxed),
            evictions: self.evictions.load(Relaxed),
            failures: self.failures.load(Relaxed),
            hash_nanos: self.hash_nanos.load(Relaxed),
            wait: WaitSummary {
                count: wait.len(),
                p50_nanos: wait.value_at_quantile(0.5),
                p90_nanos: wait.value_at_quantile(0.9),
                p99_nanos: wait.value_at_quantile(0.99),
                max_nanos: wait.max(),
            },
        }
    }
}

/// Counters of a session, or of a whole host, since it began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterSnapshot {
    /// Faults read from userfaultfd.
    pub faults: u64,
    /// Chunks read, verified and placed in a page cache. Of a session: those its own faults caused.
    pub fills: u64,
    /// Bytes placed in a page cache by `fills`.
    pub bytes_filled: u64,
    /// Zero pages mapped into a VMM with no memory behind them.
    pub zero_pages: u64,
    /// Bytes copied into the private memory of a VMM.
    pub bytes_copied: u64,
    /// Number of fills done ahead of any fault; of a host.
    pub prefetch_fills: u64,
    /// Number of chunks punched out of a page cache; of a host.
    pub evictions: u64,
    /// Chunks that could not be read, verified or placed.
    pub failures: u64,
    /// Nanoseconds spent on verifying chunks.
    pub hash_nanos: u64,
    /// Times that faults waited.
    pub wait: WaitSummary,
}

/// Distribution of the time from reading a fault to waking its thread. The kernel's own delivery is
/// not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitSummary {
    /// Number of faults resolved.
    pub count: u64,
    /// Median wait in nanoseconds.
    pub p50_nanos: u64,
    /// 90th percentile, nanoseconds.
    pub p90_nanos: u64,
    /// 99th percentile, nanoseconds.
    pub p99_nanos: u64,
    /// Longest wait in nanoseconds.
    pub max_nanos: u64,
}

/// The state of one session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStats {
    /// Whether the handshake has been made.
    pub connected: bool,
    /// Reason why the session failed, if it did.
    pub failed: Option<String>,
    /// Counters of the session.
    pub counters: CounterSnapshot,
    /// Bytes of the image resident in the page cache this session uses.
    pub resident_bytes: u64,
}

/// The page cache of one image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStats {
    /// Name it was opened by.
    pub golden: String,
    /// Content identity.
    pub key: String,
    /// Bytes of the image.
    pub ram_bytes: u64,
    /// Number of bytes resident.
    pub resident_bytes: u64,
    /// Number of sessions attached.
    pub sessions: u64,
    /// Chunks in its working set.
    pub working_set: u64,
    /// Working-set chunks not resident.
    pub working_set_absent: u64,
    /// Private to a recording session.
    pub recording: bool,
}

/// The state of the whole pager.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStats {
    /// Sums over all sessions since the pager started.
    pub counters: CounterSnapshot,
    /// Bytes resident over all images.
    pub resident_bytes: u64,
    /// The budget `resident_bytes` is kept under.
    pub budget_bytes: u64,
    /// Number of sessions attached.
    pub sessions: u64,
    /// Images held, of which at most 256 are listed.
    pub image_count: u64,
    /// The images.
    pub images: Vec<ImageStats>,
}
