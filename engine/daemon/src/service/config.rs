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

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mayfly_api::{SessionLimits, TenantName};
use mayfly_host::layout::Layout;
use mayfly_host::uid::UidRange;
use serde::{Deserialize, Serialize};

use super::capacity::{BufferConfig, ConnectionConfig};
use super::ceilings::{self, TotalLimits};
use super::egress::EgressConfig;
use super::host::Host;
use super::request::check_limits;

/// Reason why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {cause}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Cause of the failure.
        cause: std::io::Error,
    },
    /// What the file says cannot be used.
    #[error("the configuration {path} is not valid: {cause}")]
    Invalid {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong with it.
        cause: InvalidConfig,
    },
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    /// The text is no valid TOML, or names something that does not exist.
    #[error("{0}")]
    Parse(toml::de::Error),
    /// A value cannot be used.
    #[error("{what}")]
    Value {
        /// Message that names the value, and what would be right.
        what: String,
    },
}

impl From<toml::de::Error> for InvalidConfig {
    fn from(cause: toml::de::Error) -> Self {
        Self::Parse(cause)
    }
}

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
    /// Bounds of a tenant that has none of its own, and of requests over the Unix socket.
    pub tenant_limits: TenantLimits,
    /// Tenants that may come over TCP.
    pub tenants: Vec<TenantConfig>,
    /// Folder of the journal; `journal` in Mayfly's home when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub journal: Option<PathBuf>,
    /// Longest time for which an idempotency key is remembered.
    #[serde(with = "duration")]
    pub idempotency_ttl: Duration,
}

/// Bounds on requests for sessions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdmissionConfig {
    /// Most requests that wait at a time.
    pub max_queued: usize,
    /// Time for which a request waits that says nothing.
    #[serde(with = "duration")]
    pub deadline: Duration,
    /// The longest a request may ask to wait.
    #[serde(with = "duration")]
    pub max_deadline: Duration,
    /// Most starts under way at a time; twice the processors when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_starts: Option<usize>,
    /// Most sessions that live at a time; one for each 32 MiB of the host's memory, less an eighth,
    /// when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sessions: Option<usize>,
}

/// Two levels between which nothing changes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// Level at which pressure begins.
    pub begin: f64,
    /// Level at which pressure ends.
    pub end: f64,
}

/// Levels from which the host counts as short of something. Stall figures are those of the kernel's
/// PSI: percent of the last 10 s.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PressureConfig {
    /// Interval between two looks.
    #[serde(with = "duration")]
    pub interval: Duration,
    /// Time in which some task waited for memory.
    pub memory_some: Threshold,
    /// Time in which all tasks waited for memory.
    pub memory_full: Threshold,
    /// Time in which all tasks waited for storage.
    pub io_full: Threshold,
    /// Time in which some task waited for a processor. Absent: processors are no reason to refuse,
    /// a session just starts later then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_some: Option<Threshold>,
    /// Percent of the host's memory in use (all that is not available).
    pub memory_used: Threshold,
    /// Percent of the memory bound of the daemon's own cgroup in use, where it has one.
    pub cgroup_used: Threshold,
    /// Percent of the space for the disks of sessions that is not free.
    pub disk_used: Threshold,
    /// What the disks of all VMMs may still take, in percent of the space that is free; may be more
    /// than 100. Absent: more may be promised than there is, as with memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_promised: Option<Threshold>,
}

/// Budget of all pools together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolBudget {
    /// Share of the host's processors that refilling may take over time, more than 0 and at most 1.
    pub cpu: f64,
    /// Processor time that refilling may take at once after a rest.
    #[serde(with = "duration")]
    pub cpu_burst: Duration,
    /// Most memory of all waiting standbys and shells, in MiB; an eighth of the host's when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Most standbys in the making at a time; half the number of processors when absent, so that
    /// requests find one free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// Time for which refilling waits for a moment in which no session is being started.
    #[serde(with = "duration")]
    pub max_yield: Duration,
    /// Whether a forked standby has its agent and Docker answer once more before it waits: it then
    /// writes its own copy of the pages that every session writes, which a request need not wait
    /// for. Costs a standby some megabytes and some processor time.
    pub rehearse: bool,
    /// Time without a request after which a golden that is not configured loses its pool.
    #[serde(with = "duration")]
    pub forget_after: Duration,
}

/// The pool of one golden image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolConfig {
    /// Fewest standbys to keep.
    pub floor: usize,
    /// Most standbys to keep.
    pub max_standbys: usize,
    /// Shells to keep for the time when standbys run out. Not kept while there is a warmed-up VMM
    /// to fork.
    pub shells: usize,
    /// Fork standbys from one warmed-up VMM where guests run under software emulation: many times
    /// faster, and what they have in common stays shared. Otherwise each is restored by itself.
    pub fork: bool,
}

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
            tenant_limits: TenantLimits::default(),
            tenants: Vec::new(),
            journal: None,
            idempotency_ttl: Duration::from_secs(24 * 3600),
        }
    }
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self {
            max_queued: 1024,
            deadline: Duration::from_secs(30),
            max_deadline: Duration::from_secs(600),
            max_starts: None,
            max_sessions: None,
        }
    }
}

impl Default for PressureConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(500),
            memory_some: Threshold { begin: 30.0, end: 15.0 },
            memory_full: Threshold { begin: 10.0, end: 5.0 },
            io_full: Threshold { begin: 80.0, end: 50.0 },
            cpu_some: None,
            memory_used: Threshold { begin: 94.0, end: 90.0 },
            cgroup_used: Threshold { begin: 94.0, end: 90.0 },
            disk_used: Threshold { begin: 95.0, end: 92.0 },
            disk_promised: None,
        }
    }
}

impl Default for PoolBudget {
    fn default() -> Self {
        Self {
            cpu: 0.75,
            cpu_burst: Duration::from_secs(5),
            memory_mib: None,
            concurrency: None,
            max_yield: Duration::from_millis(20),
            rehearse: true,
            forget_after: Duration::from_secs(600),
        }
    }
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self { floor: 1, max_standbys: 32, shells: 1, fork: true }
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
        let config: Self = toml::from_str(text)?;
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
        check_limits(&self.max_limits).or_else(|error| refuse(format!("max_limits: {error}")))?;
        self.connections.check().or_else(refuse)?;
        self.buffers.check().or_else(refuse)?;
        self.egress.check().or_else(refuse)?;
        self.check_tenants()
    }

    fn check_tenants(&self) -> Result<(), InvalidConfig> {
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
                || limits.max_buffer_mib.is_some_and(|mib| mib == 0 || mib > 1 << 30)
            {
                return refuse(format!(
                    "{name}: max_connections must be at least 1, max_buffer_mib 1 to 1073741824"
                ));
            }
            check_limits(&limits.max_limits)
                .map_err(|error| format!("max_limits: {error}"))
                .and_then(|()| limits.total_limits.check())
                .or_else(|error| refuse(format!("{name}: {error}")))?;
        }
        for (at, tenant) in self.tenants.iter().enumerate() {
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

/// The longest times that can be set.
const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 3600);
/// Bounds on rates of requests, per second.
const MIN_RATE: f64 = 0.001;
const MAX_RATE: f64 = 1e6;

/// Durations as people write them: `90s`, `10min`, `1h 30min`.
pub(super) mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(|e| {
            serde::de::Error::custom(format!("`{text}` is no duration such as 10min: {e}"))
        })
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
                "token_blake3 must be 64 hexadecimal digits: printf %s TOKEN | b3sum --no-names",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_at_all_is_a_configuration_and_what_is_written_is_read_again() {
        let config = ServiceConfig::parse("").unwrap();
        assert_eq!(config, ServiceConfig::default());
        let text = toml::to_string(&config).unwrap();
        assert_eq!(ServiceConfig::parse(&text).unwrap(), config);
    }

    #[test]
    fn everything_can_be_set() {
        let config = ServiceConfig::parse(
            r#"
            ttl = "10min"
            idle_timeout = "90s"
            journal = "/tmp/journal"
            allowed_hosts = ["Build.example", "ci.example:7070"]
            [admission]
            max_queued = 5
            deadline = "2s"
            max_starts = 3
            [pressure]
            cpu_some = { begin = 90.0, end = 50.0 }
            disk_promised = { begin = 100.0, end = 95.0 }
            [pool]
            cpu = 0.5
            memory_mib = 1024
            [goldens.default]
            floor = 4
            [max_limits]
            memory_mib = 2048
            cpus = 2.0
            [connections]
            max_unknown = 5
            unknown_for = "2s"
            [buffers]
            total_mib = 64
            [tenant_limits]
            max_sessions = 7
            max_limits = { cpus = 4.0, disk_mib = 9 }
            total_limits = { memory_mib = 4096, cpus = 8.0 }
            max_connections = 10
            max_buffer_mib = 3
            [[tenants]]
            name = "ci"
            token_blake3 = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
            limits = { requests_per_second = 0.5 }
            "#,
        )
        .unwrap();
        assert_eq!(
            (config.ttl, config.idle_timeout),
            (Duration::from_secs(600), Duration::from_secs(90))
        );
        assert_eq!((config.admission.max_queued, config.admission.max_starts), (5, Some(3)));
        assert_eq!(config.admission.max_deadline, AdmissionConfig::default().max_deadline);
        assert_eq!(config.goldens["default"], PoolConfig { floor: 4, ..PoolConfig::default() });
        assert_eq!(config.pressure.cpu_some, Some(Threshold { begin: 90.0, end: 50.0 }));
        assert_eq!(config.pressure.disk_promised, Some(Threshold { begin: 100.0, end: 95.0 }));
        assert_eq!(config.pressure.disk_used, PressureConfig::default().disk_used);
        assert_eq!(
            config.allowed_hosts,
            ["build.example".parse().unwrap(), "ci.example:7070".parse().unwrap()]
        );
        assert_eq!(ServiceConfig::parse(&toml::to_string(&config).unwrap()).unwrap(), config);
        assert_eq!(config.journal_dir(&Layout::new("/h", "/r")), Path::new("/tmp/journal"));
        let ci = TenantName::new("ci").unwrap();
        // That is the hash of these three letters.
        assert_eq!(config.tenant_of_token("abc"), Some(&ci));
        assert_eq!(config.tenant_of_token("abd"), None);
        assert_eq!(config.limits_of(&ci).requests_per_second, 0.5);
        assert_eq!(config.limits_of(&ci).max_sessions, TenantLimits::default().max_sessions);
        let local = config.limits_of(&TenantName::local());
        assert_eq!((local.max_sessions, local.max_connections), (7, Some(10)));
        assert_eq!((local.total_limits.cpus, local.max_buffer_mib), (Some(8.0), Some(3)));
        let ceiling = config.ceiling_of(&TenantName::local());
        assert_eq!(
            (ceiling.memory_mib, ceiling.cpus, ceiling.disk_mib),
            (Some(2048), Some(2.0), Some(9))
        );
        assert_eq!(config.ceiling_of(&ci), config.max_limits);
        assert_eq!((config.connections.max_unknown, config.buffers.total_mib), (5, Some(64)));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let hash = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        let twice = format!(
            "[[tenants]]\nname = 'a'\ntoken_blake3 = '{hash}'\n[[tenants]]\nname = 'b'\ntoken_blake3 = '{hash}'\n"
        );
        for (text, word) in [
            ("tll = '1h'", "tll"),
            ("ttl = '1 parsec'", "parsec"),
            ("ttl = '0s'", "ttl"),
            ("ttl = '48h'", "max_ttl"),
            ("idle_timeout = '0s'", "idle_timeout"),
            ("allowed_hosts = ['https://build.example']", "NAME:PORT"),
            ("admission = { deadline = '1h' }", "deadline"),
            ("admission = { max_starts = 0 }", "max_starts"),
            ("pool = { cpu = 0.0 }", "pool.cpu"),
            ("pool = { cpu = nan }", "pool.cpu"),
            ("pool = { concurrency = 0 }", "concurrency"),
            ("pressure = { memory_used = { begin = 50.0, end = 60.0 } }", "memory_used"),
            ("pressure = { interval = '0s' }", "interval"),
            ("pressure = { disk_promised = { begin = 50.0, end = 60.0 } }", "disk_promised"),
            ("goldens = { '../x' = {} }", "goldens"),
            ("goldens = { a = { floor = 9, max_standbys = 8 } }", "floor"),
            ("tenant_limits = { requests_per_second = 0.0 }", "requests_per_second"),
            ("egress = { exempt_networks = ['127.0.0.0/8'] }", "exempt_networks"),
            ("egress = { exempt_networks = ['10.0.0.0/33'] }", "10.0.0.0/33"),
            ("tenant_limits = { burst = 0 }", "burst"),
            ("max_limits = { memory_mib = 1 }", "max_limits"),
            ("tenant_limits = { max_limits = { cpus = nan } }", "tenant_limits: max_limits"),
            ("tenant_limits = { total_limits = { cpus = -1.0 } }", "total_limits.cpus"),
            ("tenant_limits = { total_limits = { io_mib_per_second = 1 } }", "io_mib_per_second"),
            ("tenant_limits = { max_connections = 0 }", "max_connections"),
            ("tenant_limits = { max_buffer_mib = 0 }", "max_buffer_mib"),
            ("connections = { max_unknown = 8192 }", "max_remote"),
            ("connections = { max_local = 0 }", "at least 1"),
            ("connections = { unknown_for = '0s' }", "unknown_for"),
            ("buffers = { total_mib = 1 }", "total_mib"),
            ("[[tenants]]\nname = 'a b'\ntoken_blake3 = ''", "tenant name"),
            ("[[tenants]]\nname = 'a'\ntoken_blake3 = 'abc'", "token_blake3"),
            (twice.as_str(), "another tenant's"),
        ] {
            let error = ServiceConfig::parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        let error = ServiceConfig::load(Path::new("/no/such/file")).unwrap_err().to_string();
        assert!(error.contains("/no/such/file"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mayfly.toml");
        for text in ["tll = '1h'", "ttl = '0s'"] {
            std::fs::write(&path, text).unwrap();
            let error = ServiceConfig::load(&path).unwrap_err().to_string();
            assert!(
                error.contains(path.to_str().unwrap()) && error.contains(&text[..3]),
                "{error}"
            );
        }
    }
}
