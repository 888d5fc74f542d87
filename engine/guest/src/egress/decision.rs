//! What the proxy asks for, and what it is told when it may not have it.

use std::fmt;

use hyper::StatusCode;

use super::host::Host;

/// Where a client wants to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub host: Host,
    pub port: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// What a client hears instead of an answer: one line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub message: String,
}

impl Refusal {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

/// Why a name has no addresses for the guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoName {
    Denied,
    Failed,
}
