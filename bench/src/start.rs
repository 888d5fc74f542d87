//! Session start: from a shell and from nothing to the agent's answer, and on to Docker's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_distribution::{Distribution, Summary};
use mayfly_engine::golden::LoadedGolden;
use mayfly_engine::{Engine, SessionError, SessionOptions};
use serde::Serialize;

/// Figures that are measured of every session, in the unit of its name.
#[derive(Debug, Default)]
pub struct Measurements {
    spawn_ms: Distribution,
    shell_ms: Distribution,
    restore_ms: Distribution,
    shell_to_agent_ms: Distribution,
    cold_to_agent_ms: Distribution,
    shell_to_docker_ms: Distribution,
    discard_ms: Distribution,
    faults: Distribution,
    private_mib: Distribution,
    vmm_cpu_ms: Distribution,
}

/// The figures of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Time from the request to a running VMM process.
    pub spawn_ms: Summary,
    /// Time from the request to a shell.
    pub shell_ms: Summary,
    /// Shell to a running guest.
    pub restore_ms: Summary,
    /// Shell to the agent's answer, identity applied.
    pub shell_to_agent_ms: Summary,
    /// Time from the request to the agent's answer, identity applied.
    pub cold_to_agent_ms: Summary,
    /// Shell to the first answer of the Docker API. Empty unless asked for.
    pub shell_to_docker_ms: Summary,
    /// Discard, until nothing is left.
    pub discard_ms: Summary,
    /// userfaultfd faults of a session until its agent answered (and Docker, when asked for).
    pub faults: Summary,
    /// Memory of the VMM that it wrote itself, in MiB.
    pub private_mib: Summary,
    /// CPU time of the VMM from its start to that point.
    pub vmm_cpu_ms: Summary,
}

impl Measurements {
    /// Starts one session, asks its Docker when `docker`, and discards it.
    ///
    /// # Errors
    /// [`SessionError`] of the session.
    pub async fn take(
        &mut self,
        engine: &Engine,
        golden: &Arc<LoadedGolden>,
        docker: bool,
    ) -> Result<(), SessionError> {
        let begun = Instant::now();
        let shell = engine.spawn_shell(golden, &SessionOptions::default()).await?;
        let from_shell = Instant::now();
        let session = shell.start().await?;
        let (cold, agent) = (begun.elapsed(), from_shell.elapsed());
        if docker {
            session.docker_ping().await?;
            self.shell_to_docker_ms.push_ms(from_shell.elapsed());
        }
        let times = session.start_times();
        let stats = session.pager_stats().await?;
        self.spawn_ms.push_ms(times.spawn);
        self.shell_ms.push_ms(times.shell);
        self.restore_ms.push_ms(times.restore);
        self.shell_to_agent_ms.push_ms(agent);
        self.cold_to_agent_ms.push_ms(cold);
        self.faults.push(stats.counters.faults as f64);
        self.private_mib.push(session.private_memory()? as f64 / f64::from(1 << 20));
        self.vmm_cpu_ms.push_ms(cpu_time(session.vmm_pid()));
        let ending = Instant::now();
        session.discard().await?;
        self.discard_ms.push_ms(ending.elapsed());
        Ok(())
    }

    /// Returns the figures so far.
    pub fn report(&self) -> Report {
        Report {
            spawn_ms: self.spawn_ms.summary(),
            shell_ms: self.shell_ms.summary(),
            restore_ms: self.restore_ms.summary(),
            shell_to_agent_ms: self.shell_to_agent_ms.summary(),
            cold_to_agent_ms: self.cold_to_agent_ms.summary(),
            shell_to_docker_ms: self.shell_to_docker_ms.summary(),
            discard_ms: self.discard_ms.summary(),
            faults: self.faults.summary(),
            private_mib: self.private_mib.summary(),
            vmm_cpu_ms: self.vmm_cpu_ms.summary(),
        }
    }
}

impl Report {
    /// Returns the name and figures of each row, for a table.
    pub fn rows(&self) -> [(&'static str, Summary); 10] {
        [
            ("spawn (ms)", self.spawn_ms),
            ("shell (ms)", self.shell_ms),
            ("shell -> guest runs (ms)", self.restore_ms),
            ("shell -> agent (ms)", self.shell_to_agent_ms),
            ("cold -> agent (ms)", self.cold_to_agent_ms),
            ("shell -> docker API (ms)", self.shell_to_docker_ms),
            ("discard (ms)", self.discard_ms),
            ("uffd faults", self.faults),
            ("private memory (MiB)", self.private_mib),
            ("VMM CPU time (ms)", self.vmm_cpu_ms),
        ]
    }
}

/// User and system time of a process so far; zero when it is gone.
fn cpu_time(pid: u32) -> Duration {
    let stat = i32::try_from(pid)
        .ok()
        .and_then(|pid| procfs::process::Process::new(pid).ok()?.stat().ok());
    let ticks = stat.map_or(0, |s| s.utime + s.stime);
    Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64)
}
