//! Errors in the life of a session.

use std::time::Duration;

use mayfly_guest::channel::ChannelError;
use mayfly_guest::egress::{EgressError, NoProxy};
use mayfly_host::cgroup::CgroupError;
use mayfly_host::uid::NoUid;
use mayfly_host::userfaultfd::UffdError;
use mayfly_vmm::VmmError;

use super::identity::NoEntropy;
use super::overlay::OverlayError;
use super::state::{InvalidTransition, SessionState};
use crate::golden::{FirstStepError, GoldenError};

/// Reason why a session did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The golden cannot be used.
    #[error(transparent)]
    Golden(#[from] GoldenError),
    /// The VMM failed.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The exchange with the guest agent failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// There is no process for its egress.
    #[error(transparent)]
    NoProxy(#[from] NoProxy),
    /// The pager process could not be started.
    #[error(transparent)]
    PagerHost(#[from] crate::pager_host::PagerHostError),
    /// The pager process refused or is gone.
    #[error(transparent)]
    Pager(#[from] mayfly_pager::client::ClientError),
    /// The pager could not deliver a page of the golden.
    #[error(
        "the session was stopped because a page of its golden image could not be had: {reason}"
    )]
    Paging {
        /// The pager's words.
        reason: String,
    },
    /// `/dev/userfaultfd` cannot be used.
    #[error(transparent)]
    Userfaultfd(#[from] UffdError),
    /// The disk overlay could not be made.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// The cgroup could not be made or removed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// No user id is free: there are too many sessions.
    #[error(transparent)]
    NoUid(#[from] NoUid),
    /// No random bytes for an identity.
    #[error(transparent)]
    NoEntropy(#[from] NoEntropy),
    /// The guest could not take its identity; it must not be used.
    #[error("the guest did not accept its identity: {reason}")]
    NotUnique {
        /// The failed step.
        reason: String,
    },
    /// Docker in the guest did not come up in time.
    #[error("the guest's Docker daemon did not answer within {limit:?}")]
    DockerSilent {
        /// Time that was waited.
        limit: Duration,
    },
    /// The guest agent is silent after a restore.
    #[error("the guest agent did not answer within {limit:?}{}", tail(.console))]
    NoAnswer {
        /// Limit that was reached.
        limit: Duration,
        /// The end of the guest's console.
        console: String,
    },
    /// A step that sessions take first, taken ahead, did not come to its end.
    #[error("{reason}")]
    FirstStep {
        /// The step, and what is wrong with it.
        reason: String,
    },
    /// The state machine has no such step.
    #[error(transparent)]
    Transition(#[from] InvalidTransition),
    /// The session has ended meanwhile.
    #[error("the session is {state} already{}", match .state { SessionState::Failed(reason) => format!(": {reason}"), _ => String::new() })]
    Gone {
        /// Last state of the session.
        state: SessionState,
    },
    /// A socket or task of ours failed.
    #[error("cannot {action}: {cause}")]
    Io {
        /// Operation that was attempted.
        action: &'static str,
        /// Cause of the failure.
        cause: std::io::Error,
    },
}

impl From<FirstStepError> for SessionError {
    fn from(error: FirstStepError) -> Self {
        match error {
            FirstStepError::Channel(error) => Self::Channel(error),
            other => Self::FirstStep { reason: other.to_string() },
        }
    }
}

impl SessionError {
    /// Whether a fork failed because its zygote is of no use any more, and another may do.
    pub fn is_zygote_lost(&self) -> bool {
        matches!(self, Self::Vmm(VmmError::ZygoteLost { .. }) | Self::Gone { .. })
    }
}

impl From<EgressError> for SessionError {
    fn from(error: EgressError) -> Self {
        match error {
            EgressError::Channel(error) => Self::Channel(error),
            EgressError::Proxy(error) => Self::NoProxy(error),
        }
    }
}

/// `: console says "..."`, or nothing for an empty console.
pub(crate) fn tail(console: &str) -> String {
    if console.is_empty() {
        String::new()
    } else {
        format!("; its console ends with: {}", console.replace('\n', " | "))
    }
}
