//! `mayfly run`: one command in a fresh session.

use std::process::{ExitCode, Stdio};

use mayfly_api::{Blob, CreateSession, Exec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::args::{self, Cli};
use super::command::exit_code;
use super::failure::{EXIT_INTERRUPTED, Failure};
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
        .envs(pairs::parse("--env", &args.env)?)
        .stdin(Stdio::inherit())
        .kill_on_drop(true);
    if let Some(dir) = &args.workdir {
        command.current_dir(dir);
    }
    let mut child = command.spawn().map_err(|error| {
        let code = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
        Failure { message: format!("cannot run {program} on this host: {error}"), code }
    })?;
    let mut signalled = false;
    loop {
        tokio::select! {
            status = child.wait() => {
                let status = status.map_err(Failure::ours)?;
                if signalled {
                    return Err(Failure { message: "interrupted".into(), code: EXIT_INTERRUPTED });
                }
                return Ok(exit_code(mayfly_vmm::Exit(status).shell_code()));
            }
            reason = target.over() => {
                return Err(Failure::ours(format!("the session failed: {reason}")));
            }
            // The terminal sends it to the client as well; a second one, or a client that ignores
            // it, ends the session.
            signal = interrupts.next() => {
                if signalled {
                    return Err(Failure::interrupted(FATE));
                }
                signalled = true;
                if let (Some(pid), Ok(signal)) = (child.id(), Signal::try_from(signal)) {
                    let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
                }
            }
        }
    }
}
