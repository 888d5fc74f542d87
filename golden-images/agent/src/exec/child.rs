//! A child of ours, and its exit status once it was waited for.

use nix::errno::Errno;
use nix::unistd::Pid;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// A child process. Dropping it neither ends it nor waits for it.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    /// The number of a child that was waited for may be another process by now.
    ended: Option<ExitStatus>,
}

impl Child {
    /// Takes over a child that nobody has waited for.
    pub fn new(pid: Pid) -> Self {
        Self { pid, ended: None }
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            match self.waitpid(0) {
                Ok(Some(status)) => return Ok(status),
                Ok(None) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Returns the status if the child has ended.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        Ok(self.waitpid(libc::WNOHANG)?)
    }

    /// waitpid(2), whose undecoded status is what an [`ExitStatus`] is made of.
    fn waitpid(&mut self, options: libc::c_int) -> nix::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            let mut status = 0;
            // SAFETY: waitpid writes one int, which `status` is.
            let result = unsafe { libc::waitpid(self.pid.as_raw(), &raw mut status, options) };
            if Errno::result(result)? != 0 {
                self.ended = Some(ExitStatus::from_raw(status));
            }
        }
        Ok(self.ended)
    }
}
