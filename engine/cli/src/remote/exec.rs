//! `mayfly exec`: one command in a session that stays.

use std::io::IsTerminal;
use std::process::ExitCode;

use mayfly_api::Exec;

use super::daemon;
use crate::args;
use crate::command::Command;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::run::exec;
use crate::shell::on_terminal;

/// What became of a command that is interrupted.
const FATE: &str = "the command was killed";

pub async fn run(args: &args::ExecArgs) -> Result<ExitCode, Failure> {
    let stdin = args.interactive;
    if args.tty && stdin && !std::io::stdin().is_terminal() {
        return Err(Failure::ours("exec -i -t needs a terminal; leave -t out in scripts"));
    }
    let command = exec(&args.command, &args.env, args.workdir.as_deref(), args.user.as_deref())?;
    let command = Exec { open_stdin: stdin, ..command };
    let command = if args.tty { on_terminal(command) } else { command };
    let mut interrupts = Interrupts::install().map_err(Failure::ours)?;
    let client = daemon();
    let running = tokio::select! {
        running = Command::remote(&client, &args.id, &command) => running?,
        _ = interrupts.next() => return Err(Failure::interrupted(FATE)),
    };
    if args.tty {
        running.attend_terminal(stdin, &mut interrupts, FATE).await
    } else {
        running.attend(stdin, &mut interrupts, FATE).await
    }
}
