//! The processes of a daemon: their memory and descriptors.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mayfly_client::Client;
use mayfly_distribution::{Distribution, Summary};
use mayfly_host::cgroup;
use mayfly_host::memory::private_bytes;
use procfs::WithCurrentSystemInfo;
use serde::Serialize;

use super::daemon::Daemon;
use super::session::{self, Attempt, Docker};
use super::{Plan, request};
use crate::error::BenchError;

/// Files that say how much memory a cgroup uses: v2, v1.
const USAGE: [&str; 2] = ["memory.current", "memory.usage_in_bytes"];
/// Files that name the processes of a cgroup.
const MEMBERS: &str = "cgroup.procs";

/// Processes of the daemon and its pager, to look at.
#[derive(Debug, Clone)]
pub struct Processes {
    daemon: u32,
    pager: Option<u32>,
    /// Folder that holds one cgroup for each VMM of the daemon.
    cgroups: Option<PathBuf>,
}

/// Resident memory in bytes and open descriptors of a process.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Usage {
    /// Resident memory in bytes.
    pub rss: u64,
    /// Number of descriptors.
    pub fds: usize,
}

/// Private memory at rest, in MiB.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Idle {
    /// Memory of sessions that have answered, Docker included, and do nothing.
    pub session_mib: Summary,
    /// Memory of VMMs that wait in the pool: standbys, and shells where the pool keeps some.
    pub waiting_mib: Summary,
}

impl Processes {
    /// Finds the processes of `daemon`; also its pager and cgroups, when a session has been started
    /// before.
    pub fn of(daemon: &Daemon) -> Self {
        let prefix = format!("{}-", daemon.pid());
        let ours = |dir: PathBuf| {
            let entries = std::fs::read_dir(dir).ok()?.flatten().map(|e| e.path());
            entries
                .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix)))
                .find(|p| accounts(p))
        };
        let cgroups = cgroup::directories("").into_iter().find_map(ours);
        Self {
            daemon: daemon.pid(),
            pager: daemon.pager().ping().ok().map(|pong| pong.pid),
            cgroups,
        }
    }

    /// Returns the figures of the daemon; nothing when it is gone.
    pub fn daemon(&self) -> Usage {
        usage(self.daemon)
    }

    /// Returns the figures of the pager; nothing when there is none.
    pub fn pager(&self) -> Usage {
        self.pager.map(usage).unwrap_or_default()
    }

    /// Returns the memory of all VMMs as the kernel accounts it, in bytes, and their number.
    pub fn vmms(&self) -> (u64, usize) {
        let read = |dir: PathBuf| {
            let text =
                USAGE.iter().find_map(|file| std::fs::read_to_string(dir.join(file)).ok())?;
            text.trim().parse::<u64>().ok()
        };
        let used: Vec<u64> = self.children().into_iter().filter_map(read).collect();
        (used.iter().sum(), used.len())
    }

    fn children(&self) -> Vec<PathBuf> {
        let entries = self.cgroups.as_ref().and_then(|dir| std::fs::read_dir(dir).ok());
        entries.into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect()
    }

    /// Private memory in MiB of each VMM, by the name of its cgroup: a session's id, or another
    /// name while it waits in the pool.
    pub fn private_mib(&self) -> Vec<(String, f64)> {
        let of = |name, members: &[u32]| {
            let bytes: u64 = members.iter().filter_map(|pid| private_bytes(*pid).ok()).sum();
            (bytes > 0).then(|| (name, bytes as f64 / f64::from(1 << 20)))
        };
        self.members().into_iter().filter_map(|(name, pids)| of(name, &pids)).collect()
    }

    /// Processor time of each VMM since its start, by the name of its cgroup.
    pub fn processor_times(&self) -> Vec<(String, Duration)> {
        let of = |pids: Vec<u32>| pids.into_iter().map(processor_time).sum::<Option<Duration>>();
        self.members().into_iter().filter_map(|(name, pids)| Some((name, of(pids)?))).collect()
    }

    fn members(&self) -> Vec<(String, Vec<u32>)> {
        let of = |dir: PathBuf| {
            let members = std::fs::read_to_string(dir.join(MEMBERS)).ok()?;
            let name = dir.file_name()?.to_string_lossy().into_owned();
            Some((name, members.lines().filter_map(|pid| pid.parse().ok()).collect()))
        };
        self.children().into_iter().filter_map(of).collect()
    }
}

fn accounts(dir: &Path) -> bool {
    USAGE.iter().any(|file| dir.join(file).exists())
}

/// Time that a process had a processor, its ended threads included, to the nanosecond: the ticks of
/// /proc/PID/stat are longer than an idle VMM runs in a second (clock_getcpuclockid(3)).
fn processor_time(pid: u32) -> Option<Duration> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).ok()?);
    let clock = nix::time::clock_getcpuclockid(pid).ok()?;
    clock.now().ok().map(Duration::from)
}

fn usage(pid: u32) -> Usage {
    let look = || {
        let process = procfs::process::Process::new(i32::try_from(pid).ok()?).ok()?;
        let rss = process.stat().ok()?.rss_bytes().get();
        Some(Usage { rss, fds: process.fd_count().ok()? })
    };
    look().unwrap_or_default()
}

/// Starts `plan.idle` sessions, lets them and the pool rest, and looks at their memory.
///
/// # Errors
/// [`BenchError::Daemon`] when a session cannot be had or ended.
pub async fn idle(client: &Client, processes: &Processes, plan: &Plan) -> Result<Idle, BenchError> {
    let mut started = Vec::new();
    for _ in 0..plan.idle {
        match session::start(client, &request(plan, true), Docker::InTheRequest, Instant::now())
            .await
        {
            Attempt::Started(one) => started.push(one),
            Attempt::Refused { code: why } | Attempt::Failed { reason: why } => {
                return Err(BenchError::Daemon(format!("gave no session to rest: {why}")));
            }
        }
    }
    tokio::time::sleep(plan.rest).await;
    let ids: HashSet<&str> = started.iter().map(|s| s.id.as_str()).collect();
    let (mut sessions, mut waiting) = (Distribution::default(), Distribution::default());
    for (name, mib) in processes.private_mib() {
        if ids.contains(name.as_str()) { sessions.push(mib) } else { waiting.push(mib) }
    }
    for one in &started {
        session::kill(client, &one.id).await?;
    }
    Ok(Idle { session_mib: sessions.summary(), waiting_mib: waiting.summary() })
}
