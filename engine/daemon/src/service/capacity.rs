//! What the daemon itself may hold for its clients: connections, and bytes.

use std::sync::Arc;
use std::time::Duration;

use mayfly_api::TenantName;
use serde::{Deserialize, Serialize};

use super::admission::host_memory;
use super::config::{ServiceConfig, duration};
use super::shares::{Account, Shares};

/// Share of the host's memory that may be held for clients, unless configured otherwise: one part in
/// this many.
const MEMORY_PART: u64 = 8;
/// The least that can be set: a few commands at a time.
const LEAST_MIB: u64 = 4;
const MOST_MIB: u64 = 1 << 30;

/// Bounds on connections at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectionConfig {
    /// Over the Unix socket; further ones wait to be accepted.
    pub max_local: usize,
    /// Over TCP, those without a token yet among them; further ones wait to be accepted.
    pub max_remote: usize,
    /// Over TCP without a valid token yet; for a further one the oldest is closed.
    pub max_unknown: usize,
    /// Of these from one address, or one IPv6 network of 64 bits; further ones are closed.
    pub max_unknown_per_address: usize,
    /// How long a connection over TCP may last without a valid token.
    #[serde(with = "duration")]
    pub unknown_for: Duration,
}

/// Bound on the bytes held for clients and guests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BufferConfig {
    /// For all tenants together, in MiB; an eighth of the host's memory when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_mib: Option<u64>,
}

impl Default for ConnectionConfig {
    fn default() -> Self {
        Self {
            max_local: 8192,
            max_remote: 8192,
            max_unknown: 2048,
            // As many as the kernel lets wait: a burst of one client is let in as a whole.
            max_unknown_per_address: 1024,
            unknown_for: Duration::from_secs(10),
        }
    }
}

impl ConnectionConfig {
    /// Checks what the types alone cannot. The error names the first value that cannot be used.
    pub(super) fn check(&self) -> Result<(), String> {
        let least = [self.max_local, self.max_unknown, self.max_unknown_per_address];
        if least.contains(&0) || self.max_unknown >= self.max_remote {
            return Err(
                "connections: each bound must be at least 1, and max_unknown below max_remote"
                    .into(),
            );
        }
        if self.unknown_for.is_zero() || self.unknown_for > Duration::from_secs(3600) {
            return Err("connections.unknown_for must be more than 0 and at most 1h".into());
        }
        Ok(())
    }
}

impl BufferConfig {
    /// As [`ConnectionConfig::check`].
    pub(super) fn check(&self) -> Result<(), String> {
        match self.total_mib {
            Some(mib) if !(LEAST_MIB..=MOST_MIB).contains(&mib) => {
                Err(format!("buffers.total_mib must be {LEAST_MIB} to {MOST_MIB}, not {mib}"))
            }
            _ => Ok(()),
        }
    }
}

/// Capacity of the daemon itself, divided between its tenants.
#[derive(Debug, Clone)]
pub struct Capacity {
    bytes: Arc<Shares>,
    connections: Arc<Shares>,
}

impl Capacity {
    /// By the configuration. A part is set aside for each of its tenants, and for that of the Unix
    /// socket.
    pub(super) fn new(config: &ServiceConfig) -> Self {
        let bytes = config
            .buffers
            .total_mib
            .map_or_else(|| (host_memory() / MEMORY_PART).max(LEAST_MIB << 20), |mib| mib << 20);
        let connections = &config.connections;
        Self {
            bytes: Shares::of_bytes(
                usize::try_from(bytes).unwrap_or(usize::MAX),
                config.known_tenants(),
            ),
            connections: Shares::new(
                connections.max_remote - connections.max_unknown,
                // That of the Unix socket has no token, and so none over TCP.
                config.tenants.iter().map(|tenant| tenant.name.clone()),
            ),
        }
    }

    /// Returns the account of the bytes that may be held for a tenant.
    pub fn bytes(&self, config: &ServiceConfig, tenant: &TenantName) -> Account {
        let most = config.limits_of(tenant).max_buffer_mib;
        let most = most.map(|mib| usize::try_from(mib << 20).unwrap_or(usize::MAX));
        self.bytes.account(tenant, most)
    }

    /// Returns the account of the connections that a tenant may have over TCP.
    pub fn connections(&self, config: &ServiceConfig, tenant: &TenantName) -> Account {
        self.connections.account(tenant, config.limits_of(tenant).max_connections)
    }
}
