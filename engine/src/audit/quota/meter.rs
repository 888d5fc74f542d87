//! What a session has used, as the kernel accounts for it.

use std::path::PathBuf;

use crate::audit::lab::Lab;
use crate::session::Session;

/// The cgroup of one session, or of something else of ours.
#[derive(Debug, Clone)]
pub(super) struct Meter {
    folders: Vec<PathBuf>,
}

impl Meter {
    pub fn of(lab: &Lab, session: &Session) -> Self {
        Self { folders: lab.cgroup(session) }
    }

    pub fn at(folders: Vec<PathBuf>) -> Self {
        Self { folders }
    }

    fn read(&self, names: &[&str]) -> Option<String> {
        let paths = names.iter().flat_map(|name| self.folders.iter().map(move |folder| folder.join(name)));
        paths.into_iter().find_map(|path| std::fs::read_to_string(path).ok())
    }

    fn number(&self, names: &[&str]) -> Option<u64> {
        self.read(names)?.trim().parse().ok()
    }

    /// Processor time used, in seconds.
    pub fn processor_seconds(&self) -> Option<f64> {
        if let Some(nanoseconds) = self.number(&["cpuacct.usage"]) {
            return Some(nanoseconds as f64 / 1e9);
        }
        let text = self.read(&["cpu.stat"])?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
        Some(usage.trim().parse::<f64>().ok()? / 1e6)
    }

    /// The most memory it has had, in bytes.
    pub fn peak_memory(&self) -> Option<u64> {
        self.number(&["memory.max_usage_in_bytes", "memory.peak"])
    }

    /// Bound on memory, in bytes.
    pub fn memory_bound(&self) -> Option<u64> {
        self.number(&["memory.limit_in_bytes", "memory.max"])
    }

    /// Tasks in it now.
    pub fn tasks(&self) -> Option<u64> {
        self.number(&["pids.current"])
    }

    /// Bound on tasks.
    pub fn tasks_bound(&self) -> Option<u64> {
        self.number(&["pids.max"])
    }
}
