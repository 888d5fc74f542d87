//! How a session's VMM arrives, and how its end is noticed.
//!
//! What comes from a VMM is received and closed by the thread of its session alone: the end of a
//! descriptor, also of one that nobody asked for, may wait for the VMM.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{SockFlag, SockType, accept4},
    unistd::{Uid, chown},
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::{
    handshake::{Handshake, HandshakeError, Receiver},
    listen::listen_at,
    protocol::FailureKind,
    wire,
};

/// What was to be learned of a VMM.
pub(crate) enum News {
    Nothing,
    /// It has handed over its guest memory.
    Connected(Handshake),
    /// It cannot be served.
    Refused(FailureKind, String),
    /// It has ended.
    Ended(&'static str),
}

/// Where a VMM comes in.
enum Door {
    /// It is to connect to a path.
    Path(Rendezvous),
    /// The handshake arrives here. Its end tells of the VMM's end when the socket was handed to the
    /// VMM.
    Socket(OwnedFd),
    Closed,
}

/// The VMM of a session, as far as it is known.
pub(crate) struct Vmm {
    door: Door,
    receiver: Receiver,
    /// The VMM's process, when it connected by path: Firecracker closes its socket after the
    /// handshake.
    process: Option<OwnedFd>,
}

impl Vmm {
    /// One that will make the handshake at the other end of `socket`.
    pub fn at_socket(socket: OwnedFd) -> Self {
        Self { door: Door::Socket(socket), receiver: Receiver::default(), process: None }
    }

    /// One of user `owner` that will connect to `path`.
    pub fn at_path(path: &Path, owner: Uid) -> nix::Result<Self> {
        let listener = listen_at(path, SockType::Stream)?;
        let rendezvous = Rendezvous { listener, path: path.to_owned(), owner };
        chown(path, Some(owner), None)?;
        Ok(Self { door: Door::Path(rendezvous), receiver: Receiver::default(), process: None })
    }

    /// Readable when [`Self::look`] will find something.
    pub fn door(&self) -> Option<BorrowedFd<'_>> {
        match &self.door {
            Door::Path(rendezvous) => Some(rendezvous.listener.as_fd()),
            Door::Socket(socket) => Some(socket.as_fd()),
            Door::Closed => None,
        }
    }

    /// Readable when the process has ended, if it is known.
    pub fn process(&self) -> Option<BorrowedFd<'_>> {
        self.process.as_ref().map(AsFd::as_fd)
    }

    /// Sees what has come to the door. `connected`: the handshake has been made. `image`: bytes of
    /// the image.
    pub fn look(&mut self, connected: bool, image: u64) -> News {
        let news = match &self.door {
            Door::Path(rendezvous) => match rendezvous.accept() {
                Some((socket, process)) => {
                    (self.door, self.process) = (Door::Socket(socket), process);
                    return News::Nothing;
                }
                None => return News::Nothing,
            },
            // Nothing may come after the handshake but the end.
            Door::Socket(socket) if connected => {
                match wire::recv(socket.as_fd(), &mut [0], wire::RecvFlags::DONTWAIT) {
                    Err(Errno::EAGAIN) => return News::Nothing,
                    Ok(got) if got.len > 0 => News::Refused(
                        FailureKind::Protocol,
                        "the VMM sent more than one handshake".to_owned(),
                    ),
                    _ => News::Ended("the VMM is gone: its handshake socket closed"),
                }
            }
            Door::Socket(socket) => match self.receiver.receive(socket.as_fd(), image) {
                Ok(None) => return News::Nothing,
                // The socket stays, for its end, unless the process tells.
                Ok(Some(handshake)) if self.process.is_none() => return News::Connected(handshake),
                Ok(Some(handshake)) => News::Connected(handshake),
                Err(error @ HandshakeError::Ended(_)) => {
                    News::Refused(FailureKind::VmmGone, error.to_string())
                }
                Err(error) => News::Refused(FailureKind::Handshake, error.to_string()),
            },
            Door::Closed => return News::Nothing,
        };
        self.door = Door::Closed;
        news
    }

    /// Takes note of the end of the process.
    pub fn process_ended(&mut self) -> News {
        self.process = None;
        News::Ended("the VMM is gone: its process has ended")
    }

    /// Lets nobody in any more, and keeps only what tells of the end.
    pub fn leave(&mut self) {
        if self.process.is_some() || matches!(self.door, Door::Path(_)) {
            self.door = Door::Closed;
        }
    }

    /// Takes what comes at the door as the end; after [`Self::leave`].
    pub fn close_door(&mut self) {
        self.door = Door::Closed;
    }

    /// Returns whether the VMM has ended, or nothing would tell.
    pub fn has_ended(&self) -> bool {
        self.process.is_none() && matches!(self.door, Door::Closed)
    }
}

/// A socket path where a VMM is to connect. Removed on drop.
struct Rendezvous {
    listener: OwnedFd,
    path: PathBuf,
    owner: Uid,
}

impl Rendezvous {
    /// Accepts the VMM. Returns its socket, and what is readable once the process has ended.
    fn accept(&self) -> Option<(OwnedFd, Option<OwnedFd>)> {
        let raw = match accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Ok(raw) => raw,
            Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) => {
                tracing::error!("no descriptor left for a VMM; it waits until another closes");
                std::thread::sleep(Duration::from_millis(10));
                return None;
            }
            Err(_) => return None,
        };
        // SAFETY: a descriptor just made for this process.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        let peer = wire::peer(socket.as_fd()).ok()?;
        if peer.uid() != self.owner.as_raw() && peer.uid() != 0 {
            tracing::warn!(uid = peer.uid(), "handshake of another user refused");
            return None;
        }
        let process =
            Pid::from_raw(peer.pid()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        Some((socket, process))
    }
}

impl Drop for Rendezvous {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
