//! Whether the host is short of something: stalls, available memory, the bound of our own cgroup and
//! the space for disks, with hysteresis.
//!
//! A session that waits at a bound of its own shows in the stalls of the whole host (PSI), and must
//! not close it for others. So a stall counts only together with a figure of the host itself. PSI
//! of cgroups would not do: cgroup v1 has none, and it does not tell a wait at a bound from one for
//! the host.
//!
//! Works with what there is: a kernel without PSI has `/proc/meminfo` still, and a cgroup without a
//! bound says nothing.

mod reading;

use std::sync::Arc;

use mayfly_engine::DiskUsage;
use parking_lot::Mutex;

pub use self::reading::{Host, Reading};
use crate::observe::Metrics;
use crate::service::config::{PressureConfig, Threshold};

/// Percent of the host's memory, or of our cgroup's bound, from which stalls for memory count: with
/// more left, nobody waits for it but at a bound of its own.
const MEMORY_SCARCE: Threshold = Threshold { begin: 80.0, end: 75.0 };
/// Requests at a disk at a time. One task that waits for each of its own has one or two there, and
/// the disk could do more.
const DISK_QUEUE: Threshold = Threshold { begin: 4.0, end: 2.0 };
/// Percent of the time in which the processors work.
const CPU_BUSY: Threshold = Threshold { begin: 90.0, end: 80.0 };

/// Monitor that follows readings; see [`Monitor::update`].
#[derive(Debug)]
pub struct Monitor {
    gauges: [Gauge; 8],
}

/// A figure of the configuration.
#[derive(Debug)]
struct Gauge {
    /// Its key in the configuration.
    name: &'static str,
    what: &'static str,
    level: Level,
    /// What must be over its threshold, too, for it to count.
    only_with: Option<Level>,
    on: bool,
}

/// A value that is over its threshold, or not.
#[derive(Debug)]
struct Level {
    value: fn(&Reading) -> Option<f64>,
    /// `None` is not looked at.
    threshold: Option<Threshold>,
    on: bool,
}

impl Level {
    fn new(value: fn(&Reading) -> Option<f64>, threshold: Option<Threshold>) -> Self {
        Self { value, threshold, on: false }
    }

    fn update(&mut self, reading: &Reading) -> bool {
        self.on = match ((self.value)(reading), self.threshold) {
            (None, _) | (_, None) => false,
            (Some(value), Some(threshold)) if self.on => value >= threshold.end,
            (Some(value), Some(threshold)) => value >= threshold.begin,
        };
        self.on
    }
}

impl Gauge {
    fn new(
        name: &'static str,
        what: &'static str,
        value: fn(&Reading) -> Option<f64>,
        threshold: Option<Threshold>,
    ) -> Self {
        let level = Level::new(value, threshold);
        Self { name, what, level, only_with: None, on: false }
    }

    /// Has it count only while `value` is over `threshold`.
    fn only_with(mut self, value: fn(&Reading) -> Option<f64>, threshold: Threshold) -> Self {
        self.only_with = Some(Level::new(value, Some(threshold)));
        self
    }

    fn update(&mut self, reading: &Reading) {
        // Each is updated, whatever the other is.
        let with = self.only_with.as_mut().is_none_or(|level| level.update(reading));
        self.on = self.level.update(reading) && with;
    }
}

/// Memory in use where some had to be freed for somebody who was not at a bound of a session: of the
/// host, or of our cgroup. Where that is not told, in any case.
fn scarce(reading: &Reading) -> Option<f64> {
    let freed = |used: Option<f64>, times: Option<f64>| {
        used.filter(|_| times.is_none_or(|times| times > 0.0))
    };
    let host = freed(reading.memory_used, reading.reclaims);
    let own = freed(reading.cgroup_used, reading.cgroup_reclaims);
    host.into_iter().chain(own).reduce(f64::max)
}

impl Monitor {
    /// Creates a monitor that has seen nothing yet.
    pub fn new(config: &PressureConfig) -> Self {
        Self {
            gauges: [
                Gauge::new(
                    "memory_used",
                    "of the host's memory is in use",
                    |r| r.memory_used,
                    Some(config.memory_used),
                ),
                Gauge::new(
                    "cgroup_used",
                    "of the daemon's memory bound is in use",
                    |r| r.cgroup_used,
                    Some(config.cgroup_used),
                ),
                Gauge::new(
                    "memory_some",
                    "of the time some task waits for memory",
                    |r| r.memory_some,
                    Some(config.memory_some),
                )
                .only_with(scarce, MEMORY_SCARCE),
                Gauge::new(
                    "memory_full",
                    "of the time all tasks wait for memory",
                    |r| r.memory_full,
                    Some(config.memory_full),
                )
                .only_with(scarce, MEMORY_SCARCE),
                Gauge::new(
                    "io_full",
                    "of the time all tasks wait for storage",
                    |r| r.io_full,
                    Some(config.io_full),
                )
                .only_with(|r| r.disk_queue, DISK_QUEUE),
                Gauge::new(
                    "cpu_some",
                    "of the time some task waits for a processor",
                    |r| r.cpu_some,
                    config.cpu_some,
                )
                .only_with(|r| r.cpu_busy, CPU_BUSY),
                Gauge::new(
                    "disk_used",
                    "of the space for disks is in use",
                    |r| r.disk_used,
                    Some(config.disk_used),
                ),
                Gauge::new(
                    "disk_promised",
                    "of the free space for disks is promised to those that there are",
                    |r| r.disk_promised,
                    config.disk_promised,
                ),
            ],
        }
    }

    /// Takes a reading; returns what the host is short of, if anything. A figure counts from its
    /// `begin` on until it is below its `end`.
    pub fn update(&mut self, reading: &Reading) -> Option<String> {
        let mut reasons = Vec::new();
        for gauge in &mut self.gauges {
            gauge.update(reading);
            if let Some(value) = (gauge.level.value)(reading).filter(|_| gauge.on) {
                reasons.push(format!("{value:.0} % {}", gauge.what));
            }
        }
        (!reasons.is_empty()).then(|| reasons.join(", "))
    }

    /// Which figures, by their keys in the configuration, are over their limits.
    pub fn figures(&self) -> impl Iterator<Item = (&'static str, bool)> {
        self.gauges.iter().map(|gauge| (gauge.name, gauge.on))
    }
}

/// Looks at the host for ever, and calls `changed` whenever what it is short of begins, ends or is
/// told otherwise. `disk` looks at the space for disks, and may block for a moment.
pub(in crate::service) async fn watch(
    config: PressureConfig,
    disk: impl Fn() -> Option<DiskUsage> + Send + Sync + 'static,
    metrics: Arc<Metrics>,
    changed: impl Fn(Option<String>),
) {
    let disk = Arc::new(disk);
    let host = Arc::new(Mutex::new(Host::this()));
    let mut monitor = Monitor::new(&config);
    let mut interval = tokio::time::interval(config.interval);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = None;
    loop {
        interval.tick().await;
        let (disk, host) = (disk.clone(), host.clone());
        let looking = tokio::task::spawn_blocking(move || host.lock().look(disk().as_ref()));
        let reason = monitor.update(&looking.await.unwrap_or_default());
        monitor.figures().for_each(|(figure, on)| metrics.pressure(figure, on));
        if reason != last {
            match (&reason, &last) {
                (Some(reason), None) => tracing::warn!(%reason, "new sessions are held back"),
                (None, Some(_)) => tracing::info!("new sessions are let in again"),
                _ => {}
            }
            changed(reason.clone());
            last = reason;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn used(memory_used: f64) -> Reading {
        Reading { memory_used: Some(memory_used), ..Reading::default() }
    }

    #[test]
    fn pressure_begins_at_one_level_and_ends_at_another() {
        let mut monitor = Monitor::new(&PressureConfig::default());
        assert_eq!(monitor.update(&used(93.9)), None);
        assert_eq!(
            monitor.update(&used(94.0)).as_deref(),
            Some("94 % of the host's memory is in use")
        );
        assert!(monitor.update(&used(90.0)).is_some());
        assert_eq!(monitor.update(&used(89.9)), None);
        assert_eq!(monitor.update(&used(93.9)), None);
    }

    #[test]
    fn several_reasons_are_all_told_and_what_a_host_does_not_tell_is_no_reason() {
        let mut monitor = Monitor::new(&PressureConfig::default());
        let all = Reading {
            memory_some: Some(50.0),
            memory_full: Some(50.0),
            io_full: Some(90.0),
            cpu_some: Some(100.0),
            memory_used: Some(99.0),
            cgroup_used: Some(99.0),
            reclaims: Some(3.0),
            cgroup_reclaims: Some(3.0),
            disk_queue: Some(20.0),
            cpu_busy: Some(100.0),
            disk_used: Some(99.0),
            disk_promised: Some(900.0),
        };
        // Processors and promises are not looked at unless configured.
        assert_eq!(monitor.update(&all).unwrap().matches('%').count(), 6);
        assert_eq!(monitor.update(&Reading::default()), None);
    }

    #[test]
    fn a_session_that_waits_at_its_own_bounds_is_no_reason() {
        let cpu_some = Some(Threshold { begin: 50.0, end: 30.0 });
        let mut monitor = Monitor::new(&PressureConfig { cpu_some, ..PressureConfig::default() });
        // All that one session can move: it waits in its throttle, at its memory bound, at its
        // processor quota.
        let one = Reading {
            memory_some: Some(95.0),
            memory_full: Some(90.0),
            io_full: Some(99.0),
            cpu_some: Some(99.0),
            memory_used: Some(40.0),
            cgroup_used: None,
            reclaims: Some(0.0),
            cgroup_reclaims: None,
            disk_queue: Some(0.3),
            cpu_busy: Some(20.0),
            disk_used: Some(50.0),
            disk_promised: Some(10.0),
        };
        assert_eq!(monitor.update(&one), None);
        assert!(monitor.figures().all(|(_, on)| !on));
        // Also on a host that is nearly full, as long as it frees memory for nobody else.
        assert_eq!(monitor.update(&Reading { memory_used: Some(93.0), ..one.clone() }), None);
        // And one that frees memory now and then while there is much.
        assert_eq!(monitor.update(&Reading { reclaims: Some(5.0), ..one.clone() }), None);
        // A task that waits for one write after another.
        assert_eq!(monitor.update(&Reading { disk_queue: Some(1.2), ..one.clone() }), None);
        // At the daemon's start there is no figure over time yet.
        let first = Reading { reclaims: None, disk_queue: None, cpu_busy: None, ..one };
        assert_eq!(monitor.update(&first), None);
    }

    #[test]
    fn the_same_stalls_count_when_the_host_itself_is_short() {
        let config = PressureConfig {
            cpu_some: Some(Threshold { begin: 50.0, end: 30.0 }),
            ..PressureConfig::default()
        };
        let on = |reading: &Reading| {
            let mut monitor = Monitor::new(&config);
            monitor.update(reading);
            let on = monitor.figures().filter_map(|(name, on)| on.then_some(name));
            on.collect::<Vec<_>>()
        };
        let waits = Reading { memory_some: Some(35.0), memory_full: Some(12.0), ..used(85.0) };
        let memory = ["memory_some", "memory_full"];
        assert_eq!(on(&Reading { reclaims: Some(1.0), ..waits }), memory);
        // A kernel that does not count that.
        assert_eq!(on(&waits), memory);
        // The daemon's own bound is as good as the host's memory.
        let bound = Reading {
            cgroup_used: Some(85.0),
            reclaims: Some(0.0),
            cgroup_reclaims: Some(9.0),
            ..waits
        };
        assert_eq!(on(&bound), memory);
        // One that is not nearly used up is reached all the time, by files that can be dropped.
        let none: [&str; 0] = [];
        assert_eq!(on(&Reading { cgroup_used: Some(30.0), ..bound }), none);
        let io = Reading { io_full: Some(85.0), disk_queue: Some(6.0), ..Reading::default() };
        assert_eq!(on(&io), ["io_full"]);
        let cpu = Reading { cpu_some: Some(60.0), cpu_busy: Some(97.0), ..Reading::default() };
        assert_eq!(on(&cpu), ["cpu_some"]);
    }

    #[test]
    fn a_stall_counts_until_it_or_what_it_counts_with_is_below_its_end() {
        let mut monitor = Monitor::new(&PressureConfig::default());
        let mut look = |io_full, disk_queue| {
            let (io_full, disk_queue) = (Some(io_full), Some(disk_queue));
            monitor.update(&Reading { io_full, disk_queue, ..Reading::default() }).is_some()
        };
        assert!(!look(85.0, 3.9));
        assert!(look(85.0, 4.0));
        assert!(look(50.0, 2.0));
        assert!(!look(50.0, 1.9));
        assert!(!look(50.0, 3.0));
        assert!(look(50.0, 4.0));
        assert!(!look(49.0, 4.0));
    }

    #[test]
    fn a_full_disk_and_one_that_is_promised_too_often_are_reasons() {
        let config = PressureConfig {
            disk_promised: Some(Threshold { begin: 100.0, end: 80.0 }),
            ..PressureConfig::default()
        };
        let mut monitor = Monitor::new(&config);
        let mut look = |available_bytes, promised_bytes| {
            let disk =
                DiskUsage { total_bytes: 1000, available_bytes, written_bytes: 0, promised_bytes };
            let disk = Host::this().look(Some(&disk));
            let Reading { disk_used, disk_promised, .. } = disk;
            monitor.update(&Reading { disk_used, disk_promised, ..Reading::default() })
        };
        assert_eq!(look(500, 400), None);
        assert_eq!(
            look(400, 400).as_deref(),
            Some("100 % of the free space for disks is promised to those that there are")
        );
        assert!(look(500, 400).is_some());
        assert_eq!(look(500, 399), None);
        assert_eq!(look(40, 0).as_deref(), Some("96 % of the space for disks is in use"));
        // Nothing is free: both.
        assert_eq!(look(0, 1).unwrap().matches('%').count(), 2);
    }

    proptest! {
        /// Whatever the readings: on only after a value at or above `begin`, off only after one
        /// below `end`.
        #[test]
        fn never_changes_between_the_levels(values in prop::collection::vec(0.0f64..100.0, 1..100)) {
            let config = PressureConfig { memory_used: Threshold { begin: 70.0, end: 30.0 }, ..PressureConfig::default() };
            let mut monitor = Monitor::new(&config);
            let mut on = false;
            for value in values {
                let now = monitor.update(&used(value)).is_some();
                if now != on {
                    prop_assert_eq!(now, value >= 70.0);
                    prop_assert!(now || value < 30.0);
                }
                on = now;
            }
        }
    }
}
