//! Time to interactive: from a request for a session to the output of its first command, as clients
//! of a daemon have it.
//!
//! A scenario says how many sessions are asked for, and when each is due. The time counts from
//! then, whatever kept the request from being made.

mod alive;
mod crun;
mod docker;
mod figures;
mod guard;
mod page;
pub(crate) mod pool;
mod report;
mod scenario;
mod session;
mod steps;

use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_api::Exec;
use mayfly_crun::Containers;
use tokio::task::JoinSet;

pub use alive::{AliveFigures, Stages};
pub use figures::{Latencies, Phase, Rate, Sample, Spread, System};
pub use pool::Pool;
pub use report::Report;
pub use scenario::{NoScenario, SEQUENTIAL, STAGGER, Scenario, Spacing};
pub use steps::StepFigures;

use alive::Alive;
use docker::IMAGE;
use guard::{Guard, Hold};
use session::{Event, Live, Order, Sessions};

use crate::error::BenchError;
use crate::load::{Attempt, Daemon, Processes};

/// Sessions before the first phase, which make the pool and fill caches. They do not count.
const WARM_UP: u32 = 3;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Golden of all sessions.
    pub golden: String,
    /// Scenarios, in their order.
    pub scenarios: Vec<Scenario>,
    /// First command of each session, with its arguments.
    pub command: Vec<String>,
    /// How long a request may wait for its turn.
    pub deadline: Duration,
    /// Whether the sessions of a burst live until all of it is answered.
    pub hold: bool,
    /// Rest before each phase, in which the pool fills.
    pub rest: Duration,
    /// Sessions for each first step; none are taken without.
    pub first_steps: Option<u32>,
    /// Sessions that are alive while the scenarios are run a second time; they are run once without.
    pub alive: Option<u32>,
    /// Containers to start beside; none without.
    pub peers: Option<Peers>,
}

/// Containers that are started beside sessions: those of crun in each scenario, and those of Docker
/// in one session.
#[derive(Debug, Clone)]
pub struct Peers {
    /// Containers of Docker one by one; none when 0.
    pub docker_runs: u32,
    /// Containers of Docker at once.
    pub docker_burst: Option<u32>,
}

/// Results of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The phases, in the order in which they were run.
    pub phases: Vec<Phase>,
    /// First steps, in their order.
    pub steps: Vec<StepFigures>,
    /// Sessions that were alive and did nothing; what there is beside them is in `phases`.
    pub alive: Option<AliveFigures>,
    /// What kept the part with such sessions from being measured to its end.
    pub cut_short: Option<BenchError>,
}

/// Measures `plan` with sessions of `daemon`. `say` is told what begins.
///
/// # Errors
/// [`BenchError`]; all sessions and containers are gone then.
pub async fn run(daemon: &Daemon, plan: &Plan, say: &dyn Fn(&str)) -> Result<Outcome, BenchError> {
    let guard = Guard::default();
    let outcome = measure(daemon, guard.hold(), plan, say).await;
    drop(guard);
    outcome
}

/// As [`run`], but sessions and containers may still be on their way out when it ends early. `hold`
/// is dropped with the last of them.
async fn measure(
    daemon: &Daemon,
    hold: Hold,
    plan: &Plan,
    say: &dyn Fn(&str),
) -> Result<Outcome, BenchError> {
    let containers = match &plan.peers {
        Some(_) => Some(Arc::new(Containers::new().await?)),
        None => None,
    };
    let sessions = Sessions::new(daemon.client().clone(), hold.clone());
    let order = Arc::new(Order::new(&plan.golden, Exec::new(&plan.command), plan.deadline));
    say("warm-up: the pool of the golden is made");
    let with_docker = warm_up(&sessions, &order).await?;

    let origin = Instant::now();
    let run = Run { sessions: &sessions, order: &order, plan, origin, say };
    let mut phases = run.scenarios(containers.as_ref(), 0).await?;
    match &plan.peers {
        Some(peers) if with_docker => {
            phases.extend(docker_runs(&sessions, &order, plan, peers, origin, say).await?);
        }
        Some(_) => say(&format!("no docker run: this golden has no {IMAGE} for Docker")),
        None => {}
    }
    let steps = match plan.first_steps {
        Some(count) => steps::run(&sessions, &order, count, with_docker, say).await,
        None => Vec::new(),
    };
    let (mut alive, mut cut_short) = (None, None);
    if let Some(count) = plan.alive {
        match run.beside_alive(Processes::of(daemon), count, &mut phases).await {
            Ok(figures) => alive = Some(figures),
            Err(error) => cut_short = Some(error),
        }
    }
    Ok(Outcome { phases, steps, alive, cut_short })
}

/// What the scenarios of a run have in common.
struct Run<'a> {
    sessions: &'a Sessions,
    order: &'a Arc<Order>,
    plan: &'a Plan,
    /// Begin of the run.
    origin: Instant,
    say: &'a dyn Fn(&str),
}

impl Run<'_> {
    /// Runs all scenarios, each also with `containers` where there are some. `alive` sessions do
    /// nothing meanwhile.
    async fn scenarios(
        &self,
        containers: Option<&Arc<Containers>>,
        alive: u32,
    ) -> Result<Vec<Phase>, BenchError> {
        let Self { sessions, order, plan, origin, say } = *self;
        let rest = || pool::rest(sessions.client(), &plan.golden, plan.rest);
        let mut phases = Vec::new();
        for scenario in &plan.scenarios {
            let pool = rest().await?;
            say(&format!("{scenario}: {} sessions", scenario.count));
            let events = ask(sessions, order, scenario, plan.hold).await?;
            let phase = Phase::new(*scenario, System::Mayfly, origin, pool, events);
            phases.push(phase.beside_alive(alive));
            if let Some(containers) = containers {
                let pool = rest().await?;
                say(&format!("{scenario}: {} containers of crun", scenario.count));
                let events = crun::run(containers, scenario, &sessions.hold()).await?;
                phases.push(Phase::new(*scenario, System::Crun, origin, pool, events));
            }
        }
        Ok(phases)
    }

    /// Starts `count` sessions, looks at them, and adds to `phases` the scenarios beside them.
    async fn beside_alive(
        &self,
        processes: Processes,
        count: u32,
        phases: &mut Vec<Phase>,
    ) -> Result<AliveFigures, BenchError> {
        (self.say)(&format!("{count} sessions that do nothing"));
        let rest = self.plan.rest;
        let alive = Alive::start(self.sessions, self.order, count, processes, rest).await?;
        phases.extend(self.scenarios(None, count).await?);
        alive.end(rest).await
    }
}

/// The first requests for a golden load it and make its pool. Returns whether its sessions have
/// Docker, and the image of the containers.
async fn warm_up(sessions: &Sessions, order: &Order) -> Result<bool, BenchError> {
    let mut with_docker = false;
    for _ in 0..WARM_UP {
        let (attempt, live) = sessions.first_output(order, Instant::now()).await;
        if let Attempt::Refused { code: why } | Attempt::Failed { reason: why } = attempt {
            return Err(BenchError::Daemon(format!("gave no output of a first session: {why}")));
        }
        if let Some(live) = live {
            with_docker = docker::has_image(&live, order.limit).await;
            live.kill().await?;
        }
    }
    Ok(with_docker)
}

/// Asks for the sessions of `scenario`. Each is killed when its first output is there, or, with
/// `hold` and all at once, when all are answered.
async fn ask(
    sessions: &Sessions,
    order: &Arc<Order>,
    scenario: &Scenario,
    hold: bool,
) -> Result<Vec<Event>, BenchError> {
    let hold = hold && scenario.spacing == Spacing::AtOnce;
    let request = |due| {
        let (sessions, order) = (sessions.clone(), order.clone());
        async move {
            let (attempt, live) = sessions.first_output(&order, due).await;
            let event = Event { due, attempt };
            Ok(match live {
                Some(live) if !hold => (end(event, live).await, None),
                held => (event, held),
            })
        }
    };
    let mut events = Vec::new();
    let mut ends = JoinSet::new();
    for (event, held) in scenario.run(request).await? {
        match held {
            Some(live) => drop(ends.spawn(end(event, live))),
            None => events.push(event),
        }
    }
    while let Some(event) = ends.join_next().await {
        events.push(event.map_err(|e| BenchError::Daemon(format!("cannot be asked: {e}")))?);
    }
    Ok(events)
}

/// Kills a session. One that has answered and cannot be killed has failed.
async fn end(event: Event, live: Live) -> Event {
    let ended = live.kill().await;
    match (event.attempt, ended) {
        (Attempt::Started(_), Err(error)) => {
            Event { attempt: Attempt::Failed { reason: error.to_string() }, ..event }
        }
        // One that has failed may be gone already.
        (attempt, _) => Event { attempt, ..event },
    }
}

/// Runs containers of Docker in one session.
async fn docker_runs(
    sessions: &Sessions,
    order: &Order,
    plan: &Plan,
    peers: &Peers,
    origin: Instant,
    say: &dyn Fn(&str),
) -> Result<Vec<Phase>, BenchError> {
    let one_by_one = Scenario { count: peers.docker_runs, spacing: Spacing::OneByOne };
    let at_once = peers.docker_burst.map(|count| Scenario { count, spacing: Spacing::AtOnce });
    let mut phases = Vec::new();
    for scenario in [one_by_one].into_iter().chain(at_once).filter(|one| one.count > 0) {
        let pool = pool::rest(sessions.client(), &plan.golden, plan.rest).await?;
        say(&format!("{scenario}: {} times docker run in one session", scenario.count));
        let events = match sessions.create(order).await {
            Ok(host) => docker::run(host, &scenario, order.limit).await?,
            Err(attempt) => vec![Event { due: Instant::now(), attempt }],
        };
        phases.push(Phase::new(scenario, System::DockerRun, origin, pool, events));
    }
    Ok(phases)
}
