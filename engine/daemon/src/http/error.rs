//! Errors of the API: HTTP status, error code, message and Retry-After.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use mayfly_api::{ErrorBody, InvalidExec};
use mayfly_engine::session::SessionError;
use mayfly_guest::channel::{ChannelError, GuestError};

use crate::observe::tenant_lines::{self, Cause, Leave};
use crate::service::execs::ExecError;
use crate::service::held::Full;
use crate::service::{CreateError, EgressChangeError, LookupError};

/// What a client is told to wait when too many bytes are held for it.
const BUFFERS_RETRY: Duration = Duration::from_secs(5);

/// Error that a handler answers when it cannot do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    retry_after: Option<Duration>,
    closing: bool,
}

impl ApiError {
    /// Creates a failure with a stable word and a sentence, which is cut when it is too long: it may
    /// have words of a client or a guest.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let message = tenant_lines::cut(message.into());
        Self { status, code, message, retry_after: None, closing: false }
    }

    /// Adds when to try again, to a refusal that passes.
    #[must_use]
    pub fn retry_after(self, after: Duration) -> Self {
        Self { retry_after: Some(after), ..self }
    }

    /// Ends the connection after the answer.
    #[must_use]
    pub fn closing(self) -> Self {
        Self { closing: true, ..self }
    }

    /// Creates the error for a request that is itself at fault.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// Creates the error for a session that is over.
    pub fn gone(reason: impl std::fmt::Display) -> Self {
        let message =
            format!("this session is over: {reason}; sessions are used once, create a new one");
        Self::new(StatusCode::GONE, "session_gone", message)
    }

    /// Creates the refusal for a tenant for which as many bytes are held as may be.
    pub fn buffers_full(message: impl Into<String>) -> Self {
        let refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, "buffers_full", message);
        refusal.retry_after(BUFFERS_RETRY)
    }

    /// Returns the status of the answer.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the stable word for the failure.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Returns the sentence that describes the failure.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Writes the failure to the log, unless its tenant has caused many a moment ago.
    fn log(&self) {
        let cause = match self.status {
            StatusCode::BAD_GATEWAY | StatusCode::INSUFFICIENT_STORAGE => Cause::Guest,
            _ => Cause::Daemon,
        };
        let tenant = tenant_lines::asking();
        if let Some(Leave { left_out }) = tenant_lines::admit(cause, tenant.as_ref()) {
            let tenant = tenant.as_ref().map(tracing::field::display);
            tracing::warn!(
                tenant,
                code = self.code,
                error = self.message,
                left_out,
                "request failed"
            );
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            self.log();
        }
        let body = ErrorBody { code: self.code.into(), message: self.message };
        let mut response = (self.status, Json(body)).into_response();
        if let Some(after) = self.retry_after {
            // The header has whole seconds (RFC 9110, 10.2.3); rounded up, so that nobody comes too
            // early.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if self.closing {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<InvalidExec> for ApiError {
    fn from(error: InvalidExec) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<LookupError> for ApiError {
    fn from(error: LookupError) -> Self {
        let message = error.to_string();
        match error {
            LookupError::Unknown { .. } => {
                Self::new(StatusCode::NOT_FOUND, "no_such_session", message)
            }
            LookupError::Gone { .. } => Self::new(StatusCode::GONE, "session_gone", message),
            LookupError::BadRequest { .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_request", message)
            }
        }
    }
}

impl From<ChannelError> for ApiError {
    fn from(error: ChannelError) -> Self {
        let message = error.to_string();
        match error {
            ChannelError::Guest(guest) | ChannelError::NotStarted { error: guest, .. } => {
                guest_error(&guest)
            }
            ChannelError::NoStart { .. } => {
                Self::new(StatusCode::BAD_GATEWAY, "guest_silent", message)
            }
            ChannelError::TooLong { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
            }
            ChannelError::Ended => Self::new(StatusCode::CONFLICT, "command_ended", message),
            ChannelError::NoBuffers => Self::buffers_full(message),
            ChannelError::NoAnswer { .. } => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "guest_timeout", message)
            }
            _ => Self::new(StatusCode::BAD_GATEWAY, "guest_lost", message),
        }
    }
}

/// The guest's errno as a status: what a caller can mend is 4xx. The errno itself is in the
/// message.
fn guest_error(error: &GuestError) -> ApiError {
    let (status, code) = match error.errno {
        libc::ENOENT => (StatusCode::NOT_FOUND, "not_found"),
        libc::EACCES | libc::EPERM | libc::EROFS => (StatusCode::FORBIDDEN, "not_permitted"),
        libc::EEXIST => (StatusCode::CONFLICT, "exists"),
        libc::ENOTEMPTY => (StatusCode::CONFLICT, "not_empty"),
        libc::ENOTDIR => (StatusCode::CONFLICT, "not_a_directory"),
        libc::EISDIR => (StatusCode::CONFLICT, "is_a_directory"),
        libc::EBUSY | libc::ETXTBSY | libc::EXDEV => (StatusCode::CONFLICT, "busy"),
        // What the agent says of a user that is not there.
        libc::ESRCH => (StatusCode::UNPROCESSABLE_ENTITY, "no_such_user"),
        libc::ENOEXEC => (StatusCode::UNPROCESSABLE_ENTITY, "not_executable"),
        libc::EINVAL | libc::ENAMETOOLONG | libc::ELOOP | libc::E2BIG | libc::EOPNOTSUPP => {
            (StatusCode::UNPROCESSABLE_ENTITY, "refused_by_guest")
        }
        libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH => {
            (StatusCode::BAD_GATEWAY, "connection_refused")
        }
        libc::ENOSPC | libc::EDQUOT => (StatusCode::INSUFFICIENT_STORAGE, "guest_disk_full"),
        // No system call failed: the agent itself found fault with what was asked.
        0 => (StatusCode::UNPROCESSABLE_ENTITY, "refused_by_guest"),
        _ => (StatusCode::BAD_GATEWAY, "guest_failed"),
    };
    ApiError::new(status, code, format!("guest: {error}"))
}

impl From<ExecError> for ApiError {
    fn from(error: ExecError) -> Self {
        let message = error.to_string();
        match error {
            ExecError::Channel(error) => error.into(),
            ExecError::Full(error) => error.into(),
            ExecError::Unknown { .. } => Self::new(StatusCode::NOT_FOUND, "no_such_exec", message),
            ExecError::TooMany => Self::new(StatusCode::CONFLICT, "too_many_execs", message),
            ExecError::LongTag { .. } => Self::bad_request(message),
            ExecError::NoStdin => Self::new(StatusCode::CONFLICT, "no_stdin", message),
        }
    }
}

impl From<Full> for ApiError {
    fn from(error: Full) -> Self {
        Self::buffers_full(error.to_string())
    }
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Channel(error) => error.into(),
            SessionError::Gone { state } => Self::gone(state),
            other => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "session_failed", other.to_string())
            }
        }
    }
}

impl From<EgressChangeError> for ApiError {
    fn from(error: EgressChangeError) -> Self {
        match error {
            EgressChangeError::Lookup(error) => error.into(),
            EgressChangeError::Full(error) => error.into(),
            EgressChangeError::Session(error) => error.into(),
        }
    }
}

impl From<CreateError> for ApiError {
    fn from(error: CreateError) -> Self {
        let status = match &error {
            CreateError::QueueFull { .. }
            | CreateError::Overloaded { .. }
            | CreateError::TenantBusy { .. }
            | CreateError::RateLimited { .. }
            | CreateError::Pressure { .. }
            | CreateError::TenantTotal { .. }
            | CreateError::BuffersFull { .. }
            | CreateError::TooManyKeys { .. } => StatusCode::TOO_MANY_REQUESTS,
            CreateError::DeadlinePassed { .. } | CreateError::GoldenChecking { .. } => {
                StatusCode::GATEWAY_TIMEOUT
            }
            CreateError::UnknownGolden { .. } => StatusCode::NOT_FOUND,
            CreateError::BadRequest { .. } | CreateError::AboveCeiling { .. } => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            CreateError::IdempotencyConflict => StatusCode::CONFLICT,
            CreateError::IdempotencyGone { .. } => StatusCode::GONE,
            CreateError::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            CreateError::Golden(_)
            | CreateError::Session(_)
            | CreateError::Ended { .. }
            | CreateError::Journal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let retry_after = error.retry_after();
        Self { retry_after, ..Self::new(status, error.code(), error.to_string()) }
    }
}

#[cfg(test)]
mod tests {
    use mayfly_api::TenantName;

    use super::*;

    #[test]
    fn a_refusal_says_when_to_come_again_in_whole_seconds() {
        for (after, seconds) in [(1, "1"), (1000, "1"), (1001, "2"), (2500, "3")] {
            let error = CreateError::RateLimited { retry_after: Duration::from_millis(after) };
            let response = ApiError::from(error).into_response();
            assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(response.headers()[header::RETRY_AFTER], seconds);
        }
        let response = ApiError::from(CreateError::IdempotencyConflict).into_response();
        assert_eq!(
            (response.status(), response.headers().get(header::RETRY_AFTER)),
            (StatusCode::CONFLICT, None)
        );
    }

    #[test]
    fn a_refusal_has_the_status_that_fits() {
        let status = |error| ApiError::from(error).status;
        assert_eq!(status(CreateError::ShuttingDown), StatusCode::SERVICE_UNAVAILABLE);
        let deadline =
            CreateError::DeadlinePassed { waited: Duration::ZERO, retry_after: Duration::ZERO };
        assert_eq!(status(deadline), StatusCode::GATEWAY_TIMEOUT);
        let gone = LookupError::Gone { id: "a".into(), reason: "killed".into() };
        assert_eq!(ApiError::from(gone).status, StatusCode::GONE);
    }

    #[test]
    fn a_command_that_cannot_be_is_a_bad_request() {
        let error = mayfly_api::Exec::default().into_request().unwrap_err();
        assert_eq!(ApiError::from(error).code(), "bad_request");
    }

    #[test]
    fn a_message_is_cut_whoever_wrote_it() {
        let reason = "\u{1b}[2J".repeat(1 << 20);
        let errors = [
            ApiError::bad_request(&*reason),
            ApiError::from(ChannelError::Protocol { reason: reason.clone() }),
            ApiError::from(CreateError::BadRequest { reason }),
        ];
        for error in errors {
            let length = error.message().chars().count();
            assert!(length <= tenant_lines::LONGEST + 3, "{}: {length}", error.code());
        }
    }

    #[test]
    fn failures_of_a_guest_flood_no_log_and_do_not_hide_those_of_the_daemon() {
        use std::io::{Seek as _, Write as _};
        let mut log = tempfile::tempfile().unwrap();
        let writer = std::sync::Arc::new(log.try_clone().unwrap());
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
        let tenant = TenantName::new("noisy").unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tenant_lines::on_behalf_of_now(&tenant, || {
                for _ in 0..2000 {
                    let lost = ChannelError::Closed { reason: "as its guest likes".into() };
                    assert_eq!(ApiError::from(lost).into_response().status(), 502);
                }
                let own = SessionError::Io {
                    action: "make the docker socket",
                    cause: std::io::Error::from_raw_os_error(libc::EMFILE),
                };
                assert_eq!(ApiError::from(own).into_response().status(), 500);
            });
        });
        log.flush().unwrap();
        log.rewind().unwrap();
        let text = std::io::read_to_string(log).unwrap();
        let of_guest = text.lines().filter(|line| line.contains("guest_lost")).count();
        assert!((1..200).contains(&of_guest), "{of_guest} lines");
        assert!(text.contains("tenant=noisy"), "{text}");
        assert!(text.contains("make the docker socket"), "the daemon's own failure is told");
    }

    #[test]
    fn the_errno_of_a_guest_decides_the_status() {
        let status = |errno| {
            let guest = GuestError { errno, message: "open /x".into() };
            ApiError::from(ChannelError::Guest(guest)).status
        };
        assert_eq!(status(libc::ENOENT), StatusCode::NOT_FOUND);
        assert_eq!(status(libc::EEXIST), StatusCode::CONFLICT);
        assert_eq!(status(libc::EACCES), StatusCode::FORBIDDEN);
        assert_eq!(status(libc::ENOSPC), StatusCode::INSUFFICIENT_STORAGE);
        assert_eq!(status(libc::EIO), StatusCode::BAD_GATEWAY);
        assert_eq!(status(0), StatusCode::UNPROCESSABLE_ENTITY);
    }
}
