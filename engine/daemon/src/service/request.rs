//! Validation of a request for a session, before anything is done for it.

use std::collections::BTreeMap;
use std::time::Duration;

use mayfly_api::{CreateSession, Publish, SessionLimits, TenantName, check_user};
use mayfly_host::cgroup::Limits;
use mayfly_snapshotter::GoldenName;

use super::ceilings::{self, HostSize};
use super::config::ServiceConfig;
use super::egress::Granted;
use super::error::CreateError;
use super::idempotency::MAX_KEY_LEN;

const MAX_METADATA: usize = 64;
const MAX_METADATA_BYTES: usize = 1 << 10;
const MAX_ENV: usize = 256;
const MAX_ENV_BYTES: usize = 128 << 10;
/// Disk space, and bytes per second, in MiB.
const DISK_MIB: std::ops::RangeInclusive<u64> = 1..=1 << 30;
/// Bounds on what a session may ask for. Less memory than this cannot even hold the VMM.
const MEMORY_MIB: std::ops::RangeInclusive<u64> = 64..=1 << 20;
const CPUS: std::ops::RangeInclusive<f64> = 0.01..=1024.0;

/// A request that can be met, with the defaults filled in.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    pub golden: String,
    pub env: BTreeMap<String, String>,
    pub user: Option<String>,
    pub metadata: BTreeMap<String, String>,
    /// Those of the request, and where it says nothing the operator's defaults.
    pub limits: SessionLimits,
    pub egress: Option<Granted>,
    pub ttl: Duration,
    pub idle_timeout: Duration,
    pub deadline: Duration,
    pub wait_docker: bool,
    pub publish: Option<Publish>,
}

pub(super) fn check(
    config: &ServiceConfig,
    tenant: &TenantName,
    host: HostSize,
    request: &CreateSession,
) -> Result<Checked, CreateError> {
    let bad = CreateError::bad_request;
    GoldenName::new(request.golden.as_str()).map_err(|e| bad(e.to_string()))?;
    let egress = config.egress.grant(&request.egress).map_err(bad)?;
    config.publish.check(request.publish).map_err(bad)?;
    let most = config.max_ttl.as_secs();
    let seconds = |name: &str, asked: Option<u64>, default: Duration| match asked {
        None => Ok(default),
        Some(s) if (1..=most).contains(&s) => Ok(Duration::from_secs(s)),
        Some(s) => Err(bad(format!("{name} must be 1 to {most}, not {s}"))),
    };
    let ttl = seconds("ttl_seconds", request.ttl_seconds, config.ttl)?;
    let idle_timeout =
        seconds("idle_timeout_seconds", request.idle_timeout_seconds, config.idle_timeout)?;
    let longest = config.admission.max_deadline;
    let deadline = request.deadline_ms.map_or(config.admission.deadline, Duration::from_millis);
    if deadline > longest {
        return Err(bad(format!(
            "deadline_ms must be at most {}, not {}",
            longest.as_millis(),
            deadline.as_millis()
        )));
    }
    check_env(&request.env)?;
    if let Some(user) = &request.user {
        check_user(user).map_err(|error| bad(error.to_string()))?;
    }
    check_metadata(&request.metadata)?;
    check_limits(&request.limits).map_err(bad)?;
    ceilings::check(&request.limits, &config.ceiling_of(tenant), host)?;
    Ok(Checked {
        golden: request.golden.clone(),
        env: request.env.clone(),
        user: request.user.clone(),
        metadata: request.metadata.clone(),
        limits: request.limits.or(config.session_limits),
        egress,
        ttl,
        idle_timeout,
        deadline,
        wait_docker: request.wait_docker,
        publish: request.publish,
    })
}

/// An idempotency key is any text of bounded length.
pub(super) fn check_key(key: &str) -> Result<(), CreateError> {
    if (1..=MAX_KEY_LEN).contains(&key.len()) {
        return Ok(());
    }
    Err(CreateError::bad_request(format!(
        "an idempotency key has 1 to {MAX_KEY_LEN} bytes, not {}",
        key.len()
    )))
}

impl Checked {
    /// Bytes of what is kept for its owner as long as the session lives.
    pub fn kept_bytes(&self) -> usize {
        let pairs = self.env.iter().chain(&self.metadata);
        let pairs: usize = pairs.map(|(name, value)| name.len() + value.len()).sum();
        pairs + self.user.as_ref().map_or(0, String::len)
    }
}

/// Checks bounds that somebody asks for.
///
/// # Errors
/// Says which bound cannot be, and what it may be.
pub fn check_limits(limits: &SessionLimits) -> Result<(), String> {
    for (what, mib) in
        [("disk_mib", limits.disk_mib), ("io_mib_per_second", limits.io_mib_per_second)]
    {
        if let Some(mib) = mib.filter(|mib| !DISK_MIB.contains(mib)) {
            let (least, most) = (DISK_MIB.start(), DISK_MIB.end());
            return Err(format!("limits.{what} must be {least} to {most}, not {mib}"));
        }
    }
    if let Some(mib) = limits.memory_mib.filter(|mib| !MEMORY_MIB.contains(mib)) {
        let (least, most) = (MEMORY_MIB.start(), MEMORY_MIB.end());
        return Err(format!("limits.memory_mib must be {least} to {most}, not {mib}"));
    }
    // A range does not contain what is not a number.
    if let Some(cpus) = limits.cpus.filter(|cpus| !CPUS.contains(cpus)) {
        let (least, most) = (CPUS.start(), CPUS.end());
        return Err(format!("limits.cpus must be {least} to {most}, not {cpus}"));
    }
    Ok(())
}

/// Converts what a client asks for to bounds of a VMM.
pub fn vmm_limits(limits: SessionLimits) -> Limits {
    Limits {
        memory_bytes: limits.memory_mib.map(|mib| mib << 20),
        cpus: limits.cpus,
        disk_bytes: limits.disk_mib.map(|mib| mib << 20),
        io_bytes_per_second: limits.io_mib_per_second.map(|mib| mib << 20),
        ..Limits::default()
    }
}

fn check_env(env: &BTreeMap<String, String>) -> Result<(), CreateError> {
    let bytes: usize = env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if env.len() > MAX_ENV || bytes > MAX_ENV_BYTES {
        return Err(CreateError::bad_request(format!(
            "env has {} variables of {bytes} bytes; at most {MAX_ENV} of {MAX_ENV_BYTES} bytes are possible",
            env.len()
        )));
    }
    let invalid = |(name, value): &(&String, &String)| {
        name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
    };
    match env.iter().find(invalid) {
        Some((name, _)) => Err(CreateError::bad_request(format!(
            "env: `{}` cannot be set: a name is not empty and has no `=`, neither name nor value has a zero byte",
            name.escape_debug()
        ))),
        None => Ok(()),
    }
}

fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<(), CreateError> {
    let too_long = |(name, value): &(&String, &String)| {
        name.len() > MAX_METADATA_BYTES || value.len() > MAX_METADATA_BYTES
    };
    if metadata.len() > MAX_METADATA || metadata.iter().any(|entry| too_long(&entry)) {
        return Err(CreateError::bad_request(format!(
            "metadata may have {MAX_METADATA} labels, each name and value at most {MAX_METADATA_BYTES} bytes"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_api::EgressPolicy;

    const HOST: HostSize = HostSize { memory_mib: 1 << 20, processors: 1024 };

    fn request() -> CreateSession {
        CreateSession { golden: "default".into(), ..CreateSession::default() }
    }

    #[test]
    fn defaults_are_filled_in() {
        let config = ServiceConfig::default();
        let checked = check(&config, &TenantName::local(), HOST, &request()).unwrap();
        assert_eq!((checked.ttl, checked.idle_timeout), (config.ttl, config.idle_timeout));
        assert_eq!(checked.deadline, config.admission.deadline);
        assert_eq!(vmm_limits(checked.limits), Limits::default());
    }

    #[test]
    fn a_ceiling_of_the_operator_holds_for_each_tenant() {
        let hash = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        let config = ServiceConfig::parse(&format!(
            "session_limits = {{ cpus = 0.5 }}\nmax_limits = {{ memory_mib = 512, cpus = 1.0 }}\n\
             [[tenants]]\nname = 'red'\ntoken_blake3 = '{hash}'\n\
             limits = {{ max_limits = {{ memory_mib = 256 }} }}\n"
        ))
        .unwrap();
        let (local, red) = (TenantName::local(), TenantName::new("red").unwrap());
        let asks = |tenant, memory_mib, cpus| {
            let limits = SessionLimits { memory_mib, cpus, ..SessionLimits::default() };
            check(&config, tenant, HOST, &CreateSession { limits, ..request() })
        };
        let met = asks(&local, Some(512), None).unwrap();
        assert_eq!((met.limits.memory_mib, met.limits.cpus), (Some(512), Some(0.5)));
        for refused in [
            asks(&red, Some(512), None),
            asks(&local, Some(513), None),
            asks(&local, None, Some(64.0)),
        ] {
            assert_eq!(refused.unwrap_err().code(), "above_ceiling");
        }
        asks(&red, Some(256), Some(1.0)).unwrap();
    }

    #[test]
    fn what_cannot_be_met_is_named() {
        let limits =
            |memory_mib, cpus| SessionLimits { memory_mib, cpus, ..SessionLimits::default() };
        let disk =
            |disk_mib| SessionLimits { disk_mib: Some(disk_mib), ..SessionLimits::default() };
        let map = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let many: BTreeMap<String, String> =
            (0..65).map(|n| (n.to_string(), String::new())).collect();
        for (request, word) in [
            (CreateSession { golden: "../x".into(), ..request() }, "golden image name"),
            (CreateSession { ttl_seconds: Some(0), ..request() }, "ttl_seconds"),
            (CreateSession { ttl_seconds: Some(u64::MAX), ..request() }, "ttl_seconds"),
            (CreateSession { idle_timeout_seconds: Some(0), ..request() }, "idle_timeout_seconds"),
            (CreateSession { deadline_ms: Some(u64::MAX), ..request() }, "deadline_ms"),
            (CreateSession { limits: limits(Some(1), None), ..request() }, "memory_mib"),
            (CreateSession { limits: limits(Some(u64::MAX), None), ..request() }, "memory_mib"),
            (CreateSession { limits: limits(None, Some(f64::NAN)), ..request() }, "cpus"),
            (CreateSession { limits: limits(None, Some(-1.0)), ..request() }, "cpus"),
            (CreateSession { limits: disk(0), ..request() }, "disk_mib"),
            (CreateSession { limits: disk(u64::MAX), ..request() }, "disk_mib"),
            (CreateSession { env: map("A=B", ""), ..request() }, "env"),
            (CreateSession { env: map("", ""), ..request() }, "env"),
            (CreateSession { env: map("A", "\0"), ..request() }, "env"),
            (CreateSession { env: map("A", &"x".repeat(MAX_ENV_BYTES)), ..request() }, "env"),
            (CreateSession { metadata: map("a", &"x".repeat(1025)), ..request() }, "metadata"),
            (CreateSession { metadata: many, ..request() }, "metadata"),
            (CreateSession { user: Some(String::new()), ..request() }, "user"),
            (CreateSession { user: Some("a\nb".into()), ..request() }, "user"),
            (CreateSession { user: Some("x".repeat(257)), ..request() }, "user"),
            (
                CreateSession {
                    egress: EgressPolicy { allow: vec!["a:1".into()], ..EgressPolicy::default() },
                    ..request()
                },
                "egress",
            ),
        ] {
            let error =
                check(&ServiceConfig::default(), &TenantName::local(), HOST, &request).unwrap_err();
            assert!(
                matches!(error, CreateError::BadRequest { .. }) && error.to_string().contains(word),
                "{error}"
            );
        }
        assert!(
            check_key("").is_err()
                && check_key(&"k".repeat(256)).is_err()
                && check_key("k").is_ok()
        );
    }
}
