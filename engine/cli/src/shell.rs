//! `mayfly shell`: an interactive terminal in a fresh session.

use std::io::IsTerminal;
use std::process::ExitCode;

use mayfly_api::{Blob, CreateSession, EgressPolicy, Exec};

use super::args::{self, Cli};
use super::failure::{EXIT_OURS, Failure};
use super::interrupt::Interrupts;
use super::target::{Target, in_session};
use super::terminal;

/// What runs when no command is given.
const LOGIN_SHELL: &[&str] = &["/bin/bash", "-l"];

pub async fn run(_: &Cli, args: &args::ShellArgs) -> Result<ExitCode, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::ours("shell needs a terminal; use `mayfly run` in scripts"));
    }
    let given: Vec<&str> = args.command.iter().map(String::as_str).collect();
    let command =
        on_terminal(Exec::new(if given.is_empty() { LOGIN_SHELL.to_vec() } else { given }));
    let egress = EgressPolicy { allow: args.egress.clone(), ..EgressPolicy::default() };
    let wanted = CreateSession { golden: args.golden.clone(), egress, ..CreateSession::default() };
    in_session(&wanted, args.no_daemon, async |target: &Target, interrupts: &mut Interrupts| {
        let started = target.exec(Exec { open_stdin: true, ..command }).await;
        let started = started.map_err(|failure| Failure { code: EXIT_OURS, ..failure })?;
        started.attend_terminal(true, interrupts, "the session was discarded").await
    })
    .await
}

/// Builds the request for `command` on a terminal like this process's own.
pub fn on_terminal(mut command: Exec) -> Exec {
    let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".into());
    command.env.entry("TERM".into()).or_insert_with(|| Blob::new(term));
    Exec { tty: Some(terminal::size().into()), ..command }
}
