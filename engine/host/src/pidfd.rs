//! Descriptors of processes (pidfd_open(2)): unlike a process id, one cannot come to mean another
//! process.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Opens a descriptor of process `pid`. It is closed at exec.
///
/// # Errors
/// `ESRCH` when there is no such process.
pub fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Sends `SIGKILL` to the process behind a descriptor.
///
/// # Errors
/// `ESRCH` when it has ended and was waited for.
pub fn kill(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(pidfd_send_signal(pidfd, Signal::KILL)?)
}
