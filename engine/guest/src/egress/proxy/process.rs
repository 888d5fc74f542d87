//! The proxy process: serves the sessions that its engine gives it, and ends with the engine.

use std::io;
use std::os::fd::OwnedFd;

use tokio::task::JoinSet;

use super::super::link::Link;
use super::super::messages::{Begin, Ready};
use super::session::serve_session;

/// Serves the sessions that come over `engine`, the process's own link, until the engine closes it.
///
/// The caller has given up all that the process could do harm with: it reads what guests and
/// servers send.
///
/// # Errors
/// When the engine sends what is no session.
pub async fn run(engine: OwnedFd) -> io::Result<()> {
    let engine = Link::new(engine)?;
    engine.send(&Ready, None).await?;
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! {
            received = engine.receive::<Begin>() => match received? {
                Some((begin, Some(link))) => match Link::new(link) {
                    Ok(link) => drop(sessions.spawn(serve_session(link, begin))),
                    Err(error) => tracing::warn!(%error, "a session's link"),
                },
                // There are too many descriptors for it. Others go on.
                Some((_, None)) => tracing::warn!("a session came without its link"),
                None => return Ok(()),
            },
            Some(_) = sessions.join_next() => {}
        }
    }
}
