//! Errors of the service: why it refuses, and what to do then.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mayfly_engine::golden::GoldenError;
use mayfly_engine::session::SessionError;

use super::config::InvalidConfig;
use super::held::Full;
use super::journal::JournalError;

/// Reason why the service could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The operator's configuration cannot be used.
    #[error("the configuration is not valid: {0}")]
    Config(InvalidConfig),
    /// The journal of live sessions, which also tells whether another daemon runs, cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The store of golden images cannot be used.
    #[error("cannot read the golden images in {store}: {cause}")]
    Store {
        /// Path of the store.
        store: PathBuf,
        /// Cause of the failure.
        cause: mayfly_snapshotter::Error,
    },
}

impl From<InvalidConfig> for ServiceError {
    fn from(cause: InvalidConfig) -> Self {
        Self::Config(cause)
    }
}

/// Reason why a session was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The queue has no place left.
    #[error("the queue is full, with {queued} requests for a session: try again in {}", seconds(.retry_after))]
    QueueFull {
        /// Requests that wait.
        queued: usize,
        /// Time to wait before another try.
        retry_after: Duration,
    },
    /// Too many requests wait for the request's turn to come in time.
    #[error(
        "too many requests for a session wait: with {ahead} before it this one would wait about {}, longer than its \
         deadline; try again in {}, or allow more with deadline_ms",
        seconds(.wait),
        seconds(.retry_after)
    )]
    Overloaded {
        /// Requests that would have their turn before it.
        ahead: usize,
        /// Time that it would wait.
        wait: Duration,
        /// Time to wait before another try.
        retry_after: Duration,
    },
    /// The request's turn did not come in time.
    #[error(
        "the request waited {waited:.1?} for its turn, and its deadline has passed: try again in {}, or allow more with deadline_ms",
        seconds(.retry_after)
    )]
    DeadlinePassed {
        /// Time that it waited.
        waited: Duration,
        /// Time to wait before another try.
        retry_after: Duration,
    },
    /// The golden image was not ready in time: its disks are read and checked once after each boot
    /// of the host.
    #[error(
        "golden `{}` is still being checked after {waited:.1?}, and the request's deadline has passed: try again in {}, \
         or allow more with deadline_ms",
        .name.escape_debug(),
        seconds(.retry_after)
    )]
    GoldenChecking {
        /// Name of the golden image.
        name: String,
        /// Time that the request waited.
        waited: Duration,
        /// Time to wait before another try.
        retry_after: Duration,
    },
    /// The tenant has reached its limit.
    #[error(
        "this tenant has reached its limit of {limit} sessions and waiting requests: discard a session, or try again in {}",
        seconds(.retry_after)
    )]
    TenantBusy {
        /// Bound that was reached.
        limit: usize,
        /// Time to wait before another try.
        retry_after: Duration,
    },
    /// The tenant asks too often.
    #[error("this tenant exceeds its rate of requests for sessions: try again in {}", seconds(.retry_after))]
    RateLimited {
        /// Time to wait before another try.
        retry_after: Duration,
    },
    /// The host is short of something.
    #[error("no new sessions while the host is short: {reason}; try again in {}", seconds(.retry_after))]
    Pressure {
        /// Shortage, in words.
        reason: String,
        /// Time to wait before another try.
        retry_after: Duration,
    },
    /// It asks for more than it may have.
    #[error("{what} must be at most {most}, {whose}, not {asked}")]
    AboveCeiling {
        /// Of what.
        what: String,
        /// What it asks for.
        asked: String,
        /// The ceiling.
        most: String,
        /// Who has set it, as a clause.
        whose: &'static str,
    },
    /// The tenant's sessions would have too much together.
    #[error(
        "{what} of this tenant's sessions and waiting requests may be {most} together and is {used}, this \
         one needs {more} more: discard a session, or try again in {}",
        seconds(.retry_after)
    )]
    TenantTotal {
        /// Of what.
        what: &'static str,
        /// The bound.
        most: String,
        /// What they have.
        used: String,
        /// What one more needs.
        more: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// The daemon holds as many bytes for the tenant as it may.
    #[error("{Full}; or try again in {}", seconds(.retry_after))]
    BuffersFull {
        /// When to try again.
        retry_after: Duration,
    },
    /// It ended before its client had it.
    #[error("the session {id} ended before it could be handed out: {reason}; try again")]
    Ended {
        /// The session.
        id: String,
        /// Why.
        reason: String,
    },
    /// No golden image has that name.
    #[error("there is no golden image `{}`; there are: {known}", .name.escape_debug())]
    UnknownGolden {
        /// The name that was asked for.
        name: String,
        /// The names there are, comma-separated, or `none`.
        known: String,
    },
    /// The golden image is there but cannot be used.
    #[error(transparent)]
    Golden(#[from] Arc<GoldenError>),
    /// The request itself cannot be met.
    #[error("{reason}")]
    BadRequest {
        /// Message that names the part at fault, and what would be right.
        reason: String,
    },
    /// The idempotency key was used for another request.
    #[error("this idempotency key was used with another request: use a new key for a new request")]
    IdempotencyConflict,
    /// The idempotency key made a session that is over.
    #[error(
        "the session {id} that this idempotency key made is over ({reason}): use a new key for a new session"
    )]
    IdempotencyGone {
        /// Id of the session.
        id: String,
        /// Reason why it ended.
        reason: String,
    },
    /// Too many idempotency keys are in use at this moment.
    #[error("too many requests with idempotency keys are under way: try again in {}", seconds(.retry_after))]
    TooManyKeys {
        /// Time to wait before another try.
        retry_after: Duration,
    },
    /// The session could not be started.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The session could not be written to the journal, and was discarded.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The daemon is about to end.
    #[error("the daemon is shutting down: try again when it runs again")]
    ShuttingDown,
}

impl CreateError {
    /// Returns when to try again, for refusals that pass.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { retry_after, .. }
            | Self::Overloaded { retry_after, .. }
            | Self::DeadlinePassed { retry_after, .. }
            | Self::GoldenChecking { retry_after, .. }
            | Self::TenantBusy { retry_after, .. }
            | Self::RateLimited { retry_after }
            | Self::Pressure { retry_after, .. }
            | Self::TenantTotal { retry_after, .. }
            | Self::BuffersFull { retry_after, .. }
            | Self::TooManyKeys { retry_after } => Some(*retry_after),
            _ => None,
        }
    }

    /// Returns a word that programs may rely on.
    pub fn code(&self) -> &'static str {
        match self {
            Self::QueueFull { .. } => "queue_full",
            Self::Overloaded { .. } => "overloaded",
            Self::DeadlinePassed { .. } => "deadline_passed",
            Self::GoldenChecking { .. } => "golden_checking",
            Self::TenantBusy { .. } => "tenant_busy",
            Self::RateLimited { .. } => "rate_limited",
            Self::Pressure { .. } => "pressure",
            Self::AboveCeiling { .. } => "above_ceiling",
            Self::TenantTotal { .. } => "tenant_total",
            Self::BuffersFull { .. } => "buffers_full",
            Self::Ended { .. } => "start_failed",
            Self::UnknownGolden { .. } => "unknown_golden",
            Self::Golden(_) => "golden_unusable",
            Self::BadRequest { .. } => "bad_request",
            Self::IdempotencyConflict => "idempotency_conflict",
            Self::IdempotencyGone { .. } => "idempotency_gone",
            Self::TooManyKeys { .. } => "too_many_keys",
            Self::Session(_) => "start_failed",
            Self::Journal(_) => "journal",
            Self::ShuttingDown => "shutting_down",
        }
    }

    pub(super) fn bad_request(reason: impl Into<String>) -> Self {
        Self::BadRequest { reason: reason.into() }
    }
}

/// `3 s`: what a `Retry-After` header would say.
fn seconds(duration: &Duration) -> String {
    format!("{} s", duration.as_secs_f64().ceil())
}

/// Reason why there is no session for an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// The id is unknown, another tenant's, or gone so long that it is forgotten.
    #[error("there is no session `{}`", .id.escape_debug())]
    Unknown {
        /// Session id.
        id: String,
    },
    /// The session is over. Sessions are used once.
    #[error("session {id} is over: {reason}; sessions are used once, start a new one")]
    Gone {
        /// Session id.
        id: String,
        /// Reason why it ended.
        reason: String,
    },
    /// The request for it cannot be met.
    #[error("{reason}")]
    BadRequest {
        /// Message that names the part at fault, and what would be right.
        reason: String,
    },
}

/// Reason why a session's egress was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum EgressChangeError {
    /// There is no such session, or the request cannot be met.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The daemon holds as many bytes for the tenant as it may.
    #[error(transparent)]
    Full(#[from] Full),
    /// The session cannot take it.
    #[error(transparent)]
    Session(#[from] SessionError),
}
