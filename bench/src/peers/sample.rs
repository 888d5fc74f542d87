//! Figures that are measured of one start.

use std::time::Duration;

use mayfly_host::memory::private_bytes;

/// Figures of one start of one system.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Time from the request until what was started has answered.
    pub answer: Duration,
    /// Time from the request until its Docker has answered; `None` for a system without one.
    pub docker: Option<Duration>,
    /// Memory that it alone holds, after its last answer, in MiB.
    pub private_mib: Option<f64>,
    /// CPU time of its process from the request to its last answer.
    pub cpu: Option<Duration>,
}

impl Sample {
    /// Creates a sample of the two latencies.
    pub fn new(answer: Duration, docker: Option<Duration>) -> Self {
        Self { answer, docker, private_mib: None, cpu: None }
    }

    /// Adds the private memory.
    #[must_use]
    pub fn with_memory(self, private_mib: Option<f64>) -> Self {
        Self { private_mib, ..self }
    }

    /// Adds the CPU time.
    #[must_use]
    pub fn with_cpu(self, cpu: Option<Duration>) -> Self {
        Self { cpu, ..self }
    }
}

/// Returns the private memory of a process in MiB; `None` when it is gone.
pub fn private_mib(pid: u32) -> Option<f64> {
    private_bytes(pid).ok().map(|bytes| bytes as f64 / f64::from(1 << 20))
}

/// Returns the user and system time of a process so far; `None` when it is gone.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = procfs::process::Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
    Some(Duration::from_secs_f64(
        (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64,
    ))
}
