//! A daemon under load, through its HTTP interface, as its clients see it.
//!
//! Phases, one after another: rest, saturation (a closed loop that asks again as soon as it has an
//! answer), arrivals at a share of that rate (an open loop that asks at its own times, whatever the
//! daemon does), rest with sessions, rest.

mod closed;
mod daemon;
mod figures;
mod open;
mod processes;
mod report;
mod sampler;
mod session;
mod trend;

use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_api::CreateSession;
use mayfly_client::Client;

pub use daemon::Daemon;
pub use figures::{Latencies, Phase, Rate};
pub(crate) use processes::Processes;
pub use processes::{Idle, Usage};
pub use report::Report;
pub use sampler::{Activity, Sample};
pub use session::{Attempt, Started};
pub(crate) use session::{declined, kill};

use sampler::Sampler;

use crate::error::BenchError;

/// Amount of load.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Golden of all sessions.
    pub golden: String,
    /// Sessions of each phase.
    pub sessions: u32,
    /// Clients of the closed loop.
    pub workers: u32,
    /// Arrivals of the open loop as a share of the measured saturation rate.
    pub fraction: f64,
    /// Arrivals of the open loop in sessions per second, instead of a share.
    pub rate: Option<f64>,
    /// Time for which a session of the open loop lives after its Docker has answered.
    pub hold: Duration,
    /// Sessions that rest while memory is measured.
    pub idle: u32,
    /// Rest before the first phase and after each, in which the pool fills.
    pub rest: Duration,
}

/// Results of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The closed loop.
    pub saturation: Phase,
    /// The open loop.
    pub arrivals: Phase,
    /// Sessions per second that the open loop asked for.
    pub asked_rate: f64,
    /// Processes and pool, twice a second over the whole run.
    pub samples: Vec<Sample>,
    /// Memory at rest.
    pub idle: Idle,
}

/// Runs the phases against `daemon`. `say` is told what begins.
///
/// # Errors
/// [`BenchError::Daemon`] when the daemon fails, or refuses everything.
pub async fn run(daemon: &Daemon, plan: &Plan, say: &dyn Fn(&str)) -> Result<Outcome, BenchError> {
    let client = daemon.client().clone();
    say("warm-up: the pool of the golden is made");
    warm_up(&client, plan).await?;
    // Only now there are a pager and cgroups to look at.
    let processes = Processes::of(daemon);
    let begun = Instant::now();
    let sampler = Sampler::start(client.clone(), processes.clone(), begun);
    tokio::time::sleep(plan.rest).await;

    say("saturation: every client asks again as soon as it has its answer");
    sampler.now(Activity::Saturation);
    let saturation = closed::run(&client, plan, begun, sampler.done()).await?;
    sampler.now(Activity::Between);
    tokio::time::sleep(plan.rest).await;

    let asked_rate = plan.rate.unwrap_or_else(|| saturation.rate().sustained * plan.fraction);
    if !(asked_rate > 0.0 && asked_rate.is_finite()) {
        return Err(BenchError::Daemon(
            "started no session at saturation, so there is no share of its rate".to_owned(),
        ));
    }
    say(&format!("arrivals: {asked_rate:.1} sessions/s at random times"));
    sampler.now(Activity::Arrivals);
    let arrivals = open::run(&client, plan, asked_rate, begun, sampler.done()).await?;
    sampler.now(Activity::Between);
    tokio::time::sleep(plan.rest).await;

    say("rest: memory of sessions that do nothing");
    let idle = processes::idle(&client, &processes, plan).await?;
    sampler.now(Activity::After);
    tokio::time::sleep(plan.rest).await;
    let samples = sampler.stop().await;
    Ok(Outcome { saturation, arrivals, asked_rate, samples, idle })
}

/// The first requests for a golden load it and make its pool.
async fn warm_up(client: &Client, plan: &Plan) -> Result<(), BenchError> {
    for _ in 0..3 {
        match session::start(
            client,
            &request(plan, true),
            session::Docker::InTheRequest,
            Instant::now(),
        )
        .await
        {
            Attempt::Started(started) => kill(client, &started.id).await?,
            Attempt::Refused { code } => {
                return Err(BenchError::Daemon(format!("refused the first session: {code}")));
            }
            Attempt::Failed { reason } => {
                return Err(BenchError::Daemon(format!("failed the first session: {reason}")));
            }
        }
    }
    Ok(())
}

/// The sessions of a client that is interrupted end by themselves, soon.
fn request(plan: &Plan, wait_docker: bool) -> CreateSession {
    CreateSession {
        golden: plan.golden.clone(),
        wait_docker,
        ttl_seconds: Some(600),
        idle_timeout_seconds: Some(120),
        ..CreateSession::default()
    }
}

/// Counts sessions that have ended, over all phases.
type Done = Arc<std::sync::atomic::AtomicU64>;
