//! The frames of an exec stream.

use crate::{ByteString, GuestError};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes of stdin the engine may have sent without an [`ExecOutput::StdinConsumed`] for them. Stdin
/// has its own window so that a command that never reads cannot hold up the signals and the end of
/// the stream that follow it.
pub const STDIN_WINDOW: usize = 256 * 1024;

/// Size of a terminal in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtySize {
    /// Number of rows.
    pub rows: u16,
    /// Number of columns.
    pub cols: u16,
}

/// A command to run in the guest, in its own session and process group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and arguments; the program is looked up in the `PATH` of `env` (or the guest's
    /// default) unless it has a `/`.
    pub argv: Vec<ByteString>,
    /// Environment, added to the guest's defaults (`PATH`, `HOME`, `LANG`, and `TERM` for a
    /// terminal).
    pub env: Vec<(ByteString, ByteString)>,
    /// Working directory; empty for the user's home, or `/` where that is missing.
    pub cwd: ByteString,
    /// `user`, `uid`, `user:group` or `uid:gid` of the guest; root when absent.
    pub user: Option<String>,
    /// Size of the pseudoterminal to run the command on.
    pub tty: Option<TtySize>,
    /// Whether stdin will be sent; otherwise it is /dev/null.
    pub stdin: bool,
    /// Milliseconds after which the whole process group is killed.
    pub timeout_ms: Option<u64>,
}

impl ExecRequest {
    /// Creates a command with nothing but its arguments set.
    pub fn new<A: Into<ByteString>>(argv: impl IntoIterator<Item = A>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// Engine to guest on an exec stream. The end of the stream before `Exit` kills the whole process
/// group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecInput {
    /// Bytes for stdin.
    Stdin(#[serde(with = "serde_bytes")] Vec<u8>),
    /// No more stdin. On a terminal this types its end-of-file character, and does so again
    /// whenever everything typed was read, until the command has ended.
    StdinEof,
    /// The terminal has a new size.
    Resize(TtySize),
    /// Sends this signal to the process group.
    Signal(i32),
}

/// Exit status of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// Exit with this code, 0 to 255.
    Code(i32),
    /// End by this signal.
    Signal(i32),
    /// End by the timeout, after which the process group was killed.
    TimedOut,
}

impl ExitStatus {
    /// Returns the code a shell would report: the code itself, 128 + signal, or 124 (timeout(1)).
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128_i32.saturating_add(signal),
            Self::TimedOut => 124,
        }
    }

    /// Returns whether the command exited with code 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
            Self::TimedOut => f.write_str("timed out and killed"),
        }
    }
}

/// Why a command was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartFailure {
    /// The guest has no such user or group.
    NoUser,
    /// There is no such program: no such file, or none in `PATH`.
    NoProgram,
    /// The program is there, and cannot be executed.
    NotExecutable,
    /// The working directory is not there, or is no directory.
    NoDirectory,
    /// Anything else, such as too many arguments or too little memory.
    Other,
}

impl StartFailure {
    /// Returns the exit code of docker-exec(1) for it, which is that of a shell (POSIX, Shell Command
    /// Language, 2.8.2): 127 for a program that is not found, 126 for what cannot be run.
    pub fn shell_code(self) -> i32 {
        match self {
            Self::NoProgram => 127,
            _ => 126,
        }
    }
}

/// Guest to engine on an exec stream. `NotStarted` comes instead of `Started`, `Failed` instead of
/// `Exit` when the agent itself fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecOutput {
    /// The command runs as this process id of the guest.
    Started {
        /// Process id and process group id.
        pid: u32,
    },
    /// Number of bytes of stdin that were handed to the command, or dropped because it closed its
    /// stdin.
    StdinConsumed(u32),
    /// Bytes of stdout, or of the terminal.
    Stdout(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Bytes of stderr.
    Stderr(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The command ended; nothing follows.
    Exit(ExitStatus),
    /// The command was lost; nothing follows.
    Failed(GuestError),
    /// The command was not started; nothing follows.
    NotStarted {
        /// What kind of failure it is.
        kind: StartFailure,
        /// What was tried, and why it failed.
        error: GuestError,
    },
}

/// Event of a running command, as the engine hands it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    /// Bytes of stdout, or of its terminal.
    Stdout(Bytes),
    /// Bytes of stderr.
    Stderr(Bytes),
    /// End of the command; nothing follows.
    Exit(ExitStatus),
}
