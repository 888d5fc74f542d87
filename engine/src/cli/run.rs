//! `mayfly run`: one command in a fresh session.

use std::process::{ExitCode, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::args::{self, Cli};
use super::failure::{EXIT_INTERRUPTED, EXIT_OURS, Failure};
use super::interrupt::Interrupts;
use crate::cgroup::Limits;
use crate::channel::{ByteString, ChannelError, ExecEvent, ExecHandle, ExecRequest, ExecStdin};
use crate::engine::{Engine, SessionOptions};
use crate::layout::Layout;
use crate::session::{Session, SessionError};

/// How long a command may take to obey a signal before its session is discarded anyway.
const OBEY: Duration = Duration::from_secs(2);

pub async fn run(_: &Cli, args: &args::Run) -> Result<ExitCode, Failure> {
    let options = SessionOptions {
        limits: Limits { memory_bytes: args.memory.map(|mib| mib << 20), cpus: args.cpus, ..Limits::default() },
        ..SessionOptions::default()
    };
    in_session(&args.golden, &options, async |session: &Session, interrupts: &mut Interrupts| {
        if args.docker { on_host(session, args, interrupts).await } else { in_guest(session, args, interrupts).await }
    })
    .await
}

/// Starts a session, does `work` in it, and discards it whatever comes.
pub async fn in_session(
    golden: &str,
    options: &SessionOptions,
    work: impl AsyncFnOnce(&Session, &mut Interrupts) -> Result<ExitCode, Failure>,
) -> Result<ExitCode, Failure> {
    let mut interrupts = Interrupts::install().map_err(Failure::ours)?;
    let engine = Engine::open(Layout::from_env()).await.map_err(Failure::ours)?;
    let started = async {
        let golden = engine.golden(golden).await?;
        engine.start_session(&golden, options).await
    };
    let session = tokio::select! {
        session = started => session.map_err(Failure::ours)?,
        _ = interrupts.next() => return Err(Failure::interrupted("the session was discarded before it started")),
    };
    let outcome = work(&session, &mut interrupts).await;
    session.discard().await.map_err(Failure::ours)?;
    outcome
}

async fn in_guest(session: &Session, args: &args::Run, interrupts: &mut Interrupts) -> Result<ExitCode, Failure> {
    let request = ExecRequest {
        env: environment(&args.env)?,
        cwd: args.workdir.clone().unwrap_or_default().into(),
        user: args.user.clone(),
        stdin: true,
        ..ExecRequest::new(args.command.iter().map(String::as_str))
    };
    let command = session.guarded(session.guest().exec(request)).await.map_err(not_started)?;
    let control = command.control();
    let stdin = tokio::spawn(feed(command.stdin()));
    let output = session.guarded(copy_output(command));
    tokio::pin!(output);
    let mut signalled = false;
    let outcome = loop {
        let obey = async { if signalled { tokio::time::sleep(OBEY).await } else { std::future::pending().await } };
        tokio::select! {
            code = &mut output => break code.map(exit_code).map_err(Failure::ours),
            signal = interrupts.next() => {
                if signalled {
                    break Err(Failure::interrupted("the session was discarded"));
                }
                signalled = true;
                // A command that ended meanwhile needs no signal.
                let _ = control.signal(signal).await;
            }
            () = obey => break Err(Failure::interrupted("the command did not obey the signal; the session was discarded")),
        }
    };
    stdin.abort();
    match outcome {
        Ok(_) if signalled => Err(Failure { message: "interrupted".into(), code: EXIT_INTERRUPTED }),
        other => other,
    }
}

/// The exit codes of docker-run(1): 127 for a command that is not found, 126 for one that cannot be run.
fn not_started(error: SessionError) -> Failure {
    let code = match &error {
        SessionError::Channel(ChannelError::Guest(guest)) => match guest.errno {
            libc::ENOENT => 127,
            libc::EACCES | libc::ENOEXEC | libc::EISDIR => 126,
            _ => EXIT_OURS,
        },
        _ => EXIT_OURS,
    };
    Failure { message: error.to_string(), code }
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(EXIT_OURS))
}

fn environment(variables: &[String]) -> Result<Vec<(ByteString, ByteString)>, Failure> {
    let pair = |variable: &String| match variable.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err(Failure::ours(format!("--env {variable}: not of the form NAME=VALUE"))),
    };
    variables.iter().map(pair).collect()
}

/// Copies a command's output to ours as it comes. Returns its exit code as a shell would report it.
pub async fn copy_output(mut command: ExecHandle) -> Result<i32, ChannelError> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some(event) = command.recv().await? {
        match event {
            ExecEvent::Stdout(bytes) => {
                stdout.write_all(&bytes).await?;
                stdout.flush().await?;
            }
            ExecEvent::Stderr(bytes) => {
                stderr.write_all(&bytes).await?;
                stderr.flush().await?;
            }
            ExecEvent::Exit(status) => return Ok(status.shell_code()),
        }
    }
    Err(ChannelError::Closed { reason: "the command ended without an exit status".into() })
}

/// Copies our standard input to a command's.
pub async fn feed(stdin: ExecStdin) {
    let mut input = tokio::io::stdin();
    let mut buffer = vec![0; 32 << 10];
    loop {
        match input.read(&mut buffer).await {
            Ok(n @ 1..) => {
                if stdin.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
            _ => {
                let _ = stdin.close().await;
                return;
            }
        }
    }
}

/// Runs the command on this host against the session's Docker daemon.
async fn on_host(session: &Session, args: &args::Run, interrupts: &mut Interrupts) -> Result<ExitCode, Failure> {
    let socket = session.forward_docker().map_err(Failure::ours)?;
    let [program, arguments @ ..] = args.command.as_slice() else {
        return Err(Failure::ours("no command"));
    };
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .env("DOCKER_HOST", format!("unix://{}", socket.path().display()))
        .env_remove("DOCKER_CONTEXT")
        .env_remove("DOCKER_TLS_VERIFY")
        .stdin(Stdio::inherit())
        .kill_on_drop(true);
    for (name, value) in args.env.iter().filter_map(|v| v.split_once('=')) {
        command.env(name, value);
    }
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
                return Ok(exit_code(crate::vmm::Exit(status).shell_code()));
            }
            reason = session.state().failed() => {
                return Err(Failure::ours(format!("the session failed: {reason}")));
            }
            // The terminal sends it to the client as well; a second one, or a client that ignores it, ends the session.
            signal = interrupts.next() => {
                if signalled {
                    return Err(Failure::interrupted("the session was discarded"));
                }
                signalled = true;
                if let (Some(pid), Ok(signal)) = (child.id(), nix::sys::signal::Signal::try_from(signal)) {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal);
                }
            }
        }
    }
}
