//! Commands on this host that work with a session: docker clients, and what uses them.

use std::process::{ExitCode, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;

use super::command::exit_code;
use super::failure::{EXIT_INTERRUPTED, Failure};
use super::interrupt::Interrupts;

/// Runs `command` to its end, with our standard input and output; then its exit code as a shell
/// would report it. It ends as well when `over` resolves, with the reason why its session did.
///
/// # Errors
/// Interrupted, with `fate` as what became of it: a first signal is passed on, a second one ends it.
pub async fn attend(
    mut command: Command,
    over: impl Future<Output = String>,
    interrupts: &mut Interrupts,
    fate: &str,
) -> Result<ExitCode, Failure> {
    command.stdin(Stdio::inherit()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| {
        let code = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
        let program = command.as_std().get_program().display();
        Failure { message: format!("cannot run {program} on this host: {error}"), code }
    })?;
    tokio::pin!(over);
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
            reason = &mut over => {
                return Err(Failure::ours(format!("the session failed: {reason}")));
            }
            // The terminal sends it to the command as well; a second one ends a command that ignores
            // it.
            signal = interrupts.next() => {
                if signalled {
                    return Err(Failure::interrupted(fate));
                }
                signalled = true;
                if let (Some(pid), Ok(signal)) = (child.id(), Signal::try_from(signal)) {
                    let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
                }
            }
        }
    }
}
