//! Records which memory a session needs first, by one throw-away restore.

use mayfly_guest::channel::ExecRequest;

use super::error::GoldenError;
use crate::engine::{Engine, SessionOptions};
use crate::session::SessionError;

/// Commands every session is likely to begin with; what they touch is fetched ahead in later
/// sessions.
const FIRST_COMMANDS: &[&[&str]] = &[&["/bin/sh", "-c", "echo ready; cat /proc/uptime >/dev/null"]];
/// With Docker: the first calls of its client.
const FIRST_DOCKER_COMMANDS: &[&[&str]] = &[&["docker", "version"], &["docker", "ps", "--all"]];

/// Chunks of golden `name` in the order a session touches them first.
pub(super) async fn record(engine: &Engine, name: &str) -> Result<Vec<u32>, GoldenError> {
    let failed = |error: SessionError| GoldenError::WorkingSet {
        name: name.to_owned(),
        reason: error.to_string(),
    };
    let golden = engine.golden(name).await?;
    let options = SessionOptions { record: true, ..SessionOptions::default() };
    let session = engine.start_session(&golden, &options).await.map_err(failed)?;
    let touched = async {
        let health = session.guarded(session.guest().health()).await?;
        if health.docker == Some(true) {
            session.docker_ping().await?;
        }
        let docker: &[&[&str]] =
            if health.docker == Some(true) { FIRST_DOCKER_COMMANDS } else { &[] };
        for command in FIRST_COMMANDS.iter().chain(docker) {
            let run = async {
                session
                    .guest()
                    .exec(ExecRequest::new(command.iter().copied()))
                    .await?
                    .output()
                    .await
            };
            session.guarded(run).await?;
        }
        session.recording().await
    };
    let chunks = touched.await;
    session.discard().await.map_err(failed)?;
    chunks.map_err(failed)
}
