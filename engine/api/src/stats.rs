//! Figures of one session.

use serde::{Deserialize, Serialize};

/// Figures of one session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionStats {
    /// Figures that the guest reports; absent when it does not answer within 5 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestFigures>,
    /// Figures of its VMM process on this host.
    pub vmm: VmmFigures,
    /// Figures of the pager's work for it; absent when the pager does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pager: Option<PagerFigures>,
}

/// Figures that a guest reports; it may lie.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GuestFigures {
    /// Whether its Docker daemon answered a ping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker: Option<bool>,
    /// Services of the guest, each with what became of it.
    pub services: std::collections::BTreeMap<String, String>,
    /// Milliseconds since it booted, before its snapshot was taken.
    pub uptime_ms: u64,
    /// Load averages over 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// Number of processors.
    pub cpus: u32,
    /// Milliseconds that all processors together were busy since it booted.
    pub cpu_busy_ms: u64,
    /// Bytes of memory in all.
    pub memory_total_bytes: u64,
    /// Bytes of memory available to new programs.
    pub memory_available_bytes: u64,
    /// Bytes of its root file system in all.
    pub disk_total_bytes: u64,
    /// Bytes of its root file system that can still be written.
    pub disk_available_bytes: u64,
    /// Number of processes.
    pub processes: u32,
}

/// A VMM process.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmmFigures {
    /// Bytes of memory that no other process shares.
    pub private_memory_bytes: u64,
    /// Seconds of CPU time it has used.
    pub cpu_seconds: f64,
    /// Number of threads.
    pub threads: i64,
}

/// Figures of the pager's work for one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PagerFigures {
    /// Number of page faults.
    pub faults: u64,
    /// Chunks that its faults brought into the page cache.
    pub fills: u64,
    /// Bytes of those.
    pub filled_bytes: u64,
    /// Bytes of the golden's memory that are in the page cache.
    pub resident_bytes: u64,
    /// Median time that a fault waited, in nanoseconds.
    pub wait_p50_nanos: u64,
    /// 99th percentile of it.
    pub wait_p99_nanos: u64,
}
