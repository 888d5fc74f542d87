//! Commands in the background.

use serde::{Deserialize, Serialize};

use crate::{Blob, ExecOutcome};

/// A command in the background of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Background {
    /// Number of the command in the session.
    pub n: u64,
    /// Process id in the guest.
    pub pid: u32,
    /// Program and arguments; what is not UTF-8 is U+FFFD.
    pub argv: Vec<String>,
    /// Tag that it was started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Whether it runs on a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Time at which it was started, RFC 3339.
    pub started_at: String,
    /// Outcome of the command; absent while it runs, and when it was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<ExecOutcome>,
    /// Reason why it was lost; absent when it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
    /// Bytes of stdout so far.
    pub stdout_bytes: u64,
    /// Bytes of stderr so far.
    pub stderr_bytes: u64,
}

/// Commands in the background of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BackgroundList {
    /// Commands that run and the last that ended, oldest first.
    pub execs: Vec<Background>,
}

/// Output stream of a command.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output, or the output of the command's terminal.
    #[default]
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of a command's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Output {
    /// Offset of the first byte in the whole stream. More than was asked for when older bytes are
    /// forgotten.
    pub offset: u64,
    /// Offset at which to go on.
    pub next_offset: u64,
    /// Bytes of the piece.
    pub data: Blob,
    /// Whether nothing will follow.
    pub end: bool,
}

impl Background {
    /// Returns whether the command runs.
    pub fn is_running(&self) -> bool {
        self.outcome.is_none() && self.lost.is_none()
    }
}
