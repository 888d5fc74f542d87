//! Configurations that can be used, and those that cannot.

use std::path::Path;
use std::time::Duration;

use mayfly_api::TenantName;
use mayfly_host::layout::Layout;

use super::{AdmissionConfig, PoolConfig, PressureConfig, ServiceConfig, TenantLimits, Threshold};

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
    let local = format!("[[tenants]]\nname = 'default'\ntoken_blake3 = '{hash}'\n");
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
        ("session_limits = { cpus = nan }", "session_limits: limits.cpus"),
        ("session_limits = { memory_mib = 17592186044416 }", "session_limits: limits.memory_mib"),
        ("session_limits = { disk_mib = 17592186044416 }", "session_limits: limits.disk_mib"),
        ("session_limits = { io_mib_per_second = 0 }", "session_limits: limits.io_mib_per_second"),
        ("pool = { memory_mib = 17592186044416 }", "pool.memory_mib"),
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
        (local.as_str(), "the name of whoever uses the Unix socket"),
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
        assert!(error.contains(path.to_str().unwrap()) && error.contains(&text[..3]), "{error}");
    }
}
