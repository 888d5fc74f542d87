//! Resources that the guest has used and has left.

use serde::{Deserialize, Serialize};

/// Figures of the whole guest. It has no network device, so there are none of a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStats {
    /// Load averages over 1, 5 and 15 minutes, in hundredths (proc_loadavg(5)).
    pub load_hundredths: [u32; 3],
    /// Number of processors.
    pub cpus: u32,
    /// Milliseconds that all processors together were busy since the guest booted (before the
    /// snapshot).
    pub cpu_busy_ms: u64,
    /// Milliseconds that all processors together were idle since then.
    pub cpu_idle_ms: u64,
    /// Bytes of memory in all.
    pub memory_total: u64,
    /// Bytes of memory available to new programs.
    pub memory_available: u64,
    /// Bytes of the root file system in all.
    pub disk_total: u64,
    /// Bytes of the root file system that a user without privileges can still write.
    pub disk_available: u64,
    /// Processes, those of the guest's own services included.
    pub processes: u32,
}
