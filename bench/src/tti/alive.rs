//! Sessions that are there and do nothing while others are asked for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_api::CreateSession;
use serde::Serialize;
use tokio::task::JoinSet;

use super::figures::Spread;
use super::pool;
use super::session::{Live, Order, Sessions};
use crate::error::BenchError;
use crate::load::{Attempt, Processes, Usage};

/// How long their processor time is looked at.
const LOOK: Duration = Duration::from_secs(30);
/// Requests for them at the same time.
const AT_ONCE: u32 = 4;

/// Figures of sessions that do nothing.
#[derive(Debug, Clone, Serialize)]
pub struct AliveFigures {
    /// Number of them.
    pub sessions: usize,
    /// Processor time of the VMM of each, in percent of one processor.
    pub processor_percent: Spread,
    /// Memory that the VMM of each shares with nobody, in MiB.
    pub private_mib: Spread,
    /// The daemon's process.
    pub daemon: Stages,
    /// The pager's process.
    pub pager: Stages,
}

/// Memory and descriptors of a process.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Stages {
    /// Before there were such sessions.
    pub before: Usage,
    /// With all of them.
    pub with: Usage,
    /// After they had been killed.
    pub after: Usage,
}

/// Sessions that are alive, and what was measured of them until now.
#[derive(Debug)]
pub struct Alive {
    lives: Vec<Live>,
    processes: Processes,
    figures: AliveFigures,
}

impl Alive {
    /// Starts `count` sessions, lets the pool rest for `rest`, and looks at what they take.
    ///
    /// # Errors
    /// [`BenchError::Daemon`] when a session cannot be had; all are killed then.
    pub async fn start(
        sessions: &Sessions,
        order: &Order,
        count: u32,
        processes: Processes,
        rest: Duration,
    ) -> Result<Self, BenchError> {
        let (daemon, pager) = (processes.daemon(), processes.pager());
        let lives = lives(sessions, order, count).await?;
        pool::rest(sessions.client(), &order.request.golden, rest).await?;
        let earlier = look(&processes, Processes::processor_times).await?;
        tokio::time::sleep(LOOK).await;
        let later = look(&processes, Processes::processor_times).await?;
        let private = look(&processes, Processes::private_mib).await?;
        let percent = |live: &Live| {
            let spent = later.get(live.id())?.checked_sub(*earlier.get(live.id())?)?;
            Some(spent.as_secs_f64() / LOOK.as_secs_f64() * 1e2)
        };
        let mib = |live: &Live| private.get(live.id()).copied();
        let figures = AliveFigures {
            sessions: lives.len(),
            processor_percent: Spread::of(lives.iter().filter_map(percent).collect()),
            private_mib: Spread::of(lives.iter().filter_map(mib).collect()),
            daemon: Stages { before: daemon, with: processes.daemon(), ..Stages::default() },
            pager: Stages { before: pager, with: processes.pager(), ..Stages::default() },
        };
        Ok(Self { lives, processes, figures })
    }

    /// Kills the sessions, rests, and returns all figures.
    ///
    /// # Errors
    /// [`BenchError::Daemon`] when one cannot be killed: it did not live until now.
    pub async fn end(mut self, rest: Duration) -> Result<AliveFigures, BenchError> {
        for live in self.lives {
            live.kill().await?;
        }
        tokio::time::sleep(rest).await;
        self.figures.daemon.after = self.processes.daemon();
        self.figures.pager.after = self.processes.pager();
        Ok(self.figures)
    }
}

/// Starts sessions that live as long as the run, each with its first command.
async fn lives(sessions: &Sessions, order: &Order, count: u32) -> Result<Vec<Live>, BenchError> {
    let request =
        CreateSession { idle_timeout_seconds: order.request.ttl_seconds, ..order.request.clone() };
    let order = Arc::new(Order { request, ..order.clone() });
    let mut lives = Vec::new();
    let mut requests = JoinSet::new();
    for at in 0..count {
        if at >= AT_ONCE
            && let Some(one) = requests.join_next().await
        {
            lives.push(had(one)?);
        }
        let (sessions, order) = (sessions.clone(), order.clone());
        requests.spawn(async move { sessions.first_output(&order, Instant::now()).await });
    }
    while let Some(one) = requests.join_next().await {
        lives.push(had(one)?);
    }
    Ok(lives)
}

fn had<S>(
    one: Result<(Attempt<S>, Option<Live>), tokio::task::JoinError>,
) -> Result<Live, BenchError> {
    let none = |why: String| BenchError::Daemon(format!("gave no session to keep alive: {why}"));
    match one.map_err(|e| none(e.to_string()))? {
        (Attempt::Refused { code: why } | Attempt::Failed { reason: why }, _) => Err(none(why)),
        (Attempt::Started(_), live) => live.ok_or_else(|| none("it is gone".to_owned())),
    }
}

/// Looks at processes on a thread that may block: there are hundreds of them.
async fn look<T: Send + 'static>(
    processes: &Processes,
    of: fn(&Processes) -> Vec<(String, T)>,
) -> Result<HashMap<String, T>, BenchError> {
    let processes = processes.clone();
    let looked = tokio::task::spawn_blocking(move || of(&processes)).await;
    let looked = looked.map_err(|e| BenchError::Daemon(format!("cannot be looked at: {e}")))?;
    Ok(looked.into_iter().collect())
}
