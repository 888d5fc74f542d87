//! Commands in the background.

use serde::{Deserialize, Serialize};

use crate::{Blob, ExecOutcome};

/// A command in the background of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Background {
    /// Its number in the session.
    pub n: u64,
    /// Process id in the guest.
    pub pid: u32,
    /// Program and arguments; what is not UTF-8 is U+FFFD.
    pub argv: Vec<String>,
    /// When it was started, RFC 3339.
    pub started_at: String,
    /// How it ended; absent while it runs, and when it was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<ExecOutcome>,
    /// Why it was lost, where it was.
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
    /// Those that run and the last that ended, oldest first.
    pub execs: Vec<Background>,
}

/// One of a command's output streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Stdout, or the output of its terminal.
    #[default]
    Stdout,
    /// Stderr.
    Stderr,
}

/// A piece of a command's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Output {
    /// Offset of the first byte in the whole stream. More than was asked for when older bytes are
    /// forgotten.
    pub offset: u64,
    /// Where to go on.
    pub next_offset: u64,
    /// The bytes.
    pub data: Blob,
    /// Whether nothing will follow.
    pub end: bool,
}

impl Background {
    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.outcome.is_none() && self.lost.is_none()
    }
}
