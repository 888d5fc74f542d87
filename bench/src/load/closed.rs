//! Saturation: a closed loop of clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use mayfly_client::Client;
use tokio::task::JoinSet;

use super::figures::{Event, Phase};
use super::session::{self, Attempt, Docker};
use super::{Done, Plan, request};
use crate::error::BenchError;

/// Rest of a client after a refusal.
const AFTER_REFUSAL: Duration = Duration::from_millis(100);
/// After so many requests in a row without a session a client gives up.
const PATIENCE: u32 = 100;

/// Has `plan.workers` clients start, and end, sessions as fast as they can, `plan.sessions` in all.
///
/// # Errors
/// [`BenchError::Daemon`] when no session can be had, or one cannot be ended.
pub async fn run(
    client: &Client,
    plan: &Plan,
    origin: Instant,
    done: Done,
) -> Result<Phase, BenchError> {
    let left = Arc::new(AtomicU32::new(plan.sessions));
    let begun = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..plan.workers {
        workers.spawn(work(client.clone(), request(plan, true), left.clone(), done.clone()));
    }
    let mut events = Vec::new();
    while let Some(worker) = workers.join_next().await {
        let worker = worker.map_err(|e| BenchError::Daemon(format!("cannot be asked: {e}")))?;
        events.extend(worker?);
    }
    Ok(Phase::new(origin, begun, begun.elapsed(), &events))
}

async fn work(
    client: Client,
    request: mayfly_api::CreateSession,
    left: Arc<AtomicU32>,
    done: Done,
) -> Result<Vec<Event>, BenchError> {
    let mut events = Vec::new();
    let mut in_vain = 0;
    while take(&left) {
        let due = Instant::now();
        let attempt = session::start(&client, &request, Docker::InTheRequest, due).await;
        match &attempt {
            Attempt::Started(started) => {
                session::kill(&client, &started.id).await?;
                done.fetch_add(1, Ordering::Relaxed);
                in_vain = 0;
            }
            Attempt::Refused { code: why } | Attempt::Failed { reason: why } => {
                left.fetch_add(1, Ordering::Relaxed);
                in_vain += 1;
                if in_vain == PATIENCE {
                    return Err(BenchError::Daemon(format!(
                        "gave no session to {PATIENCE} requests in a row: {why}"
                    )));
                }
                tokio::time::sleep(AFTER_REFUSAL).await;
            }
        }
        events.push(Event { due, ended: Instant::now(), attempt });
    }
    Ok(events)
}

/// Takes one of the sessions that are left.
fn take(left: &AtomicU32) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
}
