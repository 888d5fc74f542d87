//! `mayfly shell`: an interactive terminal in a fresh session.

use std::io::IsTerminal;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::args::{self, Cli};
use super::failure::Failure;
use super::interrupt::Interrupts;
use super::run::{copy_output, feed, in_session};
use super::terminal::{self, RawTerminal};
use crate::channel::ExecRequest;
use crate::engine::SessionOptions;
use crate::session::Session;

/// What runs when no command is given.
const LOGIN_SHELL: &[&str] = &["/bin/bash", "-l"];

pub async fn run(_: &Cli, args: &args::Shell) -> Result<ExitCode, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::ours("shell needs a terminal; use `mayfly run` in scripts"));
    }
    in_session(&args.golden, &SessionOptions::default(), async |session: &Session, interrupts: &mut Interrupts| {
        interact(session, args, interrupts).await
    })
    .await
}

async fn interact(session: &Session, args: &args::Shell, interrupts: &mut Interrupts) -> Result<ExitCode, Failure> {
    let given: Vec<&str> = args.command.iter().map(String::as_str).collect();
    let command = if given.is_empty() { LOGIN_SHELL.to_vec() } else { given };
    let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".into());
    let request = ExecRequest {
        tty: Some(terminal::size()),
        stdin: true,
        env: vec![("TERM".into(), term.as_str().into())],
        ..ExecRequest::new(command)
    };
    let mut resized = signal(SignalKind::window_change()).map_err(Failure::ours)?;
    let command = session.guarded(session.guest().exec(request)).await.map_err(Failure::ours)?;
    let control = command.control();
    let raw = RawTerminal::enter().map_err(Failure::ours)?;
    let stdin = tokio::spawn(feed(command.stdin()));
    let output = session.guarded(copy_output(command));
    tokio::pin!(output);
    let outcome = loop {
        tokio::select! {
            code = &mut output => break code.map_err(Failure::ours),
            _ = resized.recv() => {
                // A shell that ended meanwhile has no size.
                let _ = control.resize(terminal::size()).await;
            }
            // Keys reach the guest as bytes; a signal here means that the terminal is gone or we are told to stop.
            _ = interrupts.next() => break Err(Failure::interrupted("the session was discarded")),
        }
    };
    stdin.abort();
    drop(raw);
    outcome.map(|code| ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
