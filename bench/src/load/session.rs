//! Session of the load: asked for, waited for, killed.

use std::path::Path;
use std::time::{Duration, Instant};

use mayfly_api::{CreateSession, StartBreakdown, Tier};
use mayfly_client::{Client, ClientError};
use tokio::net::UnixStream;

use crate::docker;
use crate::error::BenchError;

/// Bound on one answer; it catches what hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// Way to wait for a session's Docker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Docker {
    /// The daemon waits (`wait_docker`) and answers then.
    InTheRequest,
    /// The daemon answers when the agent has; then the client pings through the session's socket on
    /// this host.
    ThroughTheSocket,
}

/// A session that was started.
#[derive(Debug, Clone)]
pub struct Started {
    /// Session id.
    pub id: String,
    /// Tier from which it was started.
    pub tier: Tier,
    /// Breakdown of its start, as the daemon reports it.
    pub daemon: StartBreakdown,
    /// Time from the request to the answer of the agent, as the client saw it; only where the
    /// client could see it.
    pub agent: Option<Duration>,
    /// Time from the request to the answer of Docker, as the client saw it.
    pub docker: Duration,
}

/// Outcome of one request, with what was measured of one that was met.
#[derive(Debug, Clone)]
pub enum Attempt<S = Started> {
    /// Session that was started.
    Started(S),
    /// The daemon declined in order.
    Refused {
        /// Word of the daemon for the reason.
        code: String,
    },
    /// Request that failed in some other way.
    Failed {
        /// Description of the failure.
        reason: String,
    },
}

/// Asks for a session and waits for its Docker. `due` is when the request was to be made: what kept
/// the client from making it then counts.
pub async fn start(
    client: &Client,
    request: &CreateSession,
    docker: Docker,
    due: Instant,
) -> Attempt {
    let attempt = async {
        let info = match client.create(request, None).await {
            Ok(info) => info,
            Err(error) => return declined(&error),
        };
        let answered = due.elapsed();
        let mut started = Started {
            id: info.id,
            tier: info.tier,
            daemon: info.start,
            agent: None,
            docker: answered,
        };
        if docker == Docker::ThroughTheSocket {
            started.agent = Some(answered);
            if let Err(error) = ping(&info.docker_socket).await {
                let _ = client.kill(&started.id).await;
                return Attempt::Failed {
                    reason: format!("{}: {error}", info.docker_socket.display()),
                };
            }
            started.docker = due.elapsed();
        }
        Attempt::Started(started)
    };
    let silent = || Attempt::Failed { reason: format!("no answer within {} s", LIMIT.as_secs()) };
    tokio::time::timeout(LIMIT, attempt).await.unwrap_or_else(|_| silent())
}

async fn ping(socket: &Path) -> std::io::Result<()> {
    docker::ping(UnixStream::connect(socket).await?).await
}

/// Returns the outcome of a request that ended with `error`: refused in order, or failed.
pub fn declined<S>(error: &ClientError) -> Attempt<S> {
    match error.status().map(|status| status.as_u16()) {
        Some(429 | 503 | 504) => {
            Attempt::Refused { code: error.code().unwrap_or_default().to_owned() }
        }
        _ => Attempt::Failed { reason: error.to_string() },
    }
}

/// Ends session `id`; nothing of it is left then.
///
/// # Errors
/// [`BenchError::Daemon`].
pub async fn kill(client: &Client, id: &str) -> Result<(), BenchError> {
    let failed = |reason: String| BenchError::Daemon(format!("did not end session {id}: {reason}"));
    match tokio::time::timeout(LIMIT, client.kill(id)).await {
        Ok(answer) => answer.map_err(|e| failed(e.to_string())),
        Err(_) => Err(failed("no answer".to_owned())),
    }
}
