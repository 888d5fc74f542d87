//! Starts of Mayfly's own, through the engine's public interface.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_engine::golden::{Extent, LoadedGolden};
use mayfly_engine::session::Zygote;
use mayfly_engine::{Engine, SessionOptions, Standby};
use mayfly_host::cgroup::Limits;

use super::sample::{Sample, cpu_time, private_mib};
use crate::error::BenchError;

/// Measures one session from nothing. It gives two samples: from the request, and from the moment
/// its VMM waited as a shell.
///
/// # Errors
/// [`BenchError`].
pub async fn from_nothing(
    engine: &Engine,
    golden: &Arc<LoadedGolden>,
) -> Result<[Sample; 2], BenchError> {
    let begun = Instant::now();
    let shell = engine.spawn_shell(golden, &SessionOptions::default()).await?;
    let shell_ready = Instant::now();
    let session = shell.start().await?;
    let agent = (begun.elapsed(), shell_ready.elapsed());
    session.docker_ping().await?;
    let docker = (begun.elapsed(), shell_ready.elapsed());
    let (memory, cpu) = (private_mib(session.vmm_pid()), cpu_time(session.vmm_pid()));
    session.discard().await?;
    let cold = Sample::new(agent.0, Some(docker.0)).with_memory(memory).with_cpu(cpu);
    // What a shell cost before the request is not part of its start.
    Ok([cold, Sample::new(agent.1, Some(docker.1)).with_memory(memory)])
}

/// Makes a zygote, from which standbys are forked; `None` where VMMs cannot be forked.
///
/// # Errors
/// [`BenchError`].
pub async fn zygote(
    engine: &Engine,
    golden: &Arc<LoadedGolden>,
) -> Result<Option<Zygote>, BenchError> {
    Ok(engine.prepare_zygote(golden, &Limits::default(), Extent::Quick).await?)
}

/// Makes a standby as the daemon's pool does, from the zygote where there is one; none of that is
/// measured.
///
/// # Errors
/// [`BenchError`].
pub async fn standby(
    engine: &Engine,
    golden: &Arc<LoadedGolden>,
    zygote: Option<&Zygote>,
) -> Result<Standby, BenchError> {
    let limits = Limits { background: true, ..Limits::default() };
    Ok(match zygote {
        Some(zygote) => zygote.prepare_standby(&limits).await?,
        None => {
            engine.prepare_standby(golden, &SessionOptions { limits, ..Default::default() }).await?
        }
    })
}

/// Forks the zygote and hands the fork over.
///
/// # Errors
/// [`BenchError`].
pub async fn fork(zygote: &Zygote) -> Result<Sample, BenchError> {
    let begun = Instant::now();
    let standby = zygote.fork(&Limits::default()).await?;
    run(begun, standby, None).await
}

/// Hands a standby over.
///
/// # Errors
/// [`BenchError`].
pub async fn hand_over(standby: Standby) -> Result<Sample, BenchError> {
    let spent = cpu_time(standby.vmm_pid());
    run(Instant::now(), standby, spent).await
}

/// From a standby to an answer of Docker. What its VMM had `spent` before is not part of the start.
async fn run(
    begun: Instant,
    standby: Standby,
    spent: Option<Duration>,
) -> Result<Sample, BenchError> {
    let session = standby.hand_over(&Limits::default()).await?;
    let agent = begun.elapsed();
    session.docker_ping().await?;
    let docker = begun.elapsed();
    let pid = session.vmm_pid();
    let cpu = cpu_time(pid).map(|all| all.saturating_sub(spent.unwrap_or_default()));
    let sample = Sample::new(agent, Some(docker)).with_memory(private_mib(pid)).with_cpu(cpu);
    session.discard().await?;
    Ok(sample)
}
