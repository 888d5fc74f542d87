//! Resource usage of a session, as the kernel accounts for it.

use std::path::PathBuf;

use mayfly_engine::session::Session;

use crate::lab::Lab;

/// The cgroup of one session, or of something else of ours.
#[derive(Debug, Clone)]
pub(super) struct Meter {
    folders: Vec<PathBuf>,
    /// The VMM, which is all that is in a session's cgroup.
    pid: Option<u32>,
}

impl Meter {
    pub fn of(lab: &Lab, session: &Session) -> Self {
        Self { folders: lab.cgroup(session), pid: Some(session.vmm_pid()) }
    }

    pub fn at(folders: Vec<PathBuf>) -> Self {
        Self { folders, pid: None }
    }

    fn read(&self, names: &[&str]) -> Option<String> {
        let paths =
            names.iter().flat_map(|name| self.folders.iter().map(move |folder| folder.join(name)));
        paths.into_iter().find_map(|path| std::fs::read_to_string(path).ok())
    }

    fn number(&self, names: &[&str]) -> Option<u64> {
        self.read(names)?.trim().parse().ok()
    }

    /// Returns the processor time used, in seconds.
    pub fn processor_seconds(&self) -> Option<f64> {
        if let Some(nanoseconds) = self.number(&["cpuacct.usage"]) {
            return Some(nanoseconds as f64 / 1e9);
        }
        let of_group = self.read(&["cpu.stat"]).and_then(|text| {
            let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
            Some(usage.trim().parse::<f64>().ok()? / 1e6)
        });
        // On v1 the time may be accounted for in a hierarchy in which sessions have no group.
        of_group.or_else(|| processor_seconds_of(self.pid?))
    }

    /// Returns the most memory it has had, in bytes.
    pub fn peak_memory(&self) -> Option<u64> {
        self.number(&["memory.max_usage_in_bytes", "memory.peak"])
    }

    /// Returns the bound on memory, in bytes.
    pub fn memory_bound(&self) -> Option<u64> {
        self.number(&["memory.limit_in_bytes", "memory.max"])
    }

    /// Returns the number of tasks in it now.
    pub fn tasks(&self) -> Option<u64> {
        self.number(&["pids.current"])
    }

    /// Returns the bound on the number of tasks.
    pub fn tasks_bound(&self) -> Option<u64> {
        self.number(&["pids.max"])
    }
}

/// Processor time of all threads of a process, in seconds.
fn processor_seconds_of(pid: u32) -> Option<f64> {
    let stat = procfs::process::Process::new(pid.cast_signed()).ok()?.stat().ok()?;
    Some((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64)
}
