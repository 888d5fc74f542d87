//! Why the gate refuses a request, and what its client is told.

use std::time::Duration;

use crate::service::ceilings::Excess;
use crate::service::error::CreateError;

/// What a client is told to wait, at the least and at the most.
pub(super) const RETRY_MIN: Duration = Duration::from_secs(1);
pub(super) const RETRY_MAX: Duration = Duration::from_secs(60);

/// Why a request does not get through.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::service) enum Refusal {
    QueueFull {
        queued: usize,
        retry_after: Duration,
    },
    /// Its turn would come long after its deadline.
    Overloaded {
        ahead: usize,
        wait: Duration,
        deadline: Duration,
    },
    DeadlinePassed {
        waited: Duration,
        retry_after: Duration,
    },
    TenantBusy {
        limit: usize,
        retry_after: Duration,
    },
    TenantTotal {
        excess: Excess,
        retry_after: Duration,
    },
    Pressure {
        reason: String,
        retry_after: Duration,
    },
    Closed,
}

impl From<Refusal> for CreateError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::QueueFull { queued, retry_after } => Self::QueueFull { queued, retry_after },
            Refusal::Overloaded { ahead, wait, deadline } => Self::Overloaded {
                ahead,
                wait,
                retry_after: wait.saturating_sub(deadline).clamp(RETRY_MIN, RETRY_MAX),
            },
            Refusal::DeadlinePassed { waited, retry_after } => {
                Self::DeadlinePassed { waited, retry_after }
            }
            Refusal::TenantBusy { limit, retry_after } => Self::TenantBusy { limit, retry_after },
            Refusal::TenantTotal { excess, .. } if excess.by_itself() => Self::AboveCeiling {
                what: format!("limits.{}", excess.what),
                asked: excess.said(excess.more),
                most: excess.said(excess.most),
                whose: "which all sessions of this tenant may have together",
            },
            Refusal::TenantTotal { excess, retry_after } => Self::TenantTotal {
                what: excess.what,
                most: excess.said(excess.most),
                used: excess.said(excess.used),
                more: excess.said(excess.more),
                retry_after,
            },
            Refusal::Pressure { reason, retry_after } => Self::Pressure { reason, retry_after },
            Refusal::Closed => Self::ShuttingDown,
        }
    }
}
