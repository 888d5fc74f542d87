//! The daemon as a whole: golden images, pools, latency.

use serde::{Deserialize, Serialize};

use crate::Tier;

/// The daemon as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServiceStatus {
    /// Version of the daemon.
    pub version: String,
    /// `kvm` or `tcg`, and the VMM's version.
    pub host: String,
    /// Seconds since it was started.
    pub uptime_seconds: f64,
    /// Sessions that live.
    pub sessions: usize,
    /// Requests that wait for a session.
    pub queued: usize,
    /// Whether new sessions are held back, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<String>,
    /// Space for the disks of sessions; absent while it cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskStatus>,
    /// Golden images in the store, one entry for each.
    pub goldens: Vec<GoldenStatus>,
    /// Remains of a dead daemon that the last start removed.
    pub reaped: Vec<String>,
    /// Start latency by tier, over the last sessions.
    pub latency: Vec<TierLatency>,
}

/// Space of the file system that holds the disks of sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DiskStatus {
    /// What processes without privileges can use, in bytes.
    pub total_bytes: u64,
    /// What of it is free, in bytes.
    pub available_bytes: u64,
    /// What the disks of sessions, standbys and zygotes have, in bytes.
    pub written_bytes: u64,
    /// What they may still take by their quotas, in bytes; may be more than there is.
    pub promised_bytes: u64,
    /// Whether the file system itself keeps the quotas (project quotas).
    pub quotas: bool,
}

/// A golden image and its pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GoldenStatus {
    /// Name of the golden image.
    pub name: String,
    /// Bytes that it takes in the store.
    pub stored_bytes: u64,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// `kvm` or `tcg`.
    pub accel: String,
    /// Pool of the golden; absent for one that keeps none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolStatus>,
}

/// A pool of one golden.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolStatus {
    /// Standbys that wait.
    pub standbys: usize,
    /// Shells that wait.
    pub shells: usize,
    /// Whether there is a zygote, a warmed-up VMM that standbys are forked from.
    #[serde(default)]
    pub zygote: bool,
    /// Whether that has taken all first steps of a session, not only the quick ones.
    #[serde(default)]
    pub rehearsed: bool,
    /// Standbys in the making.
    pub filling: usize,
    /// Number of standbys that the policy wants now.
    pub target: usize,
    /// Fewest standbys it ever wants.
    pub floor: usize,
    /// Most standbys the budget allows.
    pub ceiling: usize,
    /// Requests for a session per second, smoothed.
    pub arrivals_per_second: f64,
    /// Bytes of memory that all waiting standbys hold.
    pub memory_bytes: u64,
    /// Reason why it does not refill; absent when it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
}

/// Start latency of one tier, in milliseconds until the agent answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TierLatency {
    /// Tier of these starts.
    pub tier: Tier,
    /// Percentiles of the latency.
    pub summary: mayfly_distribution::Summary,
    /// The last values, oldest first.
    pub recent_ms: Vec<f64>,
}

/// Golden images of the daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GoldenList {
    /// Golden images in the store, with their pools.
    pub goldens: Vec<GoldenStatus>,
}
