//! A running command, of whichever kind of session: its streams are ours, signals to us are for it.

use std::process::ExitCode;
use std::time::Duration;

use mayfly_api::Exec;
use mayfly_client::{Client, Running, RunningInput};
use mayfly_engine::session::Session;
use mayfly_guest::channel::{ExecControl, ExecEvent, ExecHandle, ExecStdin, TtySize};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::AbortOnDropHandle;

use super::failure::{EXIT_INTERRUPTED, EXIT_OURS, Failure};
use super::interrupt::Interrupts;
use super::terminal::{self, RawTerminal};

/// How long a command may take to obey a signal before it is ended anyway.
const OBEY: Duration = Duration::from_secs(2);

/// A running command. Dropping it kills the command.
pub enum Command<'a> {
    /// Command in a session of this process.
    Guest {
        /// The command.
        handle: Box<ExecHandle>,
        /// Session of the command, which may fail meanwhile.
        session: &'a Session,
    },
    /// Command in a session of the daemon.
    Remote(Running),
}

/// Stdin, signals and terminal size of a running command.
enum Input {
    Guest(ExecStdin, ExecControl),
    Remote(RunningInput),
}

impl Command<'_> {
    /// Starts a command in a session of the daemon.
    pub async fn remote(client: &Client, id: &str, command: &Exec) -> Result<Self, Failure> {
        let started = client.run(id, command).await;
        started
            .map(Self::Remote)
            .map_err(|error| not_started(error.code().unwrap_or_default(), error.to_string()))
    }

    /// Copies its output, and with `stdin` our standard input, until it ends; then its exit code as
    /// a shell would report it.
    ///
    /// # Errors
    /// Interrupted, with `fate` as what became of it: a first signal is passed on, a second one or
    /// no obedience ends it.
    pub async fn attend(
        self,
        stdin: bool,
        interrupts: &mut Interrupts,
        fate: &str,
    ) -> Result<ExitCode, Failure> {
        let input = self.input();
        let _feeding = stdin.then(|| AbortOnDropHandle::new(tokio::spawn(feed(self.input()))));
        let output = copy_output(self);
        tokio::pin!(output);
        let mut signalled = false;
        let code = loop {
            let obey = async {
                if signalled {
                    tokio::time::sleep(OBEY).await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                code = &mut output => break code?,
                signal = interrupts.next() => {
                    if signalled {
                        return Err(Failure::interrupted(fate));
                    }
                    signalled = true;
                    // A command that ended meanwhile needs no signal.
                    input.signal(signal).await;
                }
                () = obey => {
                    return Err(Failure::interrupted(&format!("the command did not obey the signal; {fate}")));
                }
            }
        };
        if signalled {
            return Err(Failure { message: "interrupted".into(), code: EXIT_INTERRUPTED });
        }
        Ok(exit_code(code))
    }

    /// Does as [`Command::attend`], for a command on a terminal. With `stdin` ours becomes its
    /// keyboard: what signals it then are keys.
    ///
    /// # Errors
    /// Interrupted, by signals from elsewhere; `fate` is what became of it.
    pub async fn attend_terminal(
        self,
        stdin: bool,
        interrupts: &mut Interrupts,
        fate: &str,
    ) -> Result<ExitCode, Failure> {
        let mut resized = signal(SignalKind::window_change()).map_err(Failure::ours)?;
        let input = self.input();
        let raw = stdin.then(RawTerminal::enter).transpose().map_err(Failure::ours)?;
        let feeding = stdin.then(|| AbortOnDropHandle::new(tokio::spawn(feed(self.input()))));
        let output = copy_output(self);
        tokio::pin!(output);
        let outcome = loop {
            tokio::select! {
                code = &mut output => break code.map(exit_code),
                // A command that ended meanwhile has no size.
                _ = resized.recv() => input.resize(terminal::size()).await,
                // The terminal is gone, or we are told to stop.
                _ = interrupts.next() => break Err(Failure::interrupted(fate)),
            }
        };
        drop(feeding);
        drop(raw);
        outcome
    }

    fn input(&self) -> Input {
        match self {
            Self::Guest { handle, .. } => Input::Guest(handle.stdin(), handle.control()),
            Self::Remote(running) => Input::Remote(running.input()),
        }
    }

    async fn recv(&mut self) -> Result<Option<ExecEvent>, Failure> {
        match self {
            Self::Guest { handle, session } => {
                session.guarded(handle.recv()).await.map_err(Failure::ours)
            }
            Self::Remote(running) => running.recv().await.map_err(Failure::ours),
        }
    }
}

impl Input {
    /// Returns whether the command still could run.
    async fn write(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Guest(stdin, _) => stdin.write_all(bytes).await.is_ok(),
            Self::Remote(input) => input.write(bytes).await,
        }
    }

    async fn close(&self) {
        match self {
            Self::Guest(stdin, _) => drop(stdin.close().await),
            Self::Remote(input) => drop(input.close().await),
        }
    }

    async fn signal(&self, number: i32) {
        match self {
            Self::Guest(_, control) => drop(control.signal(number).await),
            Self::Remote(input) => drop(input.signal(number).await),
        }
    }

    async fn resize(&self, size: TtySize) {
        match self {
            Self::Guest(_, control) => drop(control.resize(size).await),
            Self::Remote(input) => drop(input.resize(size.into()).await),
        }
    }
}

/// Copies a command's output to ours as it comes. Returns its exit code as a shell would report it.
async fn copy_output(mut command: Command<'_>) -> Result<i32, Failure> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some(event) = command.recv().await? {
        match event {
            ExecEvent::Stdout(bytes) => put(&mut stdout, &bytes).await?,
            ExecEvent::Stderr(bytes) => put(&mut stderr, &bytes).await?,
            ExecEvent::Exit(status) => return Ok(status.shell_code()),
        }
    }
    Err(Failure::ours("the command ended without an exit status"))
}

async fn put(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), Failure> {
    let written = async {
        to.write_all(bytes).await?;
        to.flush().await
    };
    written
        .await
        .map_err(|error| Failure::ours(format!("cannot pass the command's output on: {error}")))
}

/// Copies our standard input to a command's.
async fn feed(input: Input) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; 32 << 10];
    while let Ok(n @ 1..) = stdin.read(&mut buffer).await {
        if !input.write(&buffer[..n]).await {
            return;
        }
    }
    input.close().await;
}

/// Returns the failure for a command that was not started, with the exit code of docker-run(1) for
/// the API's word for why: 127 for one that is not found, 126 for one that cannot be run.
pub fn not_started(word: &str, message: String) -> Failure {
    let code = match word {
        "not_found" => 127,
        "not_permitted" | "not_executable" | "is_a_directory" => 126,
        _ => EXIT_OURS,
    };
    Failure { message, code }
}

/// Converts a command's exit code to this process's own.
pub fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(EXIT_OURS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_daemon::http::error::ApiError;
    use mayfly_guest::channel::{ChannelError, GuestError, StartFailure};

    #[test]
    fn what_cannot_be_started_has_the_exit_codes_of_docker() {
        let code = |errno| {
            let (kind, message) = (StartFailure::Other, "exec x".into());
            let error = ChannelError::NotStarted { kind, error: GuestError { errno, message } };
            not_started(ApiError::from(error).code(), String::new()).code
        };
        assert_eq!(code(libc::ENOENT), 127);
        for errno in [libc::EACCES, libc::ENOEXEC, libc::EISDIR] {
            assert_eq!(code(errno), 126, "{errno}");
        }
        // An unknown user, a working directory that is a file, a guest out of memory: not the
        // command's fault.
        for errno in [0, libc::ENOTDIR, libc::ENOMEM] {
            assert_eq!(code(errno), EXIT_OURS, "{errno}");
        }
    }
}
