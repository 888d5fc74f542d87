//! Arrivals at random times, whatever the daemon does.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mayfly_client::Client;
use rand::RngExt;
use tokio::task::JoinSet;

use super::figures::{Event, Phase};
use super::session::{self, Attempt, Docker};
use super::{Done, Plan, request};
use crate::error::BenchError;

/// Asks for `plan.sessions` sessions at the times of a Poisson process with `rate` arrivals per
/// second. Latency counts from the time a request was due, so that a daemon that holds up its
/// clients gains nothing. Every second session has its client ping Docker itself, the others have
/// the daemon do it.
///
/// # Errors
/// [`BenchError::Daemon`] when a session cannot be ended.
pub async fn run(
    client: &Client,
    plan: &Plan,
    rate: f64,
    origin: Instant,
    done: Done,
) -> Result<Phase, BenchError> {
    let begun = Instant::now();
    let mut due = begun;
    let mut requests = JoinSet::new();
    for (at, gap) in gaps(rate).take(plan.sessions as usize).enumerate() {
        due += gap;
        tokio::time::sleep_until(due.into()).await;
        let docker = if at % 2 == 0 { Docker::ThroughTheSocket } else { Docker::InTheRequest };
        let request = request(plan, docker == Docker::InTheRequest);
        let (client, hold, done) = (client.clone(), plan.hold, done.clone());
        requests.spawn(async move {
            let attempt = session::start(&client, &request, docker, due).await;
            if let Attempt::Started(started) = &attempt {
                tokio::time::sleep(hold).await;
                session::kill(&client, &started.id).await?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, BenchError>(Event { due, ended: Instant::now(), attempt })
        });
    }
    let mut events = Vec::new();
    while let Some(request) = requests.join_next().await {
        events.push(request.map_err(|e| BenchError::Daemon(format!("cannot be asked: {e}")))??);
    }
    Ok(Phase::new(origin, begun, begun.elapsed(), &events))
}

/// Times between arrivals: exponentially distributed.
fn gaps(rate: f64) -> impl Iterator<Item = Duration> {
    let mut random = rand::rng();
    std::iter::repeat_with(move || {
        let share: f64 = random.random_range(0.0..1.0);
        Duration::from_secs_f64(-(1.0 - share).ln() / rate)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_come_at_the_rate_and_not_evenly() {
        let gaps: Vec<f64> = gaps(20.0).take(20_000).map(|g| g.as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // Both are 1 / rate; 20,000 draws are within 10 standard errors.
        assert!((mean - 0.05).abs() < 0.0036, "{mean}");
        assert!((variance.sqrt() - 0.05).abs() < 0.006, "{variance}");
    }
}
