//! Tenants: who they are, and their bounds.

use std::num::NonZeroU32;

use mayfly_api::{SessionLimits, TenantName};
use serde::{Deserialize, Serialize};

use super::{InvalidConfig, MAX_MIB, ServiceConfig};
use crate::service::ceilings::TotalLimits;
use crate::service::request::check_limits;

/// Bounds on rates of requests, per second.
const MIN_RATE: f64 = 0.001;
const MAX_RATE: f64 = 1e6;

/// Bounds of one tenant.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantLimits {
    /// Most sessions, and requests for one, at a time.
    pub max_sessions: usize,
    /// Requests for a session per second, over time.
    pub requests_per_second: f64,
    /// Requests at once after a rest.
    pub burst: NonZeroU32,
    /// The most that one of its sessions gets, where that is less than what any session gets.
    pub max_limits: SessionLimits,
    /// The most that its sessions, and requests for one, have together.
    pub total_limits: TotalLimits,
    /// Most connections over TCP at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<usize>,
    /// Most MiB held for it at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_buffer_mib: Option<u64>,
}

/// A tenant that may come over TCP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantConfig {
    /// Name of the tenant.
    pub name: TenantName,
    /// blake3 of its bearer token, 64 hexadecimal digits. The token itself is stored nowhere.
    #[serde(with = "token_hash")]
    pub token_blake3: blake3::Hash,
    /// Bounds of the tenant; those of `tenant_limits` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<TenantLimits>,
}

impl TenantConfig {
    /// Creates a tenant with this bearer token, of which only the hash is kept, and the bounds of
    /// all.
    pub fn new(name: TenantName, token: &str) -> Self {
        Self { name, token_blake3: blake3::hash(token.as_bytes()), limits: None }
    }
}

impl Default for TenantLimits {
    fn default() -> Self {
        Self {
            max_sessions: 2048,
            requests_per_second: 200.0,
            burst: NonZeroU32::MIN.saturating_add(399),
            max_limits: SessionLimits::default(),
            total_limits: TotalLimits::default(),
            max_connections: None,
            max_buffer_mib: None,
        }
    }
}

impl ServiceConfig {
    /// As [`ServiceConfig::check`], of what the tenants have.
    pub(super) fn check_tenants(&self) -> Result<(), InvalidConfig> {
        let refuse = |what: String| Err(InvalidConfig::Value { what });
        let limits = self.tenants.iter().filter_map(|t| t.limits.map(|l| (t.name.as_str(), l)));
        for (name, limits) in limits.chain([("tenant_limits", self.tenant_limits)]) {
            let rate = limits.requests_per_second;
            if limits.max_sessions == 0 || !(MIN_RATE..=MAX_RATE).contains(&rate) {
                return refuse(format!(
                    "{name}: max_sessions must be at least 1, requests_per_second {MIN_RATE} to {MAX_RATE}"
                ));
            }
            if limits.max_connections == Some(0)
                || limits.max_buffer_mib.is_some_and(|mib| mib == 0 || mib > MAX_MIB)
            {
                return refuse(format!(
                    "{name}: max_connections must be at least 1, max_buffer_mib 1 to {MAX_MIB}"
                ));
            }
            check_limits(&limits.max_limits)
                .map_err(|error| format!("max_limits: {error}"))
                .and_then(|()| limits.total_limits.check())
                .or_else(|error| refuse(format!("{name}: {error}")))?;
        }
        for (at, tenant) in self.tenants.iter().enumerate() {
            if tenant.name.as_str() == TenantName::LOCAL {
                return refuse(format!(
                    "tenant {}: this is the name of whoever uses the Unix socket, all of whose sessions its token would \
                     get; choose another, and bound those of the socket with [tenant_limits]",
                    tenant.name
                ));
            }
            let earlier = &self.tenants[..at];
            if earlier
                .iter()
                .any(|t| t.name == tenant.name || t.token_blake3 == tenant.token_blake3)
            {
                return refuse(format!(
                    "tenant {}: its name or token is another tenant's already",
                    tenant.name
                ));
            }
        }
        Ok(())
    }
}

/// blake3 hashes as hexadecimal digits.
mod token_hash {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(hash: &blake3::Hash, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(hash.to_hex().as_str())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<blake3::Hash, D::Error> {
        let text = String::deserialize(deserializer)?;
        blake3::Hash::from_hex(&text).map_err(|_| {
            serde::de::Error::custom(
                "token_blake3 must be 64 hexadecimal digits: `mayfly token` makes a token and tells them",
            )
        })
    }
}
