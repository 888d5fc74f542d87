//! Descriptors of processes (pidfd_open(2)): unlike a process id, one cannot come to mean another process.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A descriptor of process `pid`, with `flags` such as `PIDFD_NONBLOCK`.
///
/// # Errors
/// `ESRCH` when there is no such process.
pub fn open(pid: u32, flags: libc::c_uint) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: pidfd_open(2) takes no pointers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned this descriptor to us alone; it fits an int by definition.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends `SIGKILL` to the process behind a descriptor.
///
/// # Errors
/// `ESRCH` when it has ended and was waited for.
pub fn kill(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let details = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open; pidfd_send_signal(2) allows a null pointer for the details.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, details, 0) };
    if sent == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
