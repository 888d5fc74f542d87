//! Hot standbys: restored guests whose agent and Docker daemon have answered, frozen until somebody
//! needs a session.

use std::time::{Duration, Instant};

use mayfly_guest::channel::Channel;
use mayfly_host::cgroup::Limits;
use mayfly_host::time_scale::scaled;
use tracing::Instrument;

use super::running::Parked;
use super::state::SessionState;
use super::{Session, SessionError, Shell, StartTimes, identity};
use crate::golden::Extent;

/// Bound on the first answer after a hand-over. Generous: it catches what hangs, not what is slow.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(30);

/// A restored, frozen guest without an identity of its own. Dropping it discards it.
#[derive(Debug)]
pub struct Standby {
    pub(super) parked: Parked,
    /// What the zygote that it was forked from has taken of the first steps.
    pub(super) extent: Option<Extent>,
    pub(super) span: tracing::Span,
}

impl Shell {
    /// Restores the golden into this shell, has the agent and, where there is one, the Docker
    /// daemon answer once, and freezes the guest where it waits for an identity. What the guest was
    /// called meanwhile is forgotten at hand-over.
    ///
    /// # Errors
    /// [`SessionError`]; nothing is left behind then.
    pub async fn prepare(self) -> Result<Standby, SessionError> {
        let span = self.span.clone();
        let docker = self.machine.golden.has_docker();
        let work = async {
            let session = self.start().await?;
            if docker {
                session.docker_ping().await?;
            }
            session.park().await
        };
        let parked = work.instrument(span.clone()).await?;
        Ok(Standby { parked, extent: None, span })
    }
}

impl Standby {
    /// Returns the session id; the session that comes of it keeps it.
    pub fn id(&self) -> &str {
        &self.parked.id
    }

    /// Returns the process id of the VMM on this host.
    pub fn vmm_pid(&self) -> u32 {
        self.parked.supervisor.pid()
    }

    /// Returns how much of the first steps the zygote had taken from which it was forked; `None` for
    /// one that was restored by itself.
    pub fn extent(&self) -> Option<Extent> {
        self.extent
    }

    /// Resolves with the reason when the standby is of no use any more: its VMM or the pager is
    /// gone.
    pub async fn failed(&self) -> std::sync::Arc<str> {
        self.parked.supervisor.state().failed().await
    }

    /// Returns the memory of the VMM process that no other process shares, in bytes.
    ///
    /// # Errors
    /// [`SessionError::Io`] when the process is gone.
    pub fn private_memory(&self) -> Result<u64, SessionError> {
        self.parked.supervisor.private_memory()
    }

    /// Gives the guest its identity, entropy and clock, sets `limits`, and lets it go on as
    /// somebody's session.
    ///
    /// # Errors
    /// [`SessionError`]; nothing is left behind then.
    pub async fn hand_over(self, limits: &Limits) -> Result<Session, SessionError> {
        let span = self.span.clone();
        self.parked.wake(Some(limits)).instrument(span).await
    }

    /// Takes the standby down; nothing of it is left afterwards.
    ///
    /// # Errors
    /// [`SessionError`] when something could not be removed.
    pub async fn discard(self) -> Result<(), SessionError> {
        self.parked.supervisor.discard().await
    }
}

impl Parked {
    /// Lets the guest go on under a new identity, and sets `limits` where there are any.
    pub(super) async fn wake(self, limits: Option<&Limits>) -> Result<Session, SessionError> {
        let begun = Instant::now();
        let Self { id, stream, times, socket_dir, supervisor } = self;
        let opened = async {
            let (channel, ack) = Channel::open(stream, &identity::hello(&id)?).await?;
            let answered = begun.elapsed();
            match ack.errors.first() {
                Some(error) => Err(SessionError::NotUnique { reason: error.to_string() }),
                None => Ok((channel, answered)),
            }
        };
        // The identity is written while the guest still sleeps: it finds it when it goes on. The
        // limits are set before that: on a busy host one that is still in the background would not
        // go on for long.
        let resumed = async {
            if let Some(limits) = limits {
                supervisor.limit(limits.clone()).await?;
            }
            supervisor.resume().await?;
            Ok::<_, SessionError>(begun.elapsed())
        };
        let limit = scaled(HAND_OVER_LIMIT);
        let outcome = tokio::select! {
            outcome = async { tokio::try_join!(opened, resumed) } => outcome,
            reason = supervisor.state().failed() => Err(SessionError::Gone { state: SessionState::Failed(reason) }),
            () = tokio::time::sleep(limit) => {
                Err(SessionError::NoAnswer { limit, console: String::new() })
            }
        };
        match outcome {
            Ok(((channel, agent), restore)) => {
                let times = StartTimes { restore, agent, ..times };
                tracing::debug!(agent_us = agent.as_micros(), "agent answered");
                Ok(Session::new(id, socket_dir, channel, times, supervisor))
            }
            Err(error) => {
                supervisor.discard().await?;
                Err(error)
            }
        }
    }
}
