//! Figures of the host: what waits, and what there is.
//!
//! The kernel counts a wait for every group above the one that waits, up to the host, also where
//! that one waits at a bound of its own: a throttled disk, its own `memory.max`, its processor
//! quota. So beside the stalls there are figures of the host that no bound of a session moves.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mayfly_engine::DiskUsage;
use mayfly_host::cgroup::{Place, Version};
use procfs::FromRead as _;

/// Time that figures of the host are taken over, as the kernel does with stalls.
const WINDOW: Duration = Duration::from_secs(10);
/// Least time between two states of the counters that are kept, so that there are few.
const APART: Duration = Duration::from_secs(1);
/// Devices whose requests wait in others: those are looked at.
const STACKED: [&str; 6] = ["loop", "ram", "zram", "dm-", "md", "nbd"];

/// Figures of one look at the host, most in percent. `None` is what this host does not tell.
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
    /// Times in the last 10 s that a task had to free memory for the host. What a session frees at
    /// its own bound does not count.
    pub reclaims: Option<f64>,
    /// The same at the bound of our own cgroup, or one above it.
    pub cgroup_reclaims: Option<f64>,
    /// Requests that the busiest disk has had at a time, on average over the last 10 s. What waits
    /// in a throttle has not come to the disk.
    pub disk_queue: Option<f64>,
    /// Time of the host's processors in which they worked, over the last 10 s.
    pub cpu_busy: Option<f64>,
    /// Space for the disks of sessions that is not free.
    pub disk_used: Option<f64>,
    /// What the disks of VMMs may still take, of the space that is free.
    pub disk_promised: Option<f64>,
}

/// A host that is looked at again and again.
#[derive(Debug)]
pub struct Host {
    proc: PathBuf,
    cgroups: Cgroups,
    /// The oldest is as old as [`WINDOW`], once there is one.
    seen: VecDeque<(Instant, Counters)>,
}

/// Our cgroup and those above it, the nearest first.
#[derive(Debug, Default)]
struct Cgroups {
    dirs: Vec<PathBuf>,
    v2: bool,
}

/// What only grows.
#[derive(Debug, Default)]
struct Counters {
    reclaims: Option<u64>,
    cgroup_reclaims: Option<u64>,
    /// Time in work, and all time.
    cpu: Option<(u64, u64)>,
    /// Milliseconds that requests have spent at each disk, by its name.
    disks: Option<HashMap<String, u64>>,
}

impl Host {
    /// Creates the host that this process runs on.
    pub fn this() -> Self {
        let cgroups = Place::of_this_process().map(|place| Cgroups {
            dirs: place.lineage("memory"),
            v2: place.version() == Version::V2,
        });
        Self::told_by(Path::new("/proc"), cgroups.unwrap_or_default())
    }

    fn told_by(proc: &Path, cgroups: Cgroups) -> Self {
        Self { proc: proc.to_owned(), cgroups, seen: VecDeque::new() }
    }

    /// Looks at the host; `disk` is what was seen of the space for disks.
    pub fn look(&mut self, disk: Option<&DiskUsage>) -> Reading {
        self.look_at(Instant::now(), disk)
    }

    fn look_at(&mut self, now: Instant, disk: Option<&DiskUsage>) -> Reading {
        let stalls = |name| self.proc.join("pressure").join(name);
        let memory = procfs::MemoryPressure::from_file(stalls("memory")).ok();
        let io = procfs::IoPressure::from_file(stalls("io")).ok();
        let cpu = procfs::CpuPressure::from_file(stalls("cpu")).ok();
        let counters = Counters::read(&self.proc, &self.cgroups);
        let since = self.seen.front().map(|(at, before)| {
            let milliseconds = now.saturating_duration_since(*at).as_secs_f64() * 1e3;
            counters.since(before, milliseconds)
        });
        self.keep(now, counters);
        let Since { reclaims, cgroup_reclaims, disk_queue, cpu_busy } = since.unwrap_or_default();
        Reading {
            memory_some: memory.as_ref().map(|m| f64::from(m.some.avg10)),
            memory_full: memory.as_ref().map(|m| f64::from(m.full.avg10)),
            io_full: io.map(|io| f64::from(io.full.avg10)),
            cpu_some: cpu.map(|cpu| f64::from(cpu.some.avg10)),
            memory_used: memory_used(&self.proc),
            cgroup_used: self.cgroups.used(),
            reclaims,
            cgroup_reclaims,
            disk_queue,
            cpu_busy,
            disk_used: disk.and_then(|disk| {
                percent(disk.total_bytes.saturating_sub(disk.available_bytes), disk.total_bytes)
            }),
            // Of nothing, everything is more than there is.
            disk_promised: disk
                .and_then(|disk| percent(disk.promised_bytes, disk.available_bytes.max(1))),
        }
    }

    fn keep(&mut self, now: Instant, counters: Counters) {
        let age = |at: &Instant| now.saturating_duration_since(*at);
        if self.seen.back().is_none_or(|(at, _)| age(at) >= APART) {
            self.seen.push_back((now, counters));
        }
        while self.seen.get(1).is_some_and(|(at, _)| age(at) >= WINDOW) {
            self.seen.pop_front();
        }
    }
}

/// How counters have grown.
#[derive(Debug, Default)]
struct Since {
    reclaims: Option<f64>,
    cgroup_reclaims: Option<f64>,
    disk_queue: Option<f64>,
    cpu_busy: Option<f64>,
}

impl Counters {
    fn read(proc: &Path, cgroups: &Cgroups) -> Self {
        let text = |name| std::fs::read_to_string(proc.join(name)).ok();
        let disks = procfs::DiskStats::from_file(proc.join("diskstats")).ok().map(|disks| {
            let real = |name: &str| !STACKED.iter().any(|prefix| name.starts_with(prefix));
            let disks = disks.0.into_iter().filter(|disk| real(&disk.name));
            disks.map(|disk| (disk.name, disk.weighted_time_in_progress)).collect()
        });
        Self {
            reclaims: text("vmstat").and_then(|text| direct_reclaims(&text)),
            cgroup_reclaims: cgroups.reclaims(),
            cpu: text("stat").and_then(|text| cpu_time(&text)),
            disks,
        }
    }

    fn since(&self, before: &Self, milliseconds: f64) -> Since {
        let grown = |now: Option<u64>, before: Option<u64>| {
            now.zip(before).map(|(now, before)| now.saturating_sub(before) as f64)
        };
        let cpu = self.cpu.zip(before.cpu);
        let queue = self.disks.as_ref().zip(before.disks.as_ref()).and_then(|(now, before)| {
            let grown = now.iter().filter_map(|(name, now)| {
                // The kernel counts in 32 bits on some hosts.
                Some(now.saturating_sub(*before.get(name)?) as f64)
            });
            let most = grown.reduce(f64::max)?;
            (milliseconds > 0.0).then(|| most / milliseconds)
        });
        Since {
            reclaims: grown(self.reclaims, before.reclaims),
            cgroup_reclaims: grown(self.cgroup_reclaims, before.cgroup_reclaims),
            disk_queue: queue,
            cpu_busy: cpu.and_then(|(now, before)| {
                percent(now.0.saturating_sub(before.0), now.1.saturating_sub(before.1))
            }),
        }
    }
}

/// Allocations that had to free memory of the host, by zone since Linux 4.12. Those that freed some
/// at the bound of a cgroup are not among them (`do_try_to_free_pages` in the kernel's
/// `mm/vmscan.c`).
fn direct_reclaims(vmstat: &str) -> Option<u64> {
    let counts = vmstat.lines().filter(|line| line.starts_with("allocstall"));
    counts.filter_map(|line| line.split_whitespace().nth(1)?.parse().ok()).reduce(|a, b: u64| a + b)
}

/// Time in work and all time of all processors (proc_stat(5)).
fn cpu_time(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    // What is behind these eight, time of guests, is in the first two as well.
    let times: Vec<u64> = line.split_whitespace().take(8).map_while(|t| t.parse().ok()).collect();
    let (idle, wait) = (times.get(3)?, times.get(4)?);
    let all: u64 = times.iter().sum();
    Some((all - idle - wait, all))
}

fn memory_used(proc: &Path) -> Option<f64> {
    let info = procfs::Meminfo::from_file(proc.join("meminfo")).ok()?;
    // Kernels before 3.14 have no estimate; free and cached memory is close to it.
    let available = info.mem_available.unwrap_or(info.mem_free + info.cached);
    percent(info.mem_total.saturating_sub(available), info.mem_total)
}

fn percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 * 100.0 / whole as f64)
}

impl Cgroups {
    /// The fullest. Files that can be written back and dropped do not count as use.
    fn used(&self) -> Option<f64> {
        self.dirs.iter().filter_map(|dir| self.used_of(dir)).reduce(f64::max)
    }

    fn used_of(&self, dir: &Path) -> Option<f64> {
        let (limit, usage, inactive) = if self.v2 {
            ("memory.max", "memory.current", "inactive_file ")
        } else {
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
        };
        let number =
            |name| std::fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
        let (limit, usage) = (number(limit)?, number(usage)?);
        let stat = std::fs::read_to_string(dir.join("memory.stat")).ok()?;
        let droppable =
            stat.lines().find_map(|line| line.strip_prefix(inactive)?.parse().ok()).unwrap_or(0);
        percent(usage.saturating_sub(droppable), limit)
    }

    /// How often memory was freed at a bound of one of them, not at one of a group below.
    fn reclaims(&self) -> Option<u64> {
        let counts = self.dirs.iter().filter_map(|dir| {
            if !self.v2 {
                let count = std::fs::read_to_string(dir.join("memory.failcnt")).ok()?;
                return count.trim().parse().ok();
            }
            let events = std::fs::read_to_string(dir.join("memory.events.local")).ok()?;
            let count = |name| {
                events.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
            };
            Some(count("high ").unwrap_or(0) + count("max ").unwrap_or(0))
        });
        counts.reduce(|a, b| a + b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with files in the place of `/proc`.
    struct Told(tempfile::TempDir);

    impl Told {
        fn new() -> Self {
            let told = Self(tempfile::tempdir().unwrap());
            std::fs::create_dir(told.0.path().join("pressure")).unwrap();
            told
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.0.path().join(name), text).unwrap();
        }

        fn host(&self) -> Host {
            Host::told_by(self.0.path(), Cgroups::default())
        }
    }

    fn disk_line(name: &str, weighted: u64) -> String {
        format!(" 254 0 {name} 1 0 8 5 1 0 8 5 0 9 {weighted} 0 0 0 0 0 0\n")
    }

    #[test]
    fn figures_are_read_and_those_of_the_host_are_taken_over_ten_seconds() {
        let told = Told::new();
        let stall = |some: f64, full: f64| {
            let line = |what, value: f64| {
                format!("{what} avg10={value:.2} avg60=0.00 avg300=0.00 total=1\n")
            };
            line("some", some) + &line("full", full)
        };
        told.write("pressure/memory", &stall(31.0, 11.0));
        told.write("pressure/io", &stall(90.0, 85.0));
        told.write("pressure/cpu", &stall(70.0, 0.0));
        let counted = |stalls: u64, busy: u64, idle: u64, weighted: u64| {
            // Direct reclaim for a cgroup shows in `pgscan` alone.
            told.write(
                "vmstat",
                &format!("pgscan_direct 9\nallocstall_dma 1\nallocstall_movable {stalls}\n"),
            );
            told.write("stat", &format!("cpu  {busy} 0 0 {idle} 0 0 0 0 5 0\ncpu0 1 1\n"));
            let loops = disk_line("loop0", weighted * 100);
            told.write("diskstats", &(disk_line("vda", weighted) + &disk_line("vdb", 7) + &loops));
        };
        let (mut host, begun) = (told.host(), Instant::now());
        let mut look = |second: u64| host.look_at(begun + Duration::from_secs(second), None);
        counted(5, 100, 900, 1000);
        let first = look(0);
        assert_eq!((first.memory_some, first.memory_full), (Some(31.0), Some(11.0)));
        assert_eq!((first.io_full, first.cpu_some), (Some(85.0), Some(70.0)));
        assert_eq!((first.reclaims, first.disk_queue, first.cpu_busy), (None, None, None));
        counted(7, 175, 925, 13_000);
        let second = look(2);
        assert_eq!(second.reclaims, Some(2.0));
        assert_eq!(second.disk_queue, Some(6.0));
        assert_eq!(second.cpu_busy, Some(75.0));
        // Nothing has happened since, and what was before is forgotten after 10 s.
        assert_eq!(look(11).reclaims, Some(2.0));
        look(12);
        let late = look(13);
        assert_eq!((late.reclaims, late.disk_queue), (Some(0.0), Some(0.0)));
        // However often it is looked at, little is kept.
        for millisecond in 13_000..23_000 {
            host.look_at(begun + Duration::from_millis(millisecond), None);
        }
        assert!(host.seen.len() <= 12, "{}", host.seen.len());
    }

    #[test]
    fn what_a_host_does_not_tell_is_none() {
        let told = Told::new();
        let mut host = told.host();
        assert_eq!(host.look(None), Reading::default());
        assert_eq!(host.look(None), Reading::default());
    }

    #[test]
    fn this_host_can_be_read() {
        let mut host = Host::this();
        let reading = host.look(None);
        assert_eq!((reading.disk_used, reading.disk_promised), (None, None));
        let used = reading.memory_used.unwrap();
        assert!(used > 0.0 && used < 100.0, "{used}");
        std::thread::sleep(Duration::from_millis(50));
        assert!(host.look(None).reclaims.is_some());
    }

    #[test]
    fn a_cgroup_counts_without_what_can_be_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let cgroups = Cgroups { dirs: vec![dir.path().to_owned()], v2: true };
        write("memory.max", "1000\n");
        write("memory.current", "900\n");
        write("memory.stat", "anon 100\ninactive_file 400\nfile 500\n");
        assert_eq!((cgroups.used(), cgroups.reclaims()), (Some(50.0), None));
        write("memory.events.local", "low 1\nhigh 20\nmax 300\noom 4000\n");
        write("memory.max", "max\n");
        assert_eq!((cgroups.used(), cgroups.reclaims()), (None, Some(320)));
        write("memory.failcnt", "7\n");
        assert_eq!(Cgroups { v2: false, ..cgroups }.reclaims(), Some(7));
    }
}
