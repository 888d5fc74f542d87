//! The open files limit: more for the agent, which serves many commands at a time, and for a command
//! what the agent was started with.

use std::io;
use std::sync::OnceLock;

/// What the agent was started with.
static INHERITED: OnceLock<libc::rlimit> = OnceLock::new();

/// Raises the agent's soft limit to its hard one. Commands get what it was before.
pub fn raise() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes one rlimit.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    let _ = INHERITED.set(limit);
    // SAFETY: setrlimit reads one rlimit.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the limit for commands, when it is not the agent's own.
pub fn of_commands() -> Option<libc::rlimit> {
    INHERITED.get().copied()
}

/// Gives this process, a child that is about to execute, the limit of commands. One system call.
pub fn lower() -> io::Result<()> {
    let Some(limit) = INHERITED.get() else { return Ok(()) };
    // SAFETY: setrlimit reads one rlimit.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
