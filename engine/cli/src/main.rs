//! The `mayfly` command: a thin layer over the engine, its daemon and the client of it.
//!
//! Every failure is one clear line on standard error, and an exit code that is not 0.
//!
//! `run` and `shell` work in a [`target`], a session of the daemon where one answers and of an
//! engine in this process where none does; [`command`] is what runs there. The commands in
//! [`remote`] need a daemon.

mod args;
mod audit;
mod bars;
mod command;
mod demo;
mod doctor;
mod egress_proxy;
mod failure;
mod golden;
mod host_command;
mod interrupt;
mod lines;
mod options;
mod pager;
mod pairs;
mod remote;
mod run;
mod serve;
mod shell;
mod target;
mod terminal;
mod token;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::error::ErrorKind;
use mayfly_daemon::observe::logging;
use mayfly_host::time_scale::scaled;
use mayfly_protocol::is_printable;

use args::{Cli, Command};
use failure::Failure;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Also the help and the version that were asked for.
        Err(error) if !is_mistake(&error) => error.exit(),
        Err(error) => return report(&Failure::usage(&error)),
    };
    // Dropped last: the traces of a command are sent after its end.
    let _logging = match logging::init(log_filter(&cli), None) {
        Ok(logging) => logging,
        Err(error) => return report(&Failure::new(error)),
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = match runtime.worker_threads(worker_threads(&cli.command)).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&Failure::new(format!("cannot start: {error}"))),
    };
    let outcome = runtime.block_on(dispatch(&cli));
    // A thread that still waits for a child or for input must not hold up the exit; what it waits
    // for dies with us. A daemon and a demo have none, but for one that may be reading a disk;
    // their last tasks hold what is to be removed from the host.
    let last_tasks = matches!(cli.command, Command::Serve(_) | Command::Demo(_));
    let patience = if last_tasks { scaled(Duration::from_secs(5)) } else { Duration::ZERO };
    runtime.shutdown_timeout(patience);
    match outcome {
        Ok(code) => code,
        Err(failure) => report(&failure),
    }
}

/// Threads that drive what a command does.
fn worker_threads(command: &Command) -> usize {
    // One that is busy leaves another to time limits and signals.
    const LEAST: usize = 2;
    match command {
        // All its sessions and clients share them, so it takes what processors there are for it, by
        // its affinity and its cgroup.
        Command::Serve(_) => {
            std::thread::available_parallelism().map_or(LEAST, |all| all.get().max(LEAST))
        }
        // Others have one thing to do, and mostly wait; more threads would only take time to start.
        _ => LEAST,
    }
}

/// Whether arguments are wrong; without any, clap shows its help.
fn is_mistake(error: &clap::Error) -> bool {
    error.use_stderr() && error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
}

async fn dispatch(cli: &Cli) -> Result<ExitCode, Failure> {
    match &cli.command {
        Command::Doctor => doctor::run(cli).await,
        Command::Golden(command) => golden::run(cli, command).await,
        Command::Run(args) => run::run(cli, args).await,
        Command::Shell(args) => shell::run(cli, args).await,
        Command::Serve(args) => serve::run(cli, args).await,
        Command::Token(args) => token::run(cli, args),
        Command::Start(args) => remote::sessions::start(cli, args).await,
        Command::Ps => remote::sessions::list(cli).await,
        Command::Exec(args) => remote::exec::run(cli, args).await,
        Command::Attach(args) => remote::exec::attach(args).await,
        Command::Docker(args) => remote::docker::run(args).await,
        Command::Forward(args) => remote::forward::run(cli, args).await,
        Command::Egress(args) => remote::sessions::egress(cli, args).await,
        Command::Cp(args) => remote::copy::run(args).await,
        Command::Logs { id } => remote::sessions::logs(id).await,
        Command::Kill { ids } => remote::sessions::kill(cli, ids).await,
        Command::Status => remote::status::run(cli).await,
        Command::Demo(args) => Box::pin(demo::run(cli, args)).await,
        Command::Audit(args) => audit::run(cli, args).await,
        Command::Pager(command) => pager::run(cli, command),
        Command::EgressProxy => egress_proxy::run().await,
    }
}

fn report(failure: &Failure) -> ExitCode {
    // Whatever an error's text looks like, and whoever's words are in it, the person gets one line
    // that only shows itself.
    let text: String =
        failure.message.chars().map(|c| if is_printable(c) { c } else { '\u{fffd}' }).collect();
    let line =
        text.split('\n').map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" | ");
    eprintln!("mayfly: {line}");
    ExitCode::from(failure.code)
}

/// What is logged unless `MAYFLY_LOG` says otherwise.
fn log_filter(cli: &Cli) -> &'static str {
    match (cli.verbose, cli.quiet || cli.json) {
        (0, _) if matches!(cli.command, Command::Serve(_)) && !cli.quiet => logging::DAEMON_FILTER,
        (0, true) => "error",
        (0, false) => "warn",
        (1, _) => "mayfly=debug,info",
        (_, _) => "trace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_has_a_thread_for_each_processor_and_other_commands_two() {
        let threads = |word| worker_threads(&Cli::parse_from(["mayfly", word]).command);
        let processors = std::thread::available_parallelism().unwrap().get();
        assert_eq!((threads("serve"), threads("ps")), (processors.max(2), 2));
    }
}
