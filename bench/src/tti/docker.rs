//! Containers of Docker in one session that is there already.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_api::Exec;

use super::scenario::Scenario;
use super::session::{Answered, Event, Live};
use crate::error::BenchError;
use crate::load::Attempt;

/// Image of the containers; the default recipe has it.
pub const IMAGE: &str = "busybox";

/// Returns whether the session has Docker, and the image. A golden may have neither. `limit` bounds
/// the answer.
pub async fn has_image(session: &Live, limit: Duration) -> bool {
    let look = Exec::new(["docker", "image", "inspect", IMAGE]);
    session.run::<()>(&look, limit).await.is_ok()
}

/// Runs containers in `host`: from when each was due until `docker run --rm` has ended, the removal
/// of the container included. `limit` bounds each answer. The session is killed at the end.
///
/// # Errors
/// [`BenchError`] when a container cannot even be asked for.
pub async fn run(
    host: Live,
    scenario: &Scenario,
    limit: Duration,
) -> Result<Vec<Event>, BenchError> {
    let host = Arc::new(host);
    let command = Exec::new(["docker", "run", "--rm", IMAGE, "echo", "x"]);
    let request = |due: Instant| {
        let (host, command) = (host.clone(), command.clone());
        async move {
            let attempt = match host.run(&command, limit).await {
                Ok(()) => {
                    let output = due.elapsed();
                    Attempt::Started(Answered { tier: None, create: None, output })
                }
                Err(declined) => declined,
            };
            Ok(Event { due, attempt })
        }
    };
    let events = scenario.run(request).await;
    // Nobody else has it any more. One that cannot be killed has answered all the same.
    if let Some(host) = Arc::into_inner(host) {
        let _ = host.kill().await;
    }
    events
}
