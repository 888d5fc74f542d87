//! The life of a session as an explicit state machine.
//!
//! ```text
//! Shell ──► Restoring ──► Running ◄──► Paused
//!   │           │            │           │
//!   └───────────┴─────┬──────┴───────────┘
//!                     ▼
//!        Failed ──► Discarding ──► Discarded
//! ```
//! Any state before `Discarding` may become `Failed`. Only `Running` and `Paused` alternate: a
//! session is used once.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

/// State of a session in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionState {
    /// The VMM waits for its device state.
    Shell,
    /// Device state and identity are on their way.
    Restoring,
    /// The agent has answered.
    Running,
    /// The guest's CPUs are frozen.
    Paused,
    /// Something ended the session before its owner did; the VMM is dead or about to be.
    Failed(Arc<str>),
    /// Being taken down.
    Discarding,
    /// The session is gone, and nothing of it is left.
    Discarded,
}

impl fmt::Display for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SessionState::Shell => "shell",
            SessionState::Restoring => "restoring",
            SessionState::Running => "running",
            SessionState::Paused => "paused",
            SessionState::Failed(_) => "failed",
            SessionState::Discarding => "discarding",
            SessionState::Discarded => "discarded",
        })
    }
}

impl SessionState {
    /// Returns whether `next` may follow this state.
    pub fn allows(&self, next: &SessionState) -> bool {
        use SessionState::{Discarded, Discarding, Failed, Paused, Restoring, Running, Shell};
        matches!(
            (self, next),
            (Shell, Restoring)
                | (Restoring | Paused, Running)
                | (Running, Paused)
                | (Shell | Restoring | Running | Paused, Failed(_))
                | (Shell | Restoring | Running | Paused | Failed(_), Discarding)
                | (Discarding, Discarded)
        )
    }
}

/// A step that the life of a session does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a session that is {from} cannot become {to}; sessions are used once, start a new one")]
pub struct InvalidTransition {
    /// The present state.
    pub from: SessionState,
    /// The refused one.
    pub to: SessionState,
}

/// Cell that holds the state of one session; observers wait on it.
#[derive(Debug, Clone)]
pub struct StateCell {
    sender: Arc<watch::Sender<SessionState>>,
}

impl Default for StateCell {
    fn default() -> Self {
        Self { sender: Arc::new(watch::Sender::new(SessionState::Shell)) }
    }
}

impl StateCell {
    /// Returns the present state.
    pub fn get(&self) -> SessionState {
        self.sender.borrow().clone()
    }

    /// Moves to `next`.
    ///
    /// # Errors
    /// [`InvalidTransition`]; the state is unchanged then.
    pub fn advance(&self, next: SessionState) -> Result<(), InvalidTransition> {
        let mut outcome = Ok(());
        self.sender.send_if_modified(|state| {
            if state.allows(&next) {
                tracing::trace!(from = %state, to = %next, "session state");
                *state = next;
                true
            } else {
                outcome = Err(InvalidTransition { from: state.clone(), to: next });
                false
            }
        });
        outcome
    }

    /// Returns a receiver that sees each later state, but for those that another follows at once.
    pub fn subscribe(&self) -> watch::Receiver<SessionState> {
        self.sender.subscribe()
    }

    /// Resolves with the reason once the session has failed; never if it ends in order.
    pub async fn failed(&self) -> Arc<str> {
        let mut receiver = self.sender.subscribe();
        let failed = receiver
            .wait_for(|state| matches!(state, SessionState::Failed(_)))
            .await
            .map(|s| s.clone());
        match failed {
            Ok(SessionState::Failed(reason)) => reason,
            // The sender lives in self, so the wait cannot end otherwise.
            _ => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> [SessionState; 7] {
        use SessionState::{Discarded, Discarding, Failed, Paused, Restoring, Running, Shell};
        [Shell, Restoring, Running, Paused, Failed("x".into()), Discarding, Discarded]
    }

    #[test]
    fn nothing_follows_the_end_and_nothing_returns_to_the_start() {
        for state in all() {
            assert!(!SessionState::Discarded.allows(&state));
            assert!(!state.allows(&SessionState::Shell));
            assert_eq!(SessionState::Discarding.allows(&state), state == SessionState::Discarded);
        }
    }

    #[test]
    fn every_living_state_can_fail_and_be_discarded() {
        for state in [
            SessionState::Shell,
            SessionState::Restoring,
            SessionState::Running,
            SessionState::Paused,
        ] {
            assert!(
                state.allows(&SessionState::Failed("x".into()))
                    && state.allows(&SessionState::Discarding),
                "{state}"
            );
        }
    }

    #[tokio::test]
    async fn a_refused_step_changes_nothing_and_failure_is_observed() {
        let cell = StateCell::default();
        let refused = cell.advance(SessionState::Running).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "a session that is shell cannot become running; sessions are used once, start a new one"
        );
        assert_eq!(cell.get(), SessionState::Shell);
        let waiter = tokio::spawn({
            let cell = cell.clone();
            async move { cell.failed().await }
        });
        cell.advance(SessionState::Failed("pager lost".into())).unwrap();
        assert_eq!(&*waiter.await.unwrap(), "pager lost");
    }
}
