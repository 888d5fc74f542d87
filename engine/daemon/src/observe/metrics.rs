//! The daemon's metrics, in the OpenMetrics text format.

use std::time::Duration;

use mayfly_api::{Tier, TierLatency};
use mayfly_engine::DiskUsage;
use mayfly_guest::egress::{EgressRecord, Observer};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::labels::Values;
use super::process::OwnProcess;
use super::recent::Recent;

/// Media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Most golden images with time series of their own.
const GOLDENS: usize = 256;
/// Most reasons with time series of their own, for each metric that has them.
const REASONS: usize = 32;

/// Bounds of the buckets of every duration in seconds: 0.5 ms to 10 s, dense where the targets lie.
const BUCKETS: [f64; 25] = [
    0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1,
    0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfGolden {
    golden: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTier {
    golden: String,
    tier: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFigure {
    figure: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfEgress {
    kind: &'static str,
    verdict: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDirection {
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfGoldenAndReason {
    golden: String,
    reason: String,
}

type Durations<Labels> = Family<Labels, Histogram, fn() -> Histogram>;

fn durations<Labels: Clone + std::hash::Hash + Eq>() -> Durations<Labels> {
    Family::new_with_constructor(|| Histogram::new(BUCKETS))
}

/// Counters, gauges and histograms of one daemon. Cheap to update from many tasks at a time.
pub struct Metrics {
    registry: Registry,
    goldens: Values,
    reasons: Reasons,
    recent: Recent,
    start_agent: Durations<OfTier>,
    start_docker: Durations<OfTier>,
    start_failures: Family<OfGoldenAndReason, Counter>,
    rejected: Family<OfReason, Counter>,
    standbys: Family<OfGolden, Gauge>,
    shells: Family<OfGolden, Gauge>,
    filling: Family<OfGolden, Gauge>,
    target: Family<OfGolden, Gauge>,
    standby_build: Durations<OfGolden>,
    discard: Durations<OfGoldenAndReason>,
    faults: Family<OfGolden, Counter>,
    fills: Family<OfGolden, Counter>,
    filled_bytes: Family<OfGolden, Counter>,
    egress: Family<OfEgress, Counter>,
    egress_bytes: Family<OfDirection, Counter>,
    live: Gauge,
    queued: Gauge,
    leaks: Gauge,
    pressure: Family<OfFigure, Gauge>,
    disk: DiskGauges,
}

/// Space for the disks of sessions, in bytes.
#[derive(Default)]
struct DiskGauges {
    total: Gauge,
    available: Gauge,
    written: Gauge,
    promised: Gauge,
}

/// Reasons are words of ours, but some are made from errors: each metric has a bound of its own.
struct Reasons {
    failed: Values,
    rejected: Values,
    discarded: Values,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").field("live", &self.live.get()).finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Creates metrics that are all at zero.
    pub fn new() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("mayfly"),
            goldens: Values::new(GOLDENS),
            reasons: Reasons {
                failed: Values::new(REASONS),
                rejected: Values::new(REASONS),
                discarded: Values::new(REASONS),
            },
            recent: Recent::default(),
            start_agent: durations(),
            start_docker: durations(),
            start_failures: Family::default(),
            rejected: Family::default(),
            standbys: Family::default(),
            shells: Family::default(),
            filling: Family::default(),
            target: Family::default(),
            standby_build: durations(),
            discard: durations(),
            faults: Family::default(),
            fills: Family::default(),
            filled_bytes: Family::default(),
            egress: Family::default(),
            egress_bytes: Family::default(),
            live: Gauge::default(),
            queued: Gauge::default(),
            leaks: Gauge::default(),
            pressure: Family::default(),
            disk: DiskGauges::default(),
        };
        metrics.registered()
    }

    /// Names everything. The text after each name is what a person reads in Prometheus.
    fn registered(mut self) -> Self {
        let all = &mut self.registry;
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        all.register("build", "Version of the daemon", build);
        all.register_collector(Box::new(OwnProcess));
        all.register("sessions_live", "Sessions that live", self.live.clone());
        all.register("requests_queued", "Requests that wait for a session", self.queued.clone());
        all.register(
            "leaks",
            "Things of ended sessions found left on the host; 0 is right",
            self.leaks.clone(),
        );
        all.register(
            "pressure",
            "Whether new sessions are held back because of this figure",
            self.pressure.clone(),
        );
        for (name, text, gauge) in [
            ("disk_total", "Space for the disks of sessions", &self.disk.total),
            (
                "disk_available",
                "Space for the disks of sessions that is free",
                &self.disk.available,
            ),
            ("disk_written", "What disks of sessions and standbys have", &self.disk.written),
            ("disk_promised", "What they may still take", &self.disk.promised),
        ] {
            all.register_with_unit(name, text, Unit::Bytes, gauge.clone());
        }
        all.register(
            "requests_rejected",
            "Requests for a session that were turned away",
            self.rejected.clone(),
        );
        all.register(
            "start_failures",
            "Sessions that failed to start",
            self.start_failures.clone(),
        );
        all.register("pool_standbys", "Standbys that wait", self.standbys.clone());
        all.register("pool_shells", "Shells that wait", self.shells.clone());
        all.register("pool_filling", "Standbys in the making", self.filling.clone());
        all.register("pool_target", "Standbys the policy wants now", self.target.clone());
        all.register(
            "page_faults",
            "Faults of ended sessions that the pager answered",
            self.faults.clone(),
        );
        all.register(
            "page_fills",
            "Chunks the pager filled for ended sessions",
            self.fills.clone(),
        );
        let text = "Bytes the pager filled for ended sessions";
        all.register_with_unit("page_fill", text, Unit::Bytes, self.filled_bytes.clone());
        all.register(
            "egress_requests",
            "Requests of sessions to the outside that are over",
            self.egress.clone(),
        );
        let text = "Bytes of ended connections of sessions to the outside";
        all.register_with_unit("egress", text, Unit::Bytes, self.egress_bytes.clone());
        let text = "From admission until the guest agent had taken its identity";
        all.register_with_unit("start_agent", text, Unit::Seconds, self.start_agent.clone());
        let text = "From admission until Docker answered, where that was asked for";
        all.register_with_unit("start_docker", text, Unit::Seconds, self.start_docker.clone());
        all.register_with_unit(
            "standby_build",
            "Time to make a standby",
            Unit::Seconds,
            self.standby_build.clone(),
        );
        all.register_with_unit(
            "session_discard",
            "Time to discard a session",
            Unit::Seconds,
            self.discard.clone(),
        );
        self
    }

    /// Counts a session that was handed out. `agent` and `docker` count from admission.
    pub fn started(&self, golden: &str, tier: Tier, agent: Duration, docker: Option<Duration>) {
        let labels = OfTier { golden: self.goldens.admit(golden), tier: tier.word() };
        self.start_agent.get_or_create(&labels).observe(agent.as_secs_f64());
        if let Some(docker) = docker {
            self.start_docker.get_or_create(&labels).observe(docker.as_secs_f64());
        }
        self.recent.push(tier, agent);
    }

    /// Counts a session that could not be started; `kind` is a word for the cause.
    pub fn start_failed(&self, golden: &str, kind: &str) {
        let labels = OfGoldenAndReason {
            golden: self.goldens.admit(golden),
            reason: self.reasons.failed.admit(kind),
        };
        self.start_failures.get_or_create(&labels).inc();
    }

    /// Counts a request that was turned away; `reason` is a word such as `queue_full`.
    pub fn rejected(&self, reason: &str) {
        self.rejected
            .get_or_create(&OfReason { reason: self.reasons.rejected.admit(reason) })
            .inc();
    }

    /// Sets the figures of a golden's pool to what they are now.
    pub fn pool(
        &self,
        golden: &str,
        standbys: usize,
        shells: usize,
        filling: usize,
        target: usize,
    ) {
        let labels = OfGolden { golden: self.goldens.admit(golden) };
        let gauges = [&self.standbys, &self.shells, &self.filling, &self.target];
        for (gauge, value) in gauges.into_iter().zip([standbys, shells, filling, target]) {
            gauge.get_or_create(&labels).set(level(value));
        }
    }

    /// Removes the gauges of a golden that keeps no pool any more; its counters and histograms
    /// stay.
    pub fn pool_gone(&self, golden: &str) {
        let labels = OfGolden { golden: self.goldens.admit(golden) };
        for gauge in [&self.standbys, &self.shells, &self.filling, &self.target] {
            gauge.remove(&labels);
        }
    }

    /// Counts a standby that was made.
    pub fn standby_made(&self, golden: &str, took: Duration) {
        let labels = OfGolden { golden: self.goldens.admit(golden) };
        self.standby_build.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Counts a session that was discarded; `reason` is a word such as `ttl`.
    pub fn discarded(&self, golden: &str, took: Duration, reason: &str) {
        let labels = OfGoldenAndReason {
            golden: self.goldens.admit(golden),
            reason: self.reasons.discarded.admit(reason),
        };
        self.discard.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Adds what the pager did for one session.
    pub fn faults(&self, golden: &str, faults: u64, fills: u64, bytes: u64) {
        let labels = OfGolden { golden: self.goldens.admit(golden) };
        self.faults.get_or_create(&labels).inc_by(faults);
        self.fills.get_or_create(&labels).inc_by(fills);
        self.filled_bytes.get_or_create(&labels).inc_by(bytes);
    }

    /// Sets the number of sessions that live now.
    pub fn live(&self, sessions: usize) {
        self.live.set(level(sessions));
    }

    /// Requests that wait now.
    pub fn queued(&self, requests: usize) {
        self.queued.set(level(requests));
    }

    /// Sets how many things of ended sessions the last look found left on the host.
    pub fn leaks(&self, things: usize) {
        self.leaks.set(level(things));
    }

    /// A figure of the host is, or is not, a reason to hold new sessions back.
    pub fn pressure(&self, figure: &'static str, on: bool) {
        self.pressure.get_or_create(&OfFigure { figure }).set(on.into());
    }

    /// Space for the disks of sessions as it is now.
    pub fn disk(&self, usage: &DiskUsage) {
        let disk = &self.disk;
        for (gauge, bytes) in [
            (&disk.total, usage.total_bytes),
            (&disk.available, usage.available_bytes),
            (&disk.written, usage.written_bytes),
            (&disk.promised, usage.promised_bytes),
        ] {
            gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }

    /// Encodes all metrics in the OpenMetrics text format ([`CONTENT_TYPE`]).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    /// Returns the start latency by tier over the last starts, at most 512 of each tier; a tier
    /// without any is left out.
    pub fn latency(&self) -> Vec<TierLatency> {
        self.recent.latency()
    }
}

impl Observer for Metrics {
    fn record(&self, record: &EgressRecord) {
        let labels = OfEgress { kind: record.kind.word(), verdict: record.verdict.word() };
        self.egress.get_or_create(&labels).inc();
        for (direction, bytes) in [("up", record.bytes_up), ("down", record.bytes_down)] {
            self.egress_bytes.get_or_create(&OfDirection { direction }).inc_by(bytes);
        }
    }
}

fn level(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_named_and_counted() {
        let metrics = Metrics::new();
        let ms = Duration::from_millis;
        metrics.started("default", Tier::Standby, Duration::from_micros(1800), Some(ms(4)));
        metrics.started("default", Tier::Cold, ms(90), None);
        metrics.start_failed("default", "no answer");
        metrics.rejected("queue_full");
        metrics.rejected("queue_full");
        metrics.pool("default", 3, 1, 2, 4);
        metrics.standby_made("default", ms(250));
        metrics.discarded("default", ms(12), "ttl");
        metrics.faults("default", 100, 7, 458_752);
        metrics.faults("default", 1, 1, 65_536);
        metrics.live(5);
        metrics.queued(6);
        let text = metrics.encode();
        for line in [
            concat!("mayfly_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "mayfly_sessions_live 5",
            "mayfly_requests_queued 6",
            "mayfly_leaks 0",
            "mayfly_requests_rejected_total{reason=\"queue_full\"} 2",
            "mayfly_start_failures_total{golden=\"default\",reason=\"no_answer\"} 1",
            "mayfly_pool_standbys{golden=\"default\"} 3",
            "mayfly_pool_shells{golden=\"default\"} 1",
            "mayfly_pool_filling{golden=\"default\"} 2",
            "mayfly_pool_target{golden=\"default\"} 4",
            "mayfly_page_faults_total{golden=\"default\"} 101",
            "mayfly_page_fills_total{golden=\"default\"} 8",
            "mayfly_page_fill_bytes_total{golden=\"default\"} 524288",
            "mayfly_start_agent_seconds_bucket{le=\"0.0015\",golden=\"default\",tier=\"standby\"} 0",
            "mayfly_start_agent_seconds_bucket{le=\"0.002\",golden=\"default\",tier=\"standby\"} 1",
            "mayfly_start_agent_seconds_count{golden=\"default\",tier=\"cold\"} 1",
            "mayfly_start_docker_seconds_count{golden=\"default\",tier=\"standby\"} 1",
            "mayfly_standby_build_seconds_count{golden=\"default\"} 1",
            "mayfly_session_discard_seconds_count{golden=\"default\",reason=\"ttl\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
        }
        for name in ["resident_memory_bytes", "open_descriptors", "cpu_seconds_total"] {
            assert!(
                text.lines().any(|line| line.starts_with(&format!("mayfly_process_{name} "))),
                "{name} in\n{text}"
            );
        }
        assert!(!text.contains("start_docker_seconds_count{golden=\"default\",tier=\"cold\"}"));
        metrics.pool_gone("default");
        assert!(!metrics.encode().contains("mayfly_pool_standbys{"));
    }

    #[test]
    fn buckets_rise_from_half_a_millisecond_to_ten_seconds() {
        assert!(BUCKETS.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!((BUCKETS[0], BUCKETS[BUCKETS.len() - 1]), (0.0005, 10.0));
    }

    #[test]
    fn latency_is_that_of_the_agent() {
        let metrics = Metrics::new();
        metrics.started(
            "default",
            Tier::Shell,
            Duration::from_millis(7),
            Some(Duration::from_millis(70)),
        );
        let latency = metrics.latency();
        assert_eq!((latency.len(), latency[0].tier, latency[0].summary.p99), (1, Tier::Shell, 7.0));
    }
}
