//! The guest's end of the byte stream under the channel.

use crate::time_scale::scaled;
use futures::io::{AsyncRead, AsyncWrite};
use mayfly_protocol::PORT_NAME;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;

/// Meaning of the end of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hangup {
    /// The other end is gone for good (a socket).
    Ends,
    /// The host end is not connected now and may come back (a virtio port, which reads 0 bytes
    /// then).
    Waits,
}

/// The port, blocking in the parked phase and non-blocking in the open one.
#[derive(Debug)]
pub struct Port {
    fd: OwnedFd,
    hangup: Hangup,
}

/// A virtio port tells nobody when its host end comes back, so a hung-up port is looked at this
/// often.
const RECONNECT: Duration = Duration::from_millis(20);

impl Port {
    /// Takes over a descriptor.
    pub fn new(fd: OwnedFd, hangup: Hangup) -> io::Result<Self> {
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        Ok(Self { fd, hangup })
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        fcntl(
            &self.fd,
            FcntlArg::F_SETFL(if nonblocking { OFlag::O_NONBLOCK } else { OFlag::empty() }),
        )?;
        Ok(())
    }

    /// Makes reads and writes block, for the parked phase.
    pub fn block(&self) -> io::Result<()> {
        self.set_nonblocking(false)
    }

    /// Blocks until there are bytes. `None` when the stream has ended for good.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match nix::unistd::read(&self.fd, buffer) {
                Ok(0) if self.hangup == Hangup::Ends => return Ok(None),
                Ok(0) => std::thread::sleep(RECONNECT),
                Ok(count) => return Ok(Some(count)),
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes everything, blocking.
    pub fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match nix::unistd::write(&self.fd, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Blocks until there is something to read or the other end is gone.
    pub fn wait_readable(&self) -> io::Result<()> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        loop {
            let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => return Ok(()),
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Makes the port asynchronous, for the open phase. To be called inside a runtime.
    pub fn into_async(self) -> io::Result<AsyncPort> {
        self.set_nonblocking(true)?;
        // SAFETY: a Port owns one descriptor for its whole life, and the AsyncFd keeps it.
        Ok(AsyncPort(unsafe { AsyncFd::register(self) }?))
    }
}

impl AsRawFd for Port {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// The port in the open phase.
#[derive(Debug)]
pub struct AsyncPort(AsyncFd<Port>);

impl AsyncPort {
    /// Takes the port back to the parked phase.
    pub fn into_port(self) -> Port {
        self.0.into_inner()
    }
}

impl AsyncRead for AsyncPort {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            if let Ok(result) = guard.try_io(|port| Ok(nix::unistd::read(&port.get_ref().fd, out)?))
            {
                return Poll::Ready(result);
            }
        }
    }
}

impl AsyncWrite for AsyncPort {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(result) =
                guard.try_io(|port| Ok(nix::unistd::write(&port.get_ref().fd, bytes)?))
            {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Longest wait for the virtio port of the channel to appear and to stop answering ENXIO.
const PORT_LIMIT: Duration = Duration::from_secs(10);

/// Opens the virtio port of the channel; waits for it if need be.
pub fn open_guest_port() -> io::Result<Port> {
    let deadline = Instant::now() + scaled(PORT_LIMIT);
    loop {
        let error = match find_guest_port().and_then(|path| {
            File::options()
                .read(true)
                .write(true)
                .custom_flags(libc::O_CLOEXEC | libc::O_NOCTTY)
                .open(path)
        }) {
            Ok(port) => return Port::new(port.into(), Hangup::Waits),
            Err(error) => error,
        };
        if Instant::now() >= deadline {
            return Err(io::Error::new(
                error.kind(),
                format!("no virtio port named {PORT_NAME}: {error}"),
            ));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The device node of the port with our name, or of the only port there is.
fn find_guest_port() -> io::Result<PathBuf> {
    let mut ports = Vec::new();
    for entry in std::fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        let device = PathBuf::from("/dev").join(entry.file_name());
        let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT_NAME {
            return Ok(device);
        }
        ports.push(device);
    }
    match ports.as_slice() {
        [only] => Ok(only.clone()),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Opens a file that a path names, write-only and close-on-exec; for /proc and /sys knobs.
pub fn write_file(path: &str, text: &str) -> io::Result<()> {
    use io::Write;
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}
