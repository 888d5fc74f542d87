//! Describes the machine a measurement was taken on, so that its numbers mean something later.

use serde::Serialize;

/// The machine and its state.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// CPU model name (proc(5), `/proc/cpuinfo`).
    pub cpu: String,
    /// Logical CPUs usable by this process.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// One-minute load average before the run: a busy machine gives other numbers.
    pub load_before: f32,
}

impl Machine {
    /// Looks at this machine. What cannot be read is left empty or 0.
    pub fn look() -> Self {
        use procfs::Current;
        let cpu = procfs::CpuInfo::current().ok().and_then(|info| info.model_name(0).map(str::to_owned));
        Self {
            cpu: cpu.unwrap_or_default(),
            cpus: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            memory_bytes: procfs::Meminfo::current().map_or(0, |m| m.mem_total),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            load_before: procfs::LoadAverage::current().map_or(0.0, |l| l.one),
        }
    }
}
