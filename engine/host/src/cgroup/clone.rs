//! Processes that are made in a group (clone(2), `CLONE_INTO_CGROUP`: v2, Linux 5.7).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::pidfd;

/// Flags of clone3(2), from Linux `include/uapi/linux/sched.h`. Those of the libc crate for glibc
/// are cut to 32 bits.
const CLEAR_SIGHAND: u64 = 1 << 32;
const INTO_CGROUP: u64 = 1 << 33;

/// A child of ours. Somebody has to wait for it.
#[derive(Debug)]
pub struct Started {
    /// Process id of the child, until it is waited for.
    pub pid: u32,
    /// A descriptor of the process.
    pub pidfd: OwnedFd,
}

impl Started {
    /// Waits for its end.
    ///
    /// # Errors
    /// As waitpid(2).
    pub fn wait(self) -> nix::Result<WaitStatus> {
        let pid = Pid::from_raw(self.pid.cast_signed());
        loop {
            match waitpid(pid, None) {
                Err(Errno::EINTR) => {}
                ended => return ended,
            }
        }
    }

    /// Ends a process that nobody wants.
    pub fn end(self) {
        let _ = pidfd::kill(self.pidfd.as_fd());
        let _ = self.wait();
    }
}

/// Forks as fork(2) does, into the cgroup of this folder and with these `CLONE_` flags beside;
/// `None` in the child, which handles no signal that its parent does.
///
/// # Safety
/// The child must only do what one of a process with several threads may (signal-safety(7)), and
/// nothing for which the C library looks at its list of threads, which is its parent's. `flags`
/// must not make it share memory.
///
/// # Errors
/// As clone(2): the group is gone or may not be entered, or there are too many processes.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a process id is a positive int"
)]
pub unsafe fn clone_into(cgroup: BorrowedFd<'_>, flags: u64) -> io::Result<Option<Started>> {
    let mut pidfd: RawFd = -1;
    // SAFETY: zero means "none" in every field.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = INTO_CGROUP | CLEAR_SIGHAND | libc::CLONE_PIDFD as u64 | flags;
    arguments.pidfd = &raw mut pidfd as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = cgroup.as_raw_fd().cast_unsigned().into();
    // SAFETY: the kernel reads as many bytes as it is told and writes one descriptor, in the
    // parent. Without a stack of its own the child goes on with a copy of this one.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) }
    {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        // SAFETY: the kernel just made this descriptor for us alone.
        pid => Ok(Some(Started { pid: pid as u32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })),
    }
}
