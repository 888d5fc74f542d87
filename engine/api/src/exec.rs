//! Commands.

use std::collections::BTreeMap;

use mayfly_protocol::{ByteString, ExecRequest, ExitStatus, TtySize};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Blob, bounded};

/// First byte of a binary message with stdin.
pub const STDIN: u8 = 0;
/// First byte of a binary message with stdout, or the output of a terminal.
pub const STDOUT: u8 = 1;
/// First byte of a binary message with stderr.
pub const STDERR: u8 = 2;

/// Most arguments of a command, its program among them.
const MAX_ARGUMENTS: usize = 65_536;
/// Most variables of a command.
const MAX_VARIABLES: usize = 16_384;
/// Longest name of a user, with its group, in bytes.
const MAX_USER: usize = 256;
/// Longest argument in bytes, and longest variable with its name and `=`: Linux takes 128 KiB with
/// the zero byte behind it (`MAX_ARG_STRLEN`).
const MAX_STRING: usize = (128 << 10) - 1;
/// Most bytes of all that a command is started with: what Linux takes, a quarter of a stack of 8 MiB
/// (execve(2)). There, eight more count for each argument and variable.
const MAX_BYTES: usize = 2 << 20;

/// A command to run in a session.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Program and arguments; the program is looked up in the guest's PATH unless it has a `/`. At
    /// most 65,536, each shorter than 128 KiB; with the environment at most 2 MiB.
    #[serde(deserialize_with = "arguments")]
    pub argv: Vec<Blob>,
    /// Environment, added to the session's; at most 16,384 variables, each shorter than 128 KiB.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "variables")]
    pub env: BTreeMap<String, Blob>,
    /// Working directory; the user's home when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<Blob>,
    /// `user`, `uid`, `user:group` or `uid:gid` of the guest; root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Size of the terminal to run it on; without one it runs on no terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<Terminal>,
    /// Milliseconds after which it is killed with its whole process group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// All of its stdin; `/dev/null` when absent. Not for commands whose stdin is sent on another
    /// way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<Blob>,
    /// Whether stdin is sent while it runs: over its WebSocket, or to its `stdin` resource in the
    /// background.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub open_stdin: bool,
    /// Name for a background command, shown in the list of them; at most 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// What becomes of a command that cannot be started. Not for background commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_failure: Option<StartFailureAs>,
    /// Which part of more output than is kept; the tail when absent. Only for a command whose output
    /// is answered at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
}

/// How it is told that a command cannot be started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum StartFailureAs {
    /// As an error of the request.
    #[default]
    Error,
    /// As the result of a command that wrote the reason to stderr, with the exit code of
    /// docker-exec(1): 127 when there is no such program; 126 when it cannot be executed, or there
    /// is no such user or working directory.
    Result,
}

/// Part of a long output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// The beginning.
    Head,
    /// The end.
    #[default]
    Tail,
}

fn arguments<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Blob>, D::Error> {
    bounded::list(deserializer, "argv", MAX_ARGUMENTS)
}

fn variables<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Blob>, D::Error> {
    bounded::map(deserializer, "env", MAX_VARIABLES)
}

/// Size of a terminal in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Terminal {
    /// Number of rows.
    pub rows: u16,
    /// Number of columns.
    pub cols: u16,
}

/// Outcome of a command. Exactly one field is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ExecOutcome {
    /// Exit with this code, 0 to 255.
    ExitCode(i32),
    /// End by this signal.
    Signal(i32),
    /// End by the timeout, after which it was killed.
    TimedOut(bool),
}

/// All of a command that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecResult {
    /// Outcome of the command.
    pub outcome: ExecOutcome,
    /// Bytes that it wrote to stdout, or to its terminal; a part of them when there were too many.
    pub stdout: Blob,
    /// Bytes that it wrote to stderr; a part of them when there were too many.
    pub stderr: Blob,
    /// Whether not all of its output is here.
    #[serde(default)]
    pub truncated: bool,
    /// How many bytes it wrote to stdout.
    #[serde(default)]
    pub stdout_bytes: u64,
    /// How many bytes it wrote to stderr.
    #[serde(default)]
    pub stderr_bytes: u64,
}

/// A message about or to a running command: one line of NDJSON, or one text message of its
/// WebSocket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ExecMessage {
    /// Start of the command; the first message from the daemon.
    Started {
        /// Process id in the guest.
        pid: u32,
    },
    /// Bytes of stdout or of the terminal, from the daemon; NDJSON only.
    Stdout {
        /// The bytes.
        data: Blob,
    },
    /// Bytes of stderr, from the daemon; NDJSON only.
    Stderr {
        /// The bytes.
        data: Blob,
    },
    /// End of the command; the last message from the daemon.
    Exit {
        /// Outcome of the command.
        outcome: ExecOutcome,
    },
    /// Failure to start the command, or its loss; the last message from the daemon.
    Error {
        /// Word that programs may rely on, as [`ErrorBody::code`](crate::ErrorBody::code).
        code: String,
        /// Message that says what was tried, why it failed and what to do next.
        message: String,
    },
    /// End of stdin, from the client; WebSocket only.
    StdinEof,
    /// New size of the terminal, from the client; WebSocket only.
    Resize {
        /// Number of rows.
        rows: u16,
        /// Number of columns.
        cols: u16,
    },
    /// Signal for the process group, by its Linux number, from the client; WebSocket only.
    Signal {
        /// Linux number of the signal, 1 to 64.
        number: i32,
    },
    /// Sign of life, from the daemon.
    Heartbeat,
}

/// A command or a signal that Linux cannot take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidExec(String);

impl InvalidExec {
    fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// A signal for a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SignalBody {
    /// Linux number, 1 to 64.
    pub number: i32,
}

impl Exec {
    /// Creates a command with nothing but its arguments set.
    pub fn new<A: Into<ByteString>>(argv: impl IntoIterator<Item = A>) -> Self {
        Self { argv: argv.into_iter().map(Blob::new).collect(), ..Self::default() }
    }

    /// Splits the command into the request for the guest and the stdin that was given with it.
    ///
    /// # Errors
    /// [`InvalidExec`] for what no program can be started with.
    pub fn into_request(self) -> Result<(ExecRequest, Option<Vec<u8>>), InvalidExec> {
        if self.argv.first().is_none_or(|program| program.0.is_empty()) {
            return Err(InvalidExec::new("argv must begin with a program"));
        }
        self.check_size()?;
        if let Some(name) = self.env.keys().find(|name| name.is_empty() || name.contains('=')) {
            return Err(InvalidExec::new(format!(
                "env: `{}` cannot be the name of a variable",
                name.escape_debug()
            )));
        }
        if let Some(user) = &self.user {
            check_user(user)?;
        }
        let strings = self
            .argv
            .iter()
            .chain(self.env.values())
            .chain(&self.cwd)
            .map(|blob| blob.0.as_slice());
        if strings.chain(self.env.keys().map(String::as_bytes)).any(|bytes| bytes.contains(&0)) {
            return Err(InvalidExec::new("argv, env and cwd cannot hold NUL"));
        }
        let request = ExecRequest {
            argv: self.argv.into_iter().map(ByteString::from).collect(),
            env: self.env.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
            cwd: self.cwd.unwrap_or_default().into(),
            user: self.user,
            tty: self.tty.map(TtySize::from),
            stdin: self.open_stdin || self.stdin.is_some(),
            timeout_ms: self.timeout_ms,
        };
        Ok((request, self.stdin.map(|blob| blob.0)))
    }

    /// Checks that a program can be started with so much.
    fn check_size(&self) -> Result<(), InvalidExec> {
        for (what, entries, most) in
            [("argv", self.argv.len(), MAX_ARGUMENTS), ("env", self.env.len(), MAX_VARIABLES)]
        {
            if entries > most {
                return Err(InvalidExec::new(format!(
                    "{what} has {entries} entries, at most {most} are possible: {INSTEAD}"
                )));
            }
        }
        let arguments = self.argv.iter().map(|argument| ("argv", argument.0.len()));
        let variables =
            self.env.iter().map(|(name, value)| ("env", name.len() + 1 + value.0.len()));
        let mut bytes = self.cwd.as_ref().map_or(0, |cwd| cwd.0.len())
            + self.user.as_ref().map_or(0, String::len);
        for (what, length) in arguments.chain(variables) {
            if length > MAX_STRING {
                return Err(InvalidExec::new(format!(
                    "{what} has an entry of {length} bytes, Linux takes at most {MAX_STRING}: {INSTEAD}"
                )));
            }
            bytes += length;
        }
        if bytes > MAX_BYTES {
            return Err(InvalidExec::new(format!(
                "argv, env, cwd and user have {bytes} bytes, at most {MAX_BYTES} are possible: {INSTEAD}"
            )));
        }
        Ok(())
    }
}

/// What to do with what is too much for the start of a program.
const INSTEAD: &str = "give the command what is longer on stdin or in a file";

impl SignalBody {
    /// Returns the number if Linux has such a signal.
    ///
    /// # Errors
    /// [`InvalidExec`].
    pub fn checked(self) -> Result<i32, InvalidExec> {
        check_signal(self.number)
    }
}

/// Returns `number` if Linux has such a signal.
///
/// # Errors
/// [`InvalidExec`].
pub fn check_signal(number: i32) -> Result<i32, InvalidExec> {
    if (1..=64).contains(&number) {
        return Ok(number);
    }
    Err(InvalidExec::new(format!("{number} is no signal of Linux: use 1 to 64")))
}

/// Checks what names a user of a guest: `user`, `uid`, `user:group` or `uid:gid`. Whether there is
/// such a user, only the guest knows.
///
/// # Errors
/// [`InvalidExec`].
pub fn check_user(user: &str) -> Result<(), InvalidExec> {
    if user.is_empty() || user.len() > MAX_USER || user.chars().any(char::is_control) {
        return Err(InvalidExec::new(format!(
            "user must be 1 to {MAX_USER} bytes without control characters"
        )));
    }
    Ok(())
}

impl From<Terminal> for TtySize {
    fn from(size: Terminal) -> Self {
        Self { rows: size.rows, cols: size.cols }
    }
}

impl From<TtySize> for Terminal {
    fn from(size: TtySize) -> Self {
        Self { rows: size.rows, cols: size.cols }
    }
}

impl From<ExitStatus> for ExecOutcome {
    fn from(status: ExitStatus) -> Self {
        match status {
            ExitStatus::Code(code) => Self::ExitCode(code),
            ExitStatus::Signal(signal) => Self::Signal(signal),
            ExitStatus::TimedOut => Self::TimedOut(true),
        }
    }
}

impl From<ExecOutcome> for ExitStatus {
    fn from(outcome: ExecOutcome) -> Self {
        match outcome {
            ExecOutcome::ExitCode(code) => Self::Code(code),
            ExecOutcome::Signal(signal) => Self::Signal(signal),
            ExecOutcome::TimedOut(_) => Self::TimedOut,
        }
    }
}

impl ExecOutcome {
    /// Returns the code a shell would report: the code itself, 128 + signal, or 124 (timeout(1)).
    pub fn shell_code(self) -> i32 {
        ExitStatus::from(self).shell_code()
    }

    /// Returns whether it exited with code 0.
    pub fn success(self) -> bool {
        self == Self::ExitCode(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_keeps_every_byte() {
        let exec: Exec = serde_json::from_str(
            r#"{"argv":["cat",{"base64":"/w=="}],"env":{"B":"3","C":{"base64":"/w=="}},"stdin":"x"}"#,
        )
        .unwrap();
        let (request, stdin) = exec.into_request().unwrap();
        let env: Vec<_> =
            request.env.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        assert_eq!(env, [(&b"B"[..], &b"3"[..]), (b"C", b"\xff")]);
        assert_eq!(request.argv[1].as_bytes(), b"\xff");
        assert!(request.stdin && stdin.as_deref() == Some(b"x"));
    }

    #[test]
    fn what_linux_cannot_take_is_refused_here() {
        for bad in [
            r#"{"argv":[]}"#,
            r#"{"argv":[""]}"#,
            r#"{"argv":["a\u0000b"]}"#,
            r#"{"argv":["a"],"env":{"":"x"}}"#,
            r#"{"argv":["a"],"env":{"x=y":"x"}}"#,
            r#"{"argv":["a"],"cwd":"/\u0000"}"#,
            r#"{"argv":["a"],"user":""}"#,
            r#"{"argv":["a"],"user":"a\nb"}"#,
        ] {
            let exec: Exec = serde_json::from_str(bad).unwrap();
            assert!(exec.into_request().is_err(), "{bad}");
        }
        serde_json::from_str::<Exec>(r#"{"argv":["a"],"comand":"b"}"#).unwrap_err();
    }

    #[test]
    fn what_linux_takes_is_taken_and_no_more() {
        let strings = |count: usize, length: usize| vec!["x".repeat(length); count];
        let env = |count: usize, length: usize| {
            let value = Blob(vec![b'x'; length]);
            Exec {
                env: (0..count).map(|n| (format!("{n:05}"), value.clone())).collect(),
                ..Exec::new(["a"])
            }
        };
        for good in [
            Exec::new(strings(MAX_ARGUMENTS, 1)),
            Exec::new(strings(1, MAX_STRING)),
            Exec::new(strings(16, MAX_STRING)),
            env(MAX_VARIABLES, 1),
            env(1, MAX_STRING - 6),
        ] {
            good.into_request().unwrap();
        }
        for (bad, words) in [
            (Exec::new(strings(MAX_ARGUMENTS + 1, 1)), "argv has 65537 entries"),
            (Exec::new(strings(1, MAX_STRING + 1)), "argv has an entry of 131072 bytes"),
            (Exec::new(strings(17, MAX_STRING)), "have 2228207 bytes"),
            (env(MAX_VARIABLES + 1, 0), "env has 16385 entries"),
            (env(1, MAX_STRING - 5), "env has an entry of 131072 bytes"),
            (Exec { cwd: Some(Blob(vec![b'/'; MAX_BYTES])), ..Exec::new(["a"]) }, "2097153 bytes"),
        ] {
            let error = bad.into_request().unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("stdin"), "{error}");
        }
    }

    #[test]
    fn longer_lists_than_a_command_can_have_are_not_read_to_their_end() {
        // Broken behind the bound, which is not looked at.
        let argv = format!(r#"{{"argv":[{}oops"#, r#""","#.repeat(MAX_ARGUMENTS + 1));
        let env: String = (0..=MAX_VARIABLES).map(|n| format!(r#""{n}":"","#)).collect();
        let env = format!(r#"{{"argv":["a"],"env":{{{env}oops"#);
        for (bad, words) in [(argv, "argv has more than 65536"), (env, "env has more than 16384")] {
            let error = serde_json::from_str::<Exec>(&bad).unwrap_err();
            assert!(error.is_data() && error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn an_outcome_is_one_field() {
        for (outcome, json) in [
            (ExecOutcome::ExitCode(3), r#"{"exit_code":3}"#),
            (ExecOutcome::Signal(9), r#"{"signal":9}"#),
            (ExecOutcome::TimedOut(true), r#"{"timed_out":true}"#),
        ] {
            assert_eq!(serde_json::to_string(&outcome).unwrap(), json);
        }
    }
}
