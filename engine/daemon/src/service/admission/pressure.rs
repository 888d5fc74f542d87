//! Whether the host is short of something: PSI, available memory and the bound of our own cgroup,
//! with hysteresis.
//!
//! Works with what there is: a kernel without PSI has `/proc/meminfo` still, and a cgroup without a
//! bound says nothing.

use std::path::Path;
use std::sync::Arc;

use mayfly_engine::DiskUsage;
use mayfly_host::cgroup::{Place, Version};
use procfs::Current;

use crate::observe::Metrics;
use crate::service::config::{PressureConfig, Threshold};

/// Figures of one look at the host, in percent. `None` is what this host does not tell.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    /// Time in which some task waited for memory, over the last 10 s.
    pub memory_some: Option<f64>,
    /// Time in which all tasks did.
    pub memory_full: Option<f64>,
    /// Time in which all tasks waited for storage.
    pub io_full: Option<f64>,
    /// Time in which some task waited for a processor.
    pub cpu_some: Option<f64>,
    /// Memory of the host that is not available.
    pub memory_used: Option<f64>,
    /// Memory of our own cgroup, or one above it, in use of its bound.
    pub cgroup_used: Option<f64>,
    /// Space for the disks of sessions that is not free.
    pub disk_used: Option<f64>,
    /// What the disks of VMMs may still take, of the space that is free.
    pub disk_promised: Option<f64>,
}

impl Reading {
    /// Looks at the host; `disk` is what was seen of the space for disks.
    pub fn take(disk: Option<&DiskUsage>) -> Self {
        let memory = procfs::MemoryPressure::current().ok();
        Self {
            memory_some: memory.as_ref().map(|m| f64::from(m.some.avg10)),
            memory_full: memory.as_ref().map(|m| f64::from(m.full.avg10)),
            io_full: procfs::IoPressure::current().ok().map(|io| f64::from(io.full.avg10)),
            cpu_some: procfs::CpuPressure::current().ok().map(|cpu| f64::from(cpu.some.avg10)),
            memory_used: memory_used(),
            cgroup_used: cgroup_used(),
            disk_used: disk.and_then(|disk| {
                percent(disk.total_bytes.saturating_sub(disk.available_bytes), disk.total_bytes)
            }),
            // Of nothing, everything is more than there is.
            disk_promised: disk
                .and_then(|disk| percent(disk.promised_bytes, disk.available_bytes.max(1))),
        }
    }
}

fn memory_used() -> Option<f64> {
    let info = procfs::Meminfo::current().ok()?;
    // Kernels before 3.14 have no estimate; free and cached memory is close to it.
    let available = info.mem_available.unwrap_or(info.mem_free + info.cached);
    percent(info.mem_total.saturating_sub(available), info.mem_total)
}

fn percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 * 100.0 / whole as f64)
}

/// The fullest of our cgroup and those above it. Files that can be written back and dropped do not
/// count as use.
fn cgroup_used() -> Option<f64> {
    let place = Place::of_this_process().ok()?;
    let v2 = place.version() == Version::V2;
    place.lineage("memory").iter().filter_map(|dir| used_of(dir, v2)).reduce(f64::max)
}

fn used_of(dir: &Path, v2: bool) -> Option<f64> {
    let (limit, usage, inactive) = if v2 {
        ("memory.max", "memory.current", "inactive_file ")
    } else {
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
    };
    let number = |name| std::fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
    let (limit, usage) = (number(limit)?, number(usage)?);
    let stat = std::fs::read_to_string(dir.join("memory.stat")).ok()?;
    let droppable =
        stat.lines().find_map(|line| line.strip_prefix(inactive)?.parse().ok()).unwrap_or(0);
    percent(usage.saturating_sub(droppable), limit)
}

/// Monitor that follows readings; see [`Monitor::update`].
#[derive(Debug)]
pub struct Monitor {
    gauges: [Gauge; 8],
}

#[derive(Debug)]
struct Gauge {
    /// Its key in the configuration.
    name: &'static str,
    what: &'static str,
    value: fn(&Reading) -> Option<f64>,
    /// `None` is not looked at.
    threshold: Option<Threshold>,
    on: bool,
}

impl Monitor {
    /// Creates a monitor that has seen nothing yet.
    pub fn new(config: &PressureConfig) -> Self {
        let gauge =
            |name, what, value, threshold| Gauge { name, what, value, threshold, on: false };
        Self {
            gauges: [
                gauge(
                    "memory_used",
                    "of the host's memory is in use",
                    |r| r.memory_used,
                    Some(config.memory_used),
                ),
                gauge(
                    "cgroup_used",
                    "of the daemon's memory bound is in use",
                    |r| r.cgroup_used,
                    Some(config.cgroup_used),
                ),
                gauge(
                    "memory_some",
                    "of the time some task waits for memory",
                    |r| r.memory_some,
                    Some(config.memory_some),
                ),
                gauge(
                    "memory_full",
                    "of the time all tasks wait for memory",
                    |r| r.memory_full,
                    Some(config.memory_full),
                ),
                gauge(
                    "io_full",
                    "of the time all tasks wait for storage",
                    |r| r.io_full,
                    Some(config.io_full),
                ),
                gauge(
                    "cpu_some",
                    "of the time some task waits for a processor",
                    |r| r.cpu_some,
                    config.cpu_some,
                ),
                gauge(
                    "disk_used",
                    "of the space for disks is in use",
                    |r| r.disk_used,
                    Some(config.disk_used),
                ),
                gauge(
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
            let (Some(value), Some(threshold)) = ((gauge.value)(reading), gauge.threshold) else {
                gauge.on = false;
                continue;
            };
            gauge.on = if gauge.on { value >= threshold.end } else { value >= threshold.begin };
            if gauge.on {
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
    let mut monitor = Monitor::new(&config);
    let mut interval = tokio::time::interval(config.interval);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = None;
    loop {
        interval.tick().await;
        let look = disk.clone();
        let looking = tokio::task::spawn_blocking(move || Reading::take(look().as_ref()));
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
            disk_used: Some(99.0),
            disk_promised: Some(900.0),
        };
        // Processors and promises are not looked at unless configured.
        assert_eq!(monitor.update(&all).unwrap().matches('%').count(), 6);
        assert_eq!(monitor.update(&Reading::default()), None);
    }

    #[test]
    fn this_host_can_be_read() {
        let reading = Reading::take(None);
        assert_eq!((reading.disk_used, reading.disk_promised), (None, None));
        let used = reading.memory_used.unwrap();
        assert!(used > 0.0 && used < 100.0, "{used}");
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
            let disk = Reading::take(Some(&disk));
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

    #[test]
    fn a_cgroup_counts_without_what_can_be_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("memory.max", "1000\n");
        write("memory.current", "900\n");
        write("memory.stat", "anon 100\ninactive_file 400\nfile 500\n");
        assert_eq!(used_of(dir.path(), true), Some(50.0));
        write("memory.max", "max\n");
        assert_eq!(used_of(dir.path(), true), None);
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
