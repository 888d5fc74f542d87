//! Session as users of a client have it: asked for, given its first command, killed.

use std::time::{Duration, Instant};

use mayfly_api::{CreateSession, Exec, SessionInfo, Tier};
use mayfly_client::{Client, ClientError};
use tokio::runtime::Handle;

use super::guard::Hold;
use crate::error::BenchError;
use crate::load::{Attempt, declined, kill};

/// What an answer may take beyond the time that a request may wait for its turn.
const SLACK: Duration = Duration::from_secs(60);
/// The longest piece of a command's own words that is kept as the reason of a failure.
const WORDS: usize = 200;

/// The session to ask for, and what to run first in it.
#[derive(Debug, Clone)]
pub struct Order {
    /// Request for the session.
    pub request: CreateSession,
    /// Command to run in it.
    pub command: Exec,
    /// Bound on each answer; it catches what hangs.
    pub limit: Duration,
}

/// Latencies of one session, from the time its request was due.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    /// Tier from which it was started; `None` for what has no tiers.
    pub tier: Option<Tier>,
    /// Time until the daemon had answered that there is a session; `None` for what does not say so.
    pub create: Option<Duration>,
    /// Time until the first command had ended, and all of its output was there.
    pub output: Duration,
}

/// Request and what came of it.
#[derive(Debug, Clone)]
pub struct Event {
    /// Time at which it was due.
    pub due: Instant,
    /// Outcome of the request.
    pub attempt: Attempt<Answered>,
}

impl Order {
    /// Creates the order of a session of `golden` that may wait for its turn as long as `deadline`,
    /// and in which `command` runs first.
    pub fn new(golden: &str, command: Exec, deadline: Duration) -> Self {
        let request = CreateSession {
            golden: golden.to_owned(),
            // The sessions of a client that is interrupted end by themselves, soon.
            ttl_seconds: Some(3600),
            idle_timeout_seconds: Some(120),
            deadline_ms: Some(u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX)),
            ..CreateSession::default()
        };
        Self { request, command, limit: deadline + SLACK }
    }
}

/// Client that asks for sessions.
#[derive(Debug, Clone)]
pub struct Sessions {
    client: Client,
    /// Held by whoever asks for sessions, by each session, and by whoever kills it.
    hold: Hold,
}

/// A session that is killed when this is dropped.
#[derive(Debug)]
pub struct Live {
    client: Client,
    info: SessionInfo,
    /// Absent when it has been killed.
    hold: Option<Hold>,
    runtime: Handle,
}

impl Sessions {
    /// Asks for sessions with `client`. The guard of `hold` waits until they are gone.
    pub fn new(client: Client, hold: Hold) -> Self {
        Self { client, hold }
    }

    /// Returns the client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns a hold, for what is asked for beside sessions.
    pub fn hold(&self) -> Hold {
        self.hold.clone()
    }

    /// Asks for a session. Must be called in a Tokio runtime.
    ///
    /// # Errors
    /// What the request ended with instead.
    pub async fn create<S>(&self, order: &Order) -> Result<Live, Attempt<S>> {
        let info = within(order.limit, self.client.create(&order.request, None)).await?;
        Ok(Live {
            client: self.client.clone(),
            info,
            hold: Some(self.hold.clone()),
            runtime: Handle::current(),
        })
    }

    /// Asks for a session, runs the first command and waits until it has ended with all its output.
    /// `due` is when the request was to be made. The session lives on where there is one.
    pub async fn first_output(
        &self,
        order: &Order,
        due: Instant,
    ) -> (Attempt<Answered>, Option<Live>) {
        let live = match self.create(order).await {
            Ok(live) => live,
            Err(declined) => return (declined, None),
        };
        let create = due.elapsed();
        match live.run(&order.command, order.limit).await {
            Ok(()) => {
                let output = due.elapsed();
                let tier = Some(live.info.tier);
                (Attempt::Started(Answered { tier, create: Some(create), output }), Some(live))
            }
            Err(declined) => (declined, Some(live)),
        }
    }
}

impl Live {
    /// Returns the id of the session.
    pub fn id(&self) -> &str {
        &self.info.id
    }

    /// Runs a command to its end; it must succeed.
    ///
    /// # Errors
    /// What it ended with instead.
    pub async fn run<S>(&self, command: &Exec, limit: Duration) -> Result<(), Attempt<S>> {
        let id = self.id();
        let result = within(limit, self.client.exec(id, command)).await;
        let result = result.map_err(|declined| match declined {
            Attempt::Failed { reason } => Attempt::Failed { reason: nameless(&reason, id) },
            other => other,
        })?;
        if result.outcome.success() {
            return Ok(());
        }
        let words: String = result.stderr.to_text().trim().chars().take(WORDS).collect();
        let code = result.outcome.shell_code();
        let words = words.escape_debug();
        Err(Attempt::Failed { reason: format!("the command ended with {code}: {words}") })
    }

    /// Kills it; nothing of it is left then.
    ///
    /// # Errors
    /// [`BenchError::Daemon`].
    pub async fn kill(mut self) -> Result<(), BenchError> {
        let outcome = kill(&self.client, &self.info.id).await;
        self.hold = None;
        outcome.map_err(|error| match error {
            BenchError::Daemon(words) => BenchError::Daemon(nameless(&words, &self.info.id)),
            other => other,
        })
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(hold) = self.hold.take() {
            let (client, id) = (self.client.clone(), self.info.id.clone());
            self.runtime.spawn(async move {
                // One that has failed may be gone already.
                let _ = kill(&client, &id).await;
                drop(hold);
            });
        }
    }
}

/// Words without the id of what they are about: with it each would have a reason of its own.
pub fn nameless(words: &str, id: &str) -> String {
    words.replace(id, "of ours")
}

/// Waits for an answer no longer than `limit`.
///
/// # Errors
/// What the request ended with instead.
pub async fn within<T, S>(
    limit: Duration,
    answer: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, Attempt<S>> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer.map_err(|error| declined(&error)),
        Err(_) => {
            Err(Attempt::Failed { reason: format!("no answer within {} s", limit.as_secs()) })
        }
    }
}
