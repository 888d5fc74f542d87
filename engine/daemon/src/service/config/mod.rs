//! Configuration of the daemon: a TOML file, every part of which may be left out.
//!
//! ```toml
//! ttl = "1h"
//! idle_timeout = "10min"
//!
//! [[tenants]]
//! name = "ci"
//! token_blake3 = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
//! limits = { max_sessions = 64, requests_per_second = 20.0, burst = 40 }
//!
//! [goldens.default]
//! floor = 4
//! max_standbys = 32
//! ```

mod admission;
pub(super) mod duration;
mod error;
mod pool;
mod tenants;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mayfly_api::{SessionLimits, TenantName};
use mayfly_host::layout::Layout;
use mayfly_host::uid::UidRange;
use serde::{Deserialize, Serialize};

pub use admission::{AdmissionConfig, PressureConfig, Threshold};
pub use error::{ConfigError, InvalidConfig};
pub use pool::{PoolBudget, PoolConfig};
pub use tenants::{TenantConfig, TenantLimits};
pub use tls::TlsConfig;

use super::capacity::{BufferConfig, ConnectionConfig};
use super::ceilings;
use super::egress::EgressConfig;
use super::host::Host;
use super::publish::PublishConfig;
use super::request::check_limits;

/// The longest times that can be set.
const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 3600);
/// The most memory that can be set, in MiB: as bytes it is a number of 64 bits.
const MAX_MIB: u64 = 1 << 30;

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceConfig {
    /// Lifetime of a session whose request says nothing.
    #[serde(with = "duration")]
    pub ttl: Duration,
    /// The most a request may ask for, and an extension may reach from now.
    #[serde(with = "duration")]
    pub max_ttl: Duration,
    /// Time without any request or open connection after which a session is discarded; when its
    /// request says nothing.
    #[serde(with = "duration")]
    pub idle_timeout: Duration,
    /// User ids for VMMs, as `FIRST:COUNT`; those of `MAYFLY_UIDS`, or the default range, when
    /// absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uids: Option<UidRange>,
    /// Names by which clients and browsers may ask for the daemon, `NAME` or `NAME:PORT`: over the
    /// Unix socket besides `localhost` and what clients send there; over TCP these only, besides
    /// `localhost` and addresses, or any while there are none.
    pub allowed_hosts: Vec<Host>,
    /// Bounds of a session whose request does not say otherwise.
    pub session_limits: SessionLimits,
    /// The most that any session gets, whatever its request says.
    pub max_limits: SessionLimits,
    /// Bounds on connections.
    pub connections: ConnectionConfig,
    /// Bound on the bytes held for clients and guests.
    pub buffers: BufferConfig,
    /// Bounds on requests for sessions.
    pub admission: AdmissionConfig,
    /// Levels from which the host counts as short of something.
    pub pressure: PressureConfig,
    /// Budget of all pools together.
    pub pool: PoolBudget,
    /// Pools by name of the golden image. A golden that is not named here gets the default pool at
    /// the first request for it, and loses it when nobody asks any more.
    pub goldens: BTreeMap<String, PoolConfig>,
    /// Bounds on what sessions may reach outside; nothing unless it is enabled.
    pub egress: EgressConfig,
    /// Addresses of the host on which sessions may publish ports.
    pub publish: PublishConfig,
    /// Bounds of a tenant that has none of its own, and of requests over the Unix socket.
    pub tenant_limits: TenantLimits,
    /// Certificate of the TCP port, which speaks TLS then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// Settings of the front end of that name, which reads them itself; it is on when they are
    /// there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub e2b: Option<toml::Table>,
    /// Tenants that may come over TCP.
    pub tenants: Vec<TenantConfig>,
    /// Folder of the journal; `journal` in Mayfly's home when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub journal: Option<PathBuf>,
    /// Longest time for which an idempotency key is remembered.
    #[serde(with = "duration")]
    pub idempotency_ttl: Duration,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(3600),
            max_ttl: Duration::from_secs(24 * 3600),
            idle_timeout: Duration::from_secs(600),
            uids: None,
            allowed_hosts: Vec::new(),
            session_limits: SessionLimits::default(),
            max_limits: SessionLimits::default(),
            connections: ConnectionConfig::default(),
            buffers: BufferConfig::default(),
            admission: AdmissionConfig::default(),
            pressure: PressureConfig::default(),
            pool: PoolBudget::default(),
            goldens: BTreeMap::new(),
            egress: EgressConfig::default(),
            publish: PublishConfig::default(),
            tenant_limits: TenantLimits::default(),
            tls: None,
            e2b: None,
            tenants: Vec::new(),
            journal: None,
            idempotency_ttl: Duration::from_secs(24 * 3600),
        }
    }
}

impl ServiceConfig {
    /// Reads a TOML file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
        Self::parse(&text).map_err(|cause| ConfigError::Invalid { path: path.to_owned(), cause })
    }

    /// Reads TOML text.
    ///
    /// # Errors
    /// [`InvalidConfig`].
    pub fn parse(text: &str) -> Result<Self, InvalidConfig> {
        let config: Self =
            toml::from_str(text).map_err(|error| InvalidConfig::parse(text, &error))?;
        config.check()?;
        Ok(config)
    }

    /// Returns the folder of the journal.
    pub fn journal_dir(&self, layout: &Layout) -> PathBuf {
        self.journal.clone().unwrap_or_else(|| layout.home().join("journal"))
    }

    /// Returns the tenant with this bearer token. Takes the same time for every wrong token.
    pub fn tenant_of_token(&self, token: &str) -> Option<&TenantName> {
        let hash = blake3::hash(token.as_bytes());
        // blake3 compares hashes in constant time; there is no early end, so that the time does not
        // tell the place either.
        self.tenants
            .iter()
            .fold(None, |found, t| if t.token_blake3 == hash { Some(&t.name) } else { found })
    }

    /// Returns the bounds of a tenant.
    pub fn limits_of(&self, tenant: &TenantName) -> TenantLimits {
        let own = self.tenants.iter().find(|t| t.name == *tenant).and_then(|t| t.limits);
        own.unwrap_or(self.tenant_limits)
    }

    /// Returns the tenants for whom a part of everything is set aside: those of the configuration, and that
    /// of the Unix socket.
    pub fn known_tenants(&self) -> impl Iterator<Item = TenantName> {
        let configured = self.tenants.iter().map(|tenant| tenant.name.clone());
        configured.chain([TenantName::local()])
    }

    /// Returns the most that a session of a tenant gets.
    pub fn ceiling_of(&self, tenant: &TenantName) -> SessionLimits {
        ceilings::lower(self.max_limits, self.limits_of(tenant).max_limits)
    }

    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// [`InvalidConfig::Value`], naming the first value that cannot be used.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let refuse = |what: String| Err(InvalidConfig::Value { what });
        if self.ttl.is_zero() || self.ttl > self.max_ttl {
            return refuse(format!(
                "ttl must be more than 0 and at most max_ttl ({:?})",
                self.max_ttl
            ));
        }
        if self.max_ttl > MAX_TTL {
            return refuse("max_ttl must be at most 365days".into());
        }
        for (name, value) in [
            ("idle_timeout", self.idle_timeout),
            ("pressure.interval", self.pressure.interval),
            ("idempotency_ttl", self.idempotency_ttl),
            ("pool.forget_after", self.pool.forget_after),
        ] {
            if value.is_zero() || value > MAX_TTL {
                return refuse(format!("{name} must be more than 0 and at most 365days"));
            }
        }
        if self.admission.deadline > self.admission.max_deadline {
            return refuse("admission.deadline must be at most admission.max_deadline".into());
        }
        if self.admission.max_starts == Some(0) || self.admission.max_sessions == Some(0) {
            return refuse(
                "admission.max_starts and admission.max_sessions must be at least 1".into(),
            );
        }
        if !(self.pool.cpu > 0.0 && self.pool.cpu <= 1.0) {
            return refuse(format!(
                "pool.cpu must be more than 0 and at most 1, not {}",
                self.pool.cpu
            ));
        }
        if self.pool.memory_mib.is_some_and(|mib| mib > MAX_MIB) {
            return refuse(format!("pool.memory_mib must be at most {MAX_MIB}"));
        }
        if self.pool.concurrency == Some(0) {
            return refuse("pool.concurrency must be at least 1".into());
        }
        let pressure = &self.pressure;
        for (name, threshold) in [
            ("memory_some", Some(pressure.memory_some)),
            ("memory_full", Some(pressure.memory_full)),
            ("io_full", Some(pressure.io_full)),
            ("cpu_some", pressure.cpu_some),
            ("memory_used", Some(pressure.memory_used)),
            ("cgroup_used", Some(pressure.cgroup_used)),
            ("disk_used", Some(pressure.disk_used)),
            ("disk_promised", pressure.disk_promised),
        ] {
            if threshold.is_some_and(|t| !(t.end >= 0.0 && t.end <= t.begin && t.begin.is_finite()))
            {
                return refuse(format!(
                    "pressure.{name}.end must be at least 0 and at most its begin"
                ));
            }
        }
        for (name, pool) in &self.goldens {
            if let Err(error) = mayfly_snapshotter::GoldenName::new(name.as_str()) {
                return refuse(format!("goldens: {error}"));
            }
            if pool.floor > pool.max_standbys {
                return refuse(format!("goldens.{name}.floor must be at most its max_standbys"));
            }
        }
        for (name, limits) in
            [("session_limits", &self.session_limits), ("max_limits", &self.max_limits)]
        {
            check_limits(limits).or_else(|error| refuse(format!("{name}: {error}")))?;
        }
        self.connections.check().or_else(refuse)?;
        self.buffers.check().or_else(refuse)?;
        self.egress.check().or_else(refuse)?;
        self.check_tenants()
    }
}
