//! Containers of crun on the host, beside sessions.

use std::sync::Arc;
use std::time::Instant;

use mayfly_crun::Containers;
use mayfly_engine::session::identity;
use tokio::runtime::Handle;

use super::guard::Hold;
use super::scenario::Scenario;
use super::session::{Answered, Event, nameless};
use crate::error::BenchError;
use crate::load::Attempt;

/// Starts containers: from when each was due until its first process has written a line. Each is
/// removed before it counts as done; the guard of `hold` waits for that.
///
/// # Errors
/// [`BenchError`] when a container cannot even be asked for.
pub async fn run(
    containers: &Arc<Containers>,
    scenario: &Scenario,
    hold: &Hold,
) -> Result<Vec<Event>, BenchError> {
    let request = |due: Instant| {
        let (containers, hold) = (containers.clone(), hold.clone());
        async move {
            let id = identity::new_id()?;
            let runtime = Handle::current();
            // Its removal holds up the thread it is on, which must not delay what others hear.
            let answer = tokio::task::spawn_blocking(move || {
                let answer = runtime.block_on(async {
                    let waited = due.elapsed();
                    match containers.start(&id).await {
                        Ok(took) => Ok(waited + took),
                        Err(error) => Err(nameless(&error.to_string(), &id)),
                    }
                });
                // Their folder goes with the last one, and only then the hold.
                drop(containers);
                drop(hold);
                answer
            });
            let attempt = match answer.await.map_err(|error| error.to_string()).flatten() {
                Ok(output) => Attempt::Started(Answered { tier: None, create: None, output }),
                Err(reason) => Attempt::Failed { reason },
            };
            Ok(Event { due, attempt })
        }
    };
    scenario.run(request).await
}
