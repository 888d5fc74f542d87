//! Rest between phases, until the pool of the golden is full again.

use std::time::{Duration, Instant};

use mayfly_client::Client;
use serde::Serialize;

use crate::error::BenchError;

/// How long is waited for the pool, after the rest.
const LIMIT: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_millis(100);

/// Pool at the begin of a phase.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Pool {
    /// Standbys that waited.
    pub standbys: usize,
    /// Number of standbys that the daemon wanted.
    pub target: usize,
    /// Whether there was a VMM to fork from.
    pub zygote: bool,
    /// Whether that had taken all first steps of a session.
    pub rehearsed: bool,
    /// Reason why the daemon did not refill it; absent when it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
}

/// Rests for `rest`, then waits until the pool of `golden` has as many standbys as the daemon
/// wants, and its zygote has taken all first steps, if there is one; for a minute at most. Returns the pool as it is then.
///
/// # Errors
/// [`BenchError::Daemon`] when the daemon does not say what it has.
pub async fn rest(client: &Client, golden: &str, rest: Duration) -> Result<Pool, BenchError> {
    tokio::time::sleep(rest).await;
    let begun = Instant::now();
    loop {
        let pool = look(client, golden).await?;
        if pool.is_ready() || begun.elapsed() > LIMIT {
            return Ok(pool);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

impl Pool {
    fn is_ready(&self) -> bool {
        self.standbys >= self.target && self.zygote == self.rehearsed
    }
}

async fn look(client: &Client, golden: &str) -> Result<Pool, BenchError> {
    let silent = |e: String| BenchError::Daemon(format!("does not say what is in its pool: {e}"));
    let status = tokio::time::timeout(LIMIT, client.status()).await;
    let status = status.map_err(|e| silent(e.to_string()))?.map_err(|e| silent(e.to_string()))?;
    let pool = status.goldens.into_iter().find(|one| one.name == golden).and_then(|one| one.pool);
    // A golden without a pool is as ready as it gets.
    Ok(pool.map_or_else(Pool::default, |pool| Pool {
        standbys: pool.standbys,
        target: pool.target,
        zygote: pool.zygote,
        rehearsed: pool.rehearsed,
        held: pool.held,
    }))
}
