//! Admission: bounds on requests, and levels from which the host is short of something.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;

/// Bounds on requests for sessions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdmissionConfig {
    /// Most requests that wait at a time.
    pub max_queued: usize,
    /// Time for which a request waits that says nothing.
    #[serde(with = "duration")]
    pub deadline: Duration,
    /// The longest a request may ask to wait.
    #[serde(with = "duration")]
    pub max_deadline: Duration,
    /// Most starts under way at a time; twice the processors when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_starts: Option<usize>,
    /// Most sessions that live at a time; one for each 32 MiB of the host's memory, less an eighth,
    /// when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sessions: Option<usize>,
}

/// Two levels between which nothing changes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// Level at which pressure begins.
    pub begin: f64,
    /// Level at which pressure ends.
    pub end: f64,
}

/// Levels from which the host counts as short of something. Stall figures are those of the kernel's
/// PSI: percent of the last 10 s. The kernel counts sessions that wait at their own bounds in them,
/// so that each counts only while the host itself is short of the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PressureConfig {
    /// Interval between two looks.
    #[serde(with = "duration")]
    pub interval: Duration,
    /// Time in which some task waited for memory. Counts only while little memory is left and some
    /// had to be freed for the host.
    pub memory_some: Threshold,
    /// Time in which all tasks waited for memory. Counts as `memory_some` does.
    pub memory_full: Threshold,
    /// Time in which all tasks waited for storage. Counts only while requests queue at a disk.
    pub io_full: Threshold,
    /// Time in which some task waited for a processor. Absent: processors are no reason to refuse,
    /// a session just starts later then. Counts only while the processors have little rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_some: Option<Threshold>,
    /// Percent of the host's memory in use (all that is not available).
    pub memory_used: Threshold,
    /// Percent of the memory bound of the daemon's own cgroup in use, where it has one.
    pub cgroup_used: Threshold,
    /// Percent of the space for the disks of sessions that is not free.
    pub disk_used: Threshold,
    /// What the disks of all VMMs may still take, in percent of the space that is free; may be more
    /// than 100. Absent: more may be promised than there is, as with memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_promised: Option<Threshold>,
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self {
            max_queued: 1024,
            deadline: Duration::from_secs(30),
            max_deadline: Duration::from_secs(600),
            max_starts: None,
            max_sessions: None,
        }
    }
}

impl Default for PressureConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(500),
            memory_some: Threshold { begin: 30.0, end: 15.0 },
            memory_full: Threshold { begin: 10.0, end: 5.0 },
            io_full: Threshold { begin: 80.0, end: 50.0 },
            cpu_some: None,
            memory_used: Threshold { begin: 94.0, end: 90.0 },
            cgroup_used: Threshold { begin: 94.0, end: 90.0 },
            disk_used: Threshold { begin: 95.0, end: 92.0 },
            disk_promised: None,
        }
    }
}
