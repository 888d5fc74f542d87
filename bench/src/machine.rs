//! Describes the machine a measurement was taken on, so that its numbers mean something later.

use std::path::Path;
use std::time::SystemTime;

use mayfly_vmm::Accel;
use procfs::Current;
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
    /// `v1`, `v2` or `hybrid` (cgroups(7)).
    pub cgroups: &'static str,
    /// Load average over one minute before the run: a busy machine gives other numbers.
    pub load_before: f32,
    /// Time at which the run began, RFC 3339.
    pub date: String,
    /// Name and version of the VMM. Empty where none is used.
    pub vmm: String,
    /// `kvm` or `tcg`. Empty where no guest runs.
    pub accel: String,
}

impl Machine {
    /// Looks at this machine. What cannot be read is left empty or 0.
    pub fn look() -> Self {
        let cpu =
            procfs::CpuInfo::current().ok().and_then(|info| info.model_name(0).map(str::to_owned));
        Self {
            cpu: cpu.unwrap_or_default(),
            cpus: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            memory_bytes: procfs::Meminfo::current().map_or(0, |m| m.mem_total),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            cgroups: cgroups(),
            load_before: load(),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            vmm: String::new(),
            accel: String::new(),
        }
    }

    /// Adds what runs the guests.
    #[must_use]
    pub fn with_vmm(mut self, vmm: &str, accel: Accel) -> Self {
        self.vmm = format!("QEMU {vmm}");
        self.accel = accel.to_string();
        self
    }

    /// Returns the name and the value of each line of a description.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let accel = match self.accel.as_str() {
            "tcg" => "tcg (software emulation)",
            other => other,
        };
        let lines = [
            ("CPU", format!("{} × {}", self.cpus, self.cpu)),
            ("Memory", format!("{:.1} GiB", self.memory_bytes as f64 / f64::from(1 << 30))),
            ("Kernel", format!("Linux {}", self.kernel)),
            ("VMM", self.vmm.clone()),
            ("Accelerator", accel.to_owned()),
            ("cgroups", self.cgroups.to_owned()),
            ("Load before", format!("{:.2}", self.load_before)),
            ("Date", self.date.clone()),
        ];
        lines.into_iter().filter(|(_, value)| !value.is_empty()).collect()
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lines: Vec<_> =
            self.lines().into_iter().map(|(name, value)| format!("{name}: {value}")).collect();
        f.write_str(&lines.join("; "))
    }
}

/// Returns the one-minute load average; 0 when it cannot be read.
pub fn load() -> f32 {
    procfs::LoadAverage::current().map_or(0.0, |l| l.one)
}

fn cgroups() -> &'static str {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        "v2"
    } else if Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists() {
        "hybrid (v1 controllers)"
    } else {
        "v1"
    }
}
