//! Non-blocking ends of pipes and pseudoterminals, and the end of a process as an event.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

nix::ioctl_read_bad!(fionread, libc::FIONREAD, libc::c_int);

/// End of a pipe, or the master of a pseudoterminal.
pub struct Pipe(AsyncFd<OwnedFd>);

impl Pipe {
    /// Takes over `fd`.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // SAFETY: an OwnedFd is one descriptor for its whole life, and the AsyncFd keeps it.
        Ok(Self(unsafe { AsyncFd::register(fd) }?))
    }

    /// Reads; 0 at the end. A terminal whose last process is gone answers EIO (pty(7)), which is an
    /// end, too.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read =
            self.0.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, buffer)?)).await;
        match read {
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(0),
            other => other,
        }
    }

    /// Writes some of `bytes`.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?)).await
    }

    /// Writes all of `bytes`.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = self.write(bytes).await?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Returns the bytes that can be read now.
    pub fn readable_now(&self) -> usize {
        let mut count = 0;
        // SAFETY: FIONREAD writes one int, which `count` is.
        let result = unsafe { fionread(self.0.get_ref().as_raw_fd(), &raw mut count) };
        result.ok().and_then(|_| usize::try_from(count).ok()).unwrap_or(0)
    }

    /// Returns the descriptor; nobody waits for it any more.
    pub fn into_inner(self) -> OwnedFd {
        self.0.into_inner()
    }

    /// Returns the descriptor.
    pub fn get_ref(&self) -> &OwnedFd {
        self.0.get_ref()
    }
}

/// Becomes readable when a process ends (pidfd_open(2)).
pub struct ProcessEnd(AsyncFd<OwnedFd>);

impl ProcessEnd {
    /// Watches a child that was not waited for yet.
    pub fn of(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
        let fd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        // SAFETY: an OwnedFd is one descriptor for its whole life, and the AsyncFd keeps it.
        Ok(Self(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?))
    }

    /// Waits for the end.
    pub async fn wait(&self) -> io::Result<()> {
        self.0.readable().await.map(|_| ())
    }
}
