//! The bounds of a session.

use std::path::PathBuf;

/// Bounds of one session, enforced on the VMM process from outside.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Most memory of the VMM process, guest and emulator, in bytes; `None` is guest memory plus
    /// [`VMM_OVERHEAD`].
    pub memory_bytes: Option<u64>,
    /// Most processors' worth of CPU time, such as 1.5; `None` is no bound.
    pub cpus: Option<f64>,
    /// Most threads of the VMM.
    pub threads: u32,
    /// Largest disk overlay, in bytes: what the session can write to its disk that was not there,
    /// and what that costs in metadata. `None` is the size of its disk plus [`OVERLAY_OVERHEAD`].
    /// Beyond it the guest gets I/O errors.
    pub disk_bytes: Option<u64>,
    /// Most bytes read from, and most bytes written to, the device of its disk per second; `None`
    /// is no bound. On cgroup v1 the kernel counts no write that goes through the page cache.
    pub io_bytes_per_second: Option<u64>,
    /// Whether it gives way to other sessions when processors are short; for work nobody waits for.
    pub background: bool,
}

/// Room for the emulator beside guest memory, in bytes. Half of it may be translated code.
pub const VMM_OVERHEAD: u64 = 768 << 20;
/// Room for the metadata of a disk overlay beside the content of the disk, in bytes.
pub const OVERLAY_OVERHEAD: u64 = 64 << 20;
/// Period in which [`Limits::cpus`] is measured out, in microseconds.
pub(super) const CPU_PERIOD_US: u64 = 100_000;
/// The kernel refuses a shorter share of a period, in microseconds
/// (`Documentation/scheduler/sched-bwc.rst`).
const CPU_QUOTA_MIN_US: u64 = 1_000;

impl Limits {
    /// Returns the largest file the VMM may write, in bytes, with a disk of `disk` bytes.
    pub fn file_bytes(&self, disk: u64) -> u64 {
        self.disk_bytes.unwrap_or(disk.saturating_add(OVERLAY_OVERHEAD))
    }

    /// Bound on memory, in bytes.
    pub(super) fn memory(&self, subject: &Subject) -> u64 {
        self.memory_bytes.unwrap_or(subject.guest_memory.saturating_add(VMM_OVERHEAD))
    }

    /// Processor time in each period of [`CPU_PERIOD_US`], in microseconds.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float outside of u64 becomes its least or its largest value"
    )]
    pub(super) fn cpu_quota(&self) -> Option<u64> {
        self.cpus.map(|cpus| ((cpus * CPU_PERIOD_US as f64) as u64).max(CPU_QUOTA_MIN_US))
    }
}

/// Properties that the bounds of a session depend on besides [`Limits`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Memory of its guest, in bytes.
    pub guest_memory: u64,
    /// Folder of its disk overlay.
    pub disk_dir: PathBuf,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: None,
            cpus: None,
            threads: 64,
            disk_bytes: None,
            io_bytes_per_second: None,
            background: false,
        }
    }
}
