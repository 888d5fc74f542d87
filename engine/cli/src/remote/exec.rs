//! `mayfly exec` and `attach`: commands in a session that stays.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use mayfly_api::Exec;

use super::daemon;
use crate::args::{self, Cli};
use crate::command::{Command, not_started};
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::run::exec;
use crate::shell::on_terminal;
use crate::terminal;

/// What became of a command that is interrupted.
const FATE: &str = "the command was killed";

pub async fn run(cli: &Cli, args: &args::ExecArgs) -> Result<ExitCode, Failure> {
    let stdin = args.interactive;
    if args.tty && !args.detach && stdin && !std::io::stdin().is_terminal() {
        return Err(Failure::ours("exec -i -t needs a terminal; leave -t out in scripts"));
    }
    let command = exec(&args.command, &args.env, args.workdir.as_deref(), args.user.as_deref())?;
    let command = Exec { open_stdin: stdin, ..command };
    let command = if args.tty { on_terminal(command) } else { command };
    if args.detach {
        let client = daemon();
        let started = client
            .start_background(&args.id, &command)
            .await
            .map_err(|error| not_started(error.code().unwrap_or_default(), error.to_string()))?;
        let shown = if cli.json { serde_json::to_string(&started)? } else { started.n.to_string() };
        println!("{shown}");
        return Ok(ExitCode::SUCCESS);
    }
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

/// Follows a command that goes on without us.
pub async fn attach(args: &args::AttachArgs) -> Result<ExitCode, Failure> {
    const FATE: &str = "the command goes on";
    let mut interrupts = Interrupts::install().map_err(Failure::ours)?;
    let client = daemon();
    let attached = async {
        let about = client.background(&args.id, args.number, Duration::ZERO).await?;
        Ok::<_, Failure>((about.tty, client.attach(&args.id, args.number).await?))
    };
    let (tty, running) = tokio::select! {
        attached = attached => attached?,
        _ = interrupts.next() => return Err(Failure::interrupted(FATE)),
    };
    let on_terminal = tty && (!args.interactive || std::io::stdin().is_terminal());
    if on_terminal && args.interactive {
        // One that has ended meanwhile has no size.
        running.input().resize(terminal::size().into()).await;
    }
    let command = Command::Remote(running);
    if on_terminal {
        command.attend_terminal(args.interactive, &mut interrupts, FATE).await
    } else {
        command.attend(args.interactive, &mut interrupts, FATE).await
    }
}
