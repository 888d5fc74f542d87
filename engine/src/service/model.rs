//! What clients send and get: the JSON of the API, shared by the daemon, the command line and the benches.

use std::collections::BTreeMap;
use std::path::PathBuf;

use mayfly_host::cgroup::Limits;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A request for a session.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSession {
    /// Name of the golden image.
    pub golden: String,
    /// Environment of every command that runs in the session.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Bounds on what the session may use.
    #[serde(default)]
    pub limits: SessionLimits,
    /// Seconds after which the session is discarded whatever it does; the daemon's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Seconds without any request or open connection after which it is discarded; the daemon's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<u64>,
    /// What the session may reach outside; nothing when absent.
    #[serde(default)]
    pub egress: EgressPolicy,
    /// Labels of the caller, kept and returned as they are; at most 64, each name and value at most 1 KiB.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Milliseconds the request may wait for its turn; the daemon's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Wait until the session's Docker daemon has answered as well.
    #[serde(default)]
    pub wait_docker: bool,
}

/// Bounds on what a session may use; what is absent is the golden's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionLimits {
    /// Most memory of guest and VMM together, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Most processors' worth of CPU time, such as 0.5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// Most disk space of what it writes, in MiB; beyond it the guest gets I/O errors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u64>,
    /// Most MiB read, and most MiB written, per second on the host's disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_mib_per_second: Option<u64>,
}

impl SessionLimits {
    /// These, and where they say nothing `others`.
    pub fn or(self, others: Self) -> Self {
        Self {
            memory_mib: self.memory_mib.or(others.memory_mib),
            cpus: self.cpus.or(others.cpus),
            disk_mib: self.disk_mib.or(others.disk_mib),
            io_mib_per_second: self.io_mib_per_second.or(others.io_mib_per_second),
        }
    }

    /// As bounds of a VMM.
    pub fn of_vmm(self) -> Limits {
        Limits {
            memory_bytes: self.memory_mib.map(|mib| mib << 20),
            cpus: self.cpus,
            disk_bytes: self.disk_mib.map(|mib| mib << 20),
            io_bytes_per_second: self.io_mib_per_second.map(|mib| mib << 20),
            ..Limits::default()
        }
    }
}

/// What a session may reach outside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EgressPolicy {
    /// Hosts that may be reached: `NAME`, `*.NAME` (all names below) or an IP address, with `:PORT` or else ports 80 and 443; at
    /// most 256. Addresses that are not public are refused whatever name leads to them.
    #[serde(default)]
    pub allow: Vec<String>,
    /// Most connections at a time; the daemon's ceiling when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<usize>,
    /// Most bytes in all, both directions together; the daemon's ceiling when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
}

/// From how far a session was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// From nothing: the VMM was spawned and the golden restored.
    Cold,
    /// From a VMM that was waiting for its snapshot.
    Shell,
    /// From a fork, made on request, of a restored and warmed-up VMM.
    Fork,
    /// From a restored guest that was waiting, paused, for its identity.
    Standby,
}

/// A session as clients see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SessionInfo {
    /// Session id.
    pub id: String,
    /// Golden image.
    pub golden: String,
    /// `running`, `paused`, `failed`, `discarding` or `discarded`.
    pub state: String,
    /// Why it failed, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whose it is.
    pub tenant: String,
    /// From how far it was started.
    pub tier: Tier,
    /// When it was handed out, RFC 3339.
    pub created_at: String,
    /// When it will be discarded at the latest, RFC 3339.
    pub expires_at: String,
    /// Seconds of idleness after which it is discarded.
    pub idle_timeout_seconds: u64,
    /// Labels of the caller.
    pub metadata: BTreeMap<String, String>,
    /// Docker socket of the session on the daemon's host.
    #[schema(value_type = String)]
    pub docker_socket: PathBuf,
    /// How long its start took.
    pub start: StartBreakdown,
}

/// How long a session's start took, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StartBreakdown {
    /// Waiting for admission, and before that for the golden image to be loaded where it was not.
    pub queued_ms: f64,
    /// From admission until the guest agent had taken its identity.
    pub agent_ms: f64,
    /// From admission until Docker answered, when that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker_ms: Option<f64>,
}

/// Body of every error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// A word that programs may rely on, such as `no_such_session`.
    pub code: String,
    /// What was tried, why it failed, what to do next.
    pub message: String,
}

/// The daemon as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
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
    /// One entry for each golden image in the store.
    pub goldens: Vec<GoldenStatus>,
    /// What the last start of the daemon removed of a dead one.
    pub reaped: Vec<String>,
    /// Start latency by tier, over the last sessions.
    pub latency: Vec<TierLatency>,
}

/// A golden image and its pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GoldenStatus {
    /// Name.
    pub name: String,
    /// Stored bytes.
    pub stored_bytes: u64,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// `kvm` or `tcg`.
    pub accel: String,
    /// Its pool; absent for a golden that keeps none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolStatus>,
}

/// A pool of one golden.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PoolStatus {
    /// Standbys that wait.
    pub standbys: usize,
    /// Shells that wait.
    pub shells: usize,
    /// Whether there is a zygote, a warmed-up VMM that standbys are forked from.
    #[serde(default)]
    pub zygote: bool,
    /// Standbys in the making.
    pub filling: usize,
    /// How many standbys the policy wants now.
    pub target: usize,
    /// Fewest standbys it ever wants.
    pub floor: usize,
    /// Most standbys the budget allows.
    pub ceiling: usize,
    /// Requests for a session per second, smoothed.
    pub arrivals_per_second: f64,
    /// Bytes of memory that all waiting standbys hold.
    pub memory_bytes: u64,
    /// Why it does not refill, where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
}

/// Start latency of one tier, in milliseconds until the agent answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TierLatency {
    /// The tier.
    pub tier: Tier,
    /// Percentiles.
    pub summary: crate::distribution::Summary,
    /// The last values, oldest first.
    pub recent_ms: Vec<f64>,
}
