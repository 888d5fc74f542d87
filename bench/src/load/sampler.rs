//! Looks at the daemon's processes and pool twice a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mayfly_client::Client;
use serde::Serialize;
use tokio::sync::{oneshot, watch};

use super::Done;
use super::processes::{Processes, Usage};

const INTERVAL: Duration = Duration::from_millis(500);
/// Bound on one answer of the daemon; a slower one is a gap.
const LIMIT: Duration = Duration::from_secs(10);

/// Activity of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Activity {
    /// Rest before the load.
    Before,
    /// The closed loop.
    Saturation,
    /// The open loop.
    Arrivals,
    /// Rest between the loads or with sessions at rest.
    Between,
    /// Rest after the load.
    After,
}

/// Figures of one look.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// Seconds since the begin of the run.
    pub at: f64,
    /// Activity at that time.
    pub activity: Activity,
    /// Sessions that have ended since then.
    pub done: u64,
    /// The daemon's process.
    pub daemon: Usage,
    /// The pager's process.
    pub pager: Usage,
    /// Memory of all VMMs as the kernel accounts it, in bytes.
    pub vmm_bytes: u64,
    /// Number of VMMs.
    pub vmms: usize,
    /// Sessions that live.
    pub sessions: usize,
    /// Requests that wait.
    pub queued: usize,
    /// Standbys that wait, of all goldens.
    pub standbys: usize,
    /// Shells that wait, of all goldens.
    pub shells: usize,
    /// Whether the daemon held back new sessions.
    pub pressure: bool,
}

/// A running look-out.
#[derive(Debug)]
pub struct Sampler {
    done: Done,
    activity: watch::Sender<Activity>,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Vec<Sample>>,
}

impl Sampler {
    /// Starts it. Times count from `origin`.
    pub fn start(client: Client, processes: Processes, origin: Instant) -> Self {
        let done: Done = Arc::new(AtomicU64::new(0));
        let (stop, mut stopped) = oneshot::channel();
        let (activity, current) = watch::channel(Activity::Before);
        let counter = done.clone();
        let task = tokio::spawn(async move {
            let mut samples = Vec::new();
            let mut ticks = tokio::time::interval(INTERVAL);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    // Also when the sampler is dropped.
                    _ = &mut stopped => return samples,
                    _ = ticks.tick() => {}
                }
                let activity = *current.borrow();
                let Some(sample) = look(&client, &processes, activity, origin, &counter).await
                else {
                    continue;
                };
                // One that began in one phase and ended in another says nothing about either.
                if *current.borrow() == activity {
                    samples.push(sample);
                }
            }
        });
        Self { done, activity, stop, task }
    }

    /// Returns the counter of ended sessions.
    pub fn done(&self) -> Done {
        self.done.clone()
    }

    /// Sets what the daemon does from now on.
    pub fn now(&self, activity: Activity) {
        self.activity.send_replace(activity);
    }

    /// Ends it.
    pub async fn stop(self) -> Vec<Sample> {
        let _ = self.stop.send(());
        self.task.await.unwrap_or_default()
    }
}

/// A daemon that does not answer is seen by the load; here it is only a gap.
async fn look(
    client: &Client,
    processes: &Processes,
    activity: Activity,
    origin: Instant,
    done: &AtomicU64,
) -> Option<Sample> {
    let status = tokio::time::timeout(LIMIT, client.status()).await.ok()?.ok()?;
    let pools = || status.goldens.iter().filter_map(|golden| golden.pool.as_ref());
    let (vmm_bytes, vmms) = processes.vmms();
    Some(Sample {
        at: origin.elapsed().as_secs_f64(),
        activity,
        done: done.load(Ordering::Relaxed),
        daemon: processes.daemon(),
        pager: processes.pager(),
        vmm_bytes,
        vmms,
        sessions: status.sessions,
        queued: status.queued,
        standbys: pools().map(|pool| pool.standbys).sum(),
        shells: pools().map(|pool| pool.shells).sum(),
        pressure: status.pressure.is_some(),
    })
}
