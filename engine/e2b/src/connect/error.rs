//! Errors of calls, by the codes of Connect.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use mayfly_daemon::http::error::ApiError;
use mayfly_daemon::service::LookupError;
use mayfly_daemon::service::execs::ExecError;
use mayfly_daemon::service::held::Full;
use mayfly_guest::channel::ChannelError;
use serde::Serialize;

/// Code of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "they are Connect's")]
pub enum Code {
    Canceled,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Unimplemented,
    Internal,
    Unavailable,
    Unauthenticated,
}

impl Code {
    /// The status of an answer that is no stream.
    fn status(self) -> StatusCode {
        match self {
            // 499, of a client that closed its request, has no name.
            Self::Canceled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            Self::InvalidArgument | Self::FailedPrecondition => StatusCode::BAD_REQUEST,
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::AlreadyExists => StatusCode::CONFLICT,
            Self::PermissionDenied => StatusCode::FORBIDDEN,
            Self::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Self::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
        }
    }
}

/// Error of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConnectError {
    code: Code,
    message: String,
    #[serde(skip)]
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// The sandbox is over.
    Gone,
    /// The disk of the sandbox is full.
    DiskFull,
    /// The content has another type than it should have, which HTTP has a status for.
    WrongType,
}

impl ConnectError {
    /// Creates an error.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let message = mayfly_daemon::observe::tenant_lines::cut(message.into());
        Self { code, message, kind: Kind::Plain }
    }

    /// Creates the error for a request that is itself at fault.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// Creates the error for content of a type that is not spoken.
    pub(super) fn wrong_type(message: impl Into<String>) -> Self {
        Self { kind: Kind::WrongType, ..Self::invalid(message) }
    }

    /// Creates the error for a sandbox that is over; clients look at its words.
    pub fn gone() -> Self {
        Self { kind: Kind::Gone, ..Self::new(Code::Unavailable, "The sandbox was not found") }
    }

    /// Returns its code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// Returns its message.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns whether it says that the disk of the sandbox is full.
    pub fn is_disk_full(&self) -> bool {
        self.kind == Kind::DiskFull
    }

    /// Returns whether it says that the sandbox is over.
    pub fn is_gone(&self) -> bool {
        self.kind == Kind::Gone
    }
}

impl IntoResponse for ConnectError {
    fn into_response(self) -> Response {
        match self.kind {
            Kind::Plain | Kind::DiskFull => (self.code.status(), Json(self)).into_response(),
            Kind::WrongType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, Json(self)).into_response(),
            Kind::Gone => {
                // As E2B's proxy says it, with the status in place of the code.
                let body = serde_json::json!({ "message": self.message, "code": 502 });
                (StatusCode::BAD_GATEWAY, Json(body)).into_response()
            }
        }
    }
}

impl From<ApiError> for ConnectError {
    fn from(error: ApiError) -> Self {
        let code = match (error.code(), error.status()) {
            ("session_gone", _) => return Self::gone(),
            ("not_found" | "no_such_exec", _) => Code::NotFound,
            ("exists", _) => Code::AlreadyExists,
            ("guest_disk_full", _) => {
                let error = Self::new(Code::ResourceExhausted, error.message());
                return Self { kind: Kind::DiskFull, ..error };
            }
            ("too_large", _) | (_, StatusCode::TOO_MANY_REQUESTS) => Code::ResourceExhausted,
            ("not_permitted", _) => Code::PermissionDenied,
            ("is_a_directory" | "not_a_directory", _)
            | (_, StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY) => {
                Code::InvalidArgument
            }
            ("body_too_slow", _) => Code::DeadlineExceeded,
            ("too_many_execs", _) => Code::ResourceExhausted,
            (_, StatusCode::CONFLICT) => Code::FailedPrecondition,
            ("guest_lost", _) => Code::Unavailable,
            _ => Code::Internal,
        };
        Self::new(code, error.message())
    }
}

impl From<LookupError> for ConnectError {
    fn from(error: LookupError) -> Self {
        ApiError::from(error).into()
    }
}

impl From<ChannelError> for ConnectError {
    fn from(error: ChannelError) -> Self {
        ApiError::from(error).into()
    }
}

impl From<ExecError> for ConnectError {
    fn from(error: ExecError) -> Self {
        ApiError::from(error).into()
    }
}

impl From<Full> for ConnectError {
    fn from(error: Full) -> Self {
        ApiError::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use mayfly_guest::channel::GuestError;

    use super::*;

    #[test]
    fn what_a_guest_says_has_the_code_that_fits() {
        let code = |errno| {
            let error = GuestError { errno, message: "x".into() };
            ConnectError::from(ChannelError::Guest(error)).code()
        };
        assert_eq!(code(libc::ENOENT), Code::NotFound);
        assert_eq!(code(libc::EEXIST), Code::AlreadyExists);
        assert_eq!(code(libc::EACCES), Code::PermissionDenied);
        assert_eq!(code(libc::EISDIR), Code::InvalidArgument);
        assert_eq!(code(libc::ENOSPC), Code::ResourceExhausted);
        assert_eq!(code(libc::EIO), Code::Internal);
        assert_eq!(ConnectError::from(Full).code(), Code::ResourceExhausted);
    }

    #[test]
    fn a_sandbox_that_is_over_is_what_the_proxy_says() {
        let gone = ConnectError::from(ApiError::gone("killed"));
        assert!(gone.is_gone() && gone.message().contains("was not found"));
        assert_eq!(gone.into_response().status(), StatusCode::BAD_GATEWAY);
    }
}
