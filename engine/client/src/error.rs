//! Errors between a client and the daemon.

use std::io;
use std::time::Duration;

use hyper::{HeaderMap, StatusCode, header};
use mayfly_api::ErrorBody;

use super::endpoint::Endpoint;

/// A failed request.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon listens.
    #[error("no mayfly daemon answers at {endpoint} ({cause}): start one with `mayfly serve`")]
    Connect {
        /// Endpoint of the daemon.
        endpoint: Endpoint,
        /// Cause of the failure.
        cause: io::Error,
    },
    /// The daemon refused, or failed; in its own words.
    #[error("{message}")]
    Refused {
        /// Status of the answer.
        status: StatusCode,
        /// A word that programs may rely on, such as `no_such_session`; empty when something else
        /// than the daemon answered.
        code: String,
        /// Message that says what was tried, why it failed and what to do next.
        message: String,
        /// Time to wait before another try, for refusals that pass.
        retry_after: Option<Duration>,
    },
    /// The connection broke.
    #[error("the connection to the mayfly daemon broke: {0}")]
    Http(hyper::Error),
    /// The connection of a running command broke.
    #[error("the connection to the mayfly daemon broke: {0}")]
    WebSocket(Box<tokio_tungstenite::tungstenite::Error>),
    /// Content could not be moved.
    #[error("the connection to the mayfly daemon broke: {0}")]
    Io(io::Error),
    /// The daemon said what this client does not understand.
    #[error(
        "cannot understand the mayfly daemon ({what}): use a client and a daemon of one version"
    )]
    Protocol {
        /// Description of what it said.
        what: String,
    },
    /// The request cannot be written as HTTP.
    #[error("cannot ask that: {0}")]
    Request(hyper::http::Error),
}

impl From<hyper::Error> for ClientError {
    fn from(cause: hyper::Error) -> Self {
        Self::Http(cause)
    }
}

impl From<Box<tokio_tungstenite::tungstenite::Error>> for ClientError {
    fn from(cause: Box<tokio_tungstenite::tungstenite::Error>) -> Self {
        Self::WebSocket(cause)
    }
}

impl From<io::Error> for ClientError {
    fn from(cause: io::Error) -> Self {
        Self::Io(cause)
    }
}

impl From<hyper::http::Error> for ClientError {
    fn from(cause: hyper::http::Error) -> Self {
        Self::Request(cause)
    }
}

impl ClientError {
    /// Returns the daemon's stable word for why it refused, such as `queue_full`.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Returns the status with which the daemon refused.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Returns when to try again, for refusals that pass.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    pub(super) fn protocol(what: impl std::fmt::Display) -> Self {
        Self::Protocol { what: what.to_string() }
    }

    /// An answer that is no success.
    pub(super) fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let seconds =
            headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let retry_after = seconds.map(Duration::from_secs);
        if let Ok(ErrorBody { code, message }) = serde_json::from_slice::<ErrorBody>(body) {
            Self::Refused { status, code, message, retry_after }
        } else {
            let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
            let message = format!("the daemon answered {status}: {}", text.trim());
            Self::Refused { status, code: String::new(), message, retry_after }
        }
    }

    /// A failure that was told in the middle of a stream.
    pub(super) fn told(code: String, message: String) -> Self {
        let status =
            if code == "session_gone" { StatusCode::GONE } else { StatusCode::BAD_GATEWAY };
        Self::Refused { status, code, message, retry_after: None }
    }
}

impl From<tokio_tungstenite::tungstenite::Error> for ClientError {
    fn from(error: tokio_tungstenite::tungstenite::Error) -> Self {
        match error {
            tokio_tungstenite::tungstenite::Error::Http(response) => {
                let body = response.body().as_deref().unwrap_or_default();
                Self::refused(response.status(), response.headers(), body)
            }
            other => Self::WebSocket(Box::new(other)),
        }
    }
}
