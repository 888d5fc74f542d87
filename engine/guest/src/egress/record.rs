//! EgressRecord of the egress log, and the observer that hears of it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// Kind of a session's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A connection through the proxy.
    Connect,
    /// A plain HTTP request.
    Http,
    /// Look-up of a name.
    Dns,
}

/// Outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The request was carried out.
    Allowed,
    /// The request was forbidden by the policy or a limit.
    Denied,
    /// The request was allowed and did not work.
    Failed,
}

impl Kind {
    /// Returns the word for it in the log.
    pub fn word(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Http => "http",
            Self::Dns => "dns",
        }
    }
}

impl Verdict {
    /// Returns the word for it in the log and the metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }
}

/// A line of the egress log.
#[derive(Clone, Debug, Serialize)]
pub struct EgressRecord {
    /// Session id.
    pub session: String,
    /// Tenant, where there is one.
    pub tenant: Option<String>,
    /// Kind of the request.
    pub kind: Kind,
    /// The host as the guest named it, escaped and shortened.
    pub host: String,
    /// The port; 0 for a name alone.
    pub port: u16,
    /// The address that was connected to, that was tried last, or for which it was denied.
    pub address: Option<IpAddr>,
    /// Outcome of the request.
    pub verdict: Verdict,
    /// Reason for the outcome, when it was not simply done.
    pub reason: Option<String>,
    /// Bytes to the outside.
    pub bytes_up: u64,
    /// Bytes from the outside.
    pub bytes_down: u64,
    /// Time from the request to the end of the connection.
    pub duration: Duration,
}

/// Observer that hears of each line of the egress log of a policy.
pub trait Observer: fmt::Debug + Send + Sync {
    /// Records a line, when a connection has ended or a request was refused. Must not block.
    fn record(&self, record: &EgressRecord);
}
