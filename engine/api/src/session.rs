//! Sessions: the request for one, and what is said of it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

use crate::bounded;

/// Most variables of a session.
const MAX_VARIABLES: usize = 256;
/// Most labels of a session.
const MAX_LABELS: usize = 64;
/// Most hosts that a session may reach.
const MAX_HOSTS: usize = 256;

/// A request for a session.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateSession {
    /// Name of the golden image.
    pub golden: String,
    /// Environment of every command that runs in the session; at most 256 variables of 128 KiB
    /// together.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "variables")]
    pub env: BTreeMap<String, String>,
    /// User of commands that name none: `user`, `uid`, `user:group` or `uid:gid` of the guest, at
    /// most 256 bytes; root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Bounds on what the session may use.
    #[serde(default)]
    pub limits: SessionLimits,
    /// Seconds after which the session is discarded whatever it does; the daemon's default when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Seconds without any request or open connection after which it is discarded; the daemon's
    /// default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<u64>,
    /// Policy on what the session may reach outside; nothing when absent.
    #[serde(default)]
    pub egress: EgressPolicy,
    /// Labels of the caller, kept and returned as they are; at most 64, each name and value at most
    /// 1 KiB.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "labels")]
    pub metadata: BTreeMap<String, String>,
    /// Milliseconds the request may wait for its turn; the daemon's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Wait until the session's Docker daemon has answered as well.
    #[serde(default)]
    pub wait_docker: bool,
    /// Address of the daemon's host on which the TCP ports that containers of the session publish
    /// are reached; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish: Option<Publish>,
}

/// Address of the daemon's host for the ports that containers of a session publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Publish {
    /// A loopback address that no other session has.
    #[serde(rename = "own")]
    Own,
    /// The host's own loopback address, where its configuration allows that.
    #[serde(rename = "127.0.0.1")]
    Localhost,
}

/// A TCP port that a container of a session publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PublishedPort {
    /// Port, the same in the session and on the daemon's host.
    pub port: u16,
    /// Why the daemon's host does not listen on it; absent when it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

fn variables<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    bounded::map(deserializer, "env", MAX_VARIABLES)
}

fn labels<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    bounded::map(deserializer, "metadata", MAX_LABELS)
}

fn hosts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    bounded::list(deserializer, "egress.allow", MAX_HOSTS)
}

fn denied<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    bounded::list(deserializer, "egress.deny", MAX_HOSTS)
}

/// Bounds on what a session may use; what is absent is the golden's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
    /// Returns these bounds, with those of `others` where these are absent.
    pub fn or(self, others: Self) -> Self {
        Self {
            memory_mib: self.memory_mib.or(others.memory_mib),
            cpus: self.cpus.or(others.cpus),
            disk_mib: self.disk_mib.or(others.disk_mib),
            io_mib_per_second: self.io_mib_per_second.or(others.io_mib_per_second),
        }
    }
}

/// Policy on what a session may reach outside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct EgressPolicy {
    /// Hosts that may be reached: `NAME`, `*.NAME` (all names below), an IP address or a network
    /// (`192.0.2.0/24`, by address alone), with `:PORT`, `:*` for every port, or else ports 80 and
    /// 443; or `*`, which is every public address on every port. At most 256. Addresses that are not
    /// public are refused whatever allows them.
    #[serde(default, deserialize_with = "hosts")]
    pub allow: Vec<String>,
    /// Hosts that are taken back from `*`: names, and addresses and networks also where a name
    /// leads there; on every port unless one is named. What another entry of `allow` names stays
    /// allowed. At most 256.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "denied")]
    pub deny: Vec<String>,
    /// Most connections at a time; the daemon's ceiling when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<usize>,
    /// Most bytes in all, both directions together; the daemon's ceiling when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
}

/// What a session may reach outside now, and what it has used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EgressStatus {
    /// Policy, with its limits; absent when the session reaches nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<EgressPolicy>,
    /// Bytes of connections that have ended, both directions together, since the session began.
    pub bytes_used: u64,
    /// Connections to the outside since the session began, plain HTTP requests included.
    pub connections_used: u64,
}

/// Starting point of a session: how much was ready when it was requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Start from nothing: the VMM was spawned and the golden restored.
    Cold,
    /// Start from a VMM that was waiting for its snapshot.
    Shell,
    /// Start from a fork, made on request, of a restored and warmed-up VMM.
    Fork,
    /// Start from a restored guest that was waiting, paused, for its identity.
    Standby,
}

impl Tier {
    /// Returns the tier's word in metrics and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Shell => "shell",
            Self::Fork => "fork",
            Self::Standby => "standby",
        }
    }
}

/// A session as clients see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionInfo {
    /// Id of the session.
    pub id: String,
    /// Name of the golden image.
    pub golden: String,
    /// `running`, `paused`, `failed`, `discarding` or `discarded`.
    pub state: String,
    /// Reason why it failed; absent when it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Tenant that the session belongs to.
    pub tenant: String,
    /// Starting point of the session.
    pub tier: Tier,
    /// Time at which it was handed out, RFC 3339.
    pub created_at: String,
    /// Latest time at which it will be discarded, RFC 3339.
    pub expires_at: String,
    /// Time at which it is discarded unless it is used until then, RFC 3339. While a request or a
    /// connection is open, that is the idle timeout from now.
    pub idle_expires_at: String,
    /// Seconds of idleness after which it is discarded.
    pub idle_timeout_seconds: u64,
    /// User of commands that name none; absent for root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Labels of the caller.
    pub metadata: BTreeMap<String, String>,
    /// Docker socket of the session on the daemon's host.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub docker_socket: PathBuf,
    /// Loopback address of the daemon's host on which published ports are reached; absent when that
    /// was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub published_address: Option<Ipv4Addr>,
    /// Ports that its containers publish, at most 128.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published_ports: Vec<PublishedPort>,
    /// Duration of its start, by step.
    pub start: StartBreakdown,
}

/// Duration of a session's start, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StartBreakdown {
    /// Time spent waiting for admission, and before that for the golden image to be loaded where it
    /// was not.
    pub queued_ms: f64,
    /// Time from admission until the guest agent had taken its identity.
    pub agent_ms: f64,
    /// Time from admission until Docker answered, when that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker_ms: Option<f64>,
}

/// Sessions that live.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionList {
    /// Sessions that live, in no order.
    pub sessions: Vec<SessionInfo>,
}

/// A new bound on a session's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Extend {
    /// Seconds from now after which the session is discarded; at least 1.
    pub ttl_seconds: u64,
}

/// A line of an attached session's stream, after the first one, which is the session itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AttachEvent {
    /// Sign of life.
    Heartbeat,
    /// The session is over; nothing follows.
    Ended {
        /// Reason why it ended.
        reason: String,
    },
}
