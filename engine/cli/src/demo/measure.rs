//! The rounds, and a container.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_engine::Engine;
use mayfly_engine::golden::LoadedGolden;
use mayfly_engine::progress::{Progress, Unit};
use mayfly_guest::channel::ExecRequest;
use mayfly_host::cgroup::Limits;
use mayfly_host::time_scale::scaled;

use super::report::{DockerRun, Missing, Report, Row};
use super::systems::{Sample, Sources, System};
use crate::failure::Failure;

/// Bound on the container; it catches what hangs.
const LIMIT: Duration = Duration::from_secs(300);

/// Number of starts to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Rounds; each starts every system once.
    pub rounds: u32,
    /// Number of the rounds that boot, too: the first ones. A boot takes as long as many of the
    /// other starts.
    pub boots: u32,
    /// The image of a container to run at last.
    pub docker_run: Option<&'static str>,
}

/// Starts each system once a round, one after another, so that whatever else the machine does hits
/// all alike; then runs a container in one more session.
///
/// # Errors
/// The first start that fails.
pub async fn run(
    engine: &Engine,
    golden: &Arc<LoadedGolden>,
    plan: &Plan,
    progress: &dyn Progress,
) -> Result<Report, Failure> {
    progress.begin("prepare", None, Unit::Items);
    let mut sources = Sources::prepare(engine, golden).await;
    let mut missing = Vec::new();
    if let Err(reason) = sources.add_containers().await {
        missing.push(Missing { system: System::Crun, reason });
    }

    let starts: Vec<(u32, System)> = (1..=plan.rounds)
        .flat_map(|round| System::ALL.map(|system| (round, system)))
        .filter(|(round, system)| {
            sources.has(*system) && (*system != System::ColdBoot || *round <= plan.boots)
        })
        .collect();
    progress.begin("start each in rounds", Some(starts.len() as u64), Unit::Items);
    let mut samples: Vec<(System, u32, Sample)> = Vec::new();
    for (done, (round, system)) in starts.into_iter().enumerate() {
        progress.detail(&format!("round {round} of {}: {}", plan.rounds, system.name()));
        samples.extend(sources.start(system).await?.map(|sample| (system, round, sample)));
        progress.advance(done as u64 + 1);
    }

    let docker_run = match plan.docker_run.filter(|_| golden.has_docker()) {
        Some(image) => {
            progress.begin("docker run", None, Unit::Items);
            Some(container(&sources, image).await?)
        }
        None => None,
    };
    sources.discard().await?;
    progress.end();

    let rows = System::ALL.into_iter().filter_map(|system| {
        let of_it: Vec<_> = samples
            .iter()
            .filter(|s| s.0 == system)
            .map(|(_, round, sample)| (*round, *sample))
            .collect();
        (!of_it.is_empty()).then(|| Row::new(system, &of_it))
    });
    let mut report = Report {
        golden: golden.name().to_owned(),
        accel: golden.shape().accel,
        vmm: engine.driver().version(golden.shape().accel).to_owned(),
        docker: golden.has_docker(),
        rounds: plan.rounds,
        systems: rows.collect(),
        missing,
        standby_sooner: None,
        docker_run,
    };
    report.compare();
    Ok(report)
}

async fn container(sources: &Sources<'_>, image: &str) -> Result<DockerRun, Failure> {
    let command = ["docker", "run", "--rm", image, "echo", "hello from a container"];
    let standby = sources.standby().await?;
    let begun = Instant::now();
    let session = standby.hand_over(&Limits::default()).await?;
    let run = async { session.guest().exec(ExecRequest::new(command)).await?.output().await };
    let output = tokio::time::timeout(scaled(LIMIT), session.guarded(run)).await;
    let ms = begun.elapsed().as_secs_f64() * 1e3;
    session.discard().await?;
    let output = output.map_err(|_| {
        Failure::new(format!("docker run did not end within {:?}", scaled(LIMIT)))
    })??;
    let text =
        String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).trim_end().to_owned();
    if !output.success() {
        return Err(Failure::new(format!(
            "docker run failed in a session ({}): {text}",
            output.status
        )));
    }
    Ok(DockerRun { command: command.map(str::to_owned).into(), output: text, ms })
}
