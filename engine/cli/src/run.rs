//! `mayfly run`: one command in a fresh session.

use std::process::ExitCode;

use mayfly_api::{Blob, CreateSession, Exec};

use super::args::{self, Cli};
use super::failure::Failure;
use super::host_command;
use super::interrupt::Interrupts;
use super::pairs;
use super::target::{Target, in_session};

/// What became of the session of a command that is interrupted.
const FATE: &str = "the session was discarded";

pub async fn run(_: &Cli, args: &args::RunArgs) -> Result<ExitCode, Failure> {
    let wanted = CreateSession {
        golden: args.golden.clone(),
        limits: args.bounds.limits(),
        egress: args.bounds.egress(),
        ..CreateSession::default()
    };
    in_session(&wanted, args.no_daemon, async |target: &Target, interrupts: &mut Interrupts| {
        if args.docker {
            on_host(target, args, interrupts).await
        } else {
            in_guest(target, args, interrupts).await
        }
    })
    .await
}

async fn in_guest(
    target: &Target,
    args: &args::RunArgs,
    interrupts: &mut Interrupts,
) -> Result<ExitCode, Failure> {
    let command = exec(&args.command, &args.env, args.workdir.as_deref(), args.user.as_deref())?;
    target.exec(Exec { open_stdin: true, ..command }).await?.attend(true, interrupts, FATE).await
}

/// Builds a command as it is given on the command line.
pub fn exec(
    argv: &[String],
    env: &[String],
    workdir: Option<&str>,
    user: Option<&str>,
) -> Result<Exec, Failure> {
    let env = pairs::parse("--env", env)?;
    Ok(Exec {
        env: env.into_iter().map(|(name, value)| (name, Blob::new(value))).collect(),
        cwd: workdir.map(Blob::from),
        user: user.map(str::to_owned),
        ..Exec::new(argv.iter().map(String::as_str))
    })
}

/// Runs the command on this host against the session's Docker daemon.
async fn on_host(
    target: &Target,
    args: &args::RunArgs,
    interrupts: &mut Interrupts,
) -> Result<ExitCode, Failure> {
    let socket = target.docker()?;
    let [program, arguments @ ..] = args.command.as_slice() else {
        return Err(Failure::ours("no command"));
    };
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .env("DOCKER_HOST", format!("unix://{}", socket.path().display()))
        .env_remove("DOCKER_CONTEXT")
        .env_remove("DOCKER_TLS_VERIFY")
        .envs(pairs::parse("--env", &args.env)?);
    if let Some(dir) = &args.workdir {
        command.current_dir(dir);
    }
    host_command::attend(command, target.over(), interrupts, FATE).await
}
