//! Holds the userfaultfd of a VMM for as long as the VMM lives.
//!
//! When the last descriptor of a userfaultfd is closed, the kernel lets those go on who wait for a
//! page, and they read zeros (userfaultfd(2)). Should the pager die, the one held here makes them
//! wait until the VMM is killed. The VMM itself, which may be taken over by its guest, has none.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use mayfly_host::descriptors;

/// Our end of the socket on which a VMM sends its userfaultfd, then the userfaultfd.
///
/// A descriptor that waits in a socket is open: nothing has to be received for the VMM to be safe.
#[derive(Debug)]
pub(super) enum Keeper {
    Waiting(UnixStream),
    Holding { _userfaultfd: OwnedFd },
}

impl Keeper {
    /// A pair: ours, and the one that the VMM inherits.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self::Waiting(ours), theirs.into()))
    }

    /// Takes what the VMM has sent by now. Does not wait: a VMM sends it before it takes orders.
    ///
    /// # Errors
    /// When it has sent nothing.
    pub fn receive(&mut self) -> io::Result<()> {
        let Self::Waiting(socket) = self else { return Ok(()) };
        let mut received = descriptors::receive(socket, &mut [0], false)?;
        let userfaultfd = received.descriptors.pop().ok_or(io::ErrorKind::UnexpectedEof)?;
        *self = Self::Holding { _userfaultfd: userfaultfd };
        Ok(())
    }
}

impl From<UnixStream> for Keeper {
    fn from(socket: UnixStream) -> Self {
        Self::Waiting(socket)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read};
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    use super::*;

    fn send(socket: &OwnedFd, descriptor: &OwnedFd) {
        let rights = [descriptor.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&rights)];
        let bytes = [IoSlice::new(b"u")];
        sendmsg::<()>(socket.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None).unwrap();
    }

    /// Whether the writing end of a pipe is open somewhere.
    fn is_open(reader: &mut io::PipeReader) -> bool {
        nix::fcntl::fcntl(&*reader, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
            .unwrap();
        reader.read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    #[test]
    fn what_a_vmm_sends_stays_open_until_the_keeper_goes() {
        for received in [false, true] {
            let (mut keeper, theirs) = Keeper::pair().unwrap();
            let error = keeper.receive().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            let (mut reader, writer) = io::pipe().unwrap();
            send(&theirs, &writer.into());
            drop(theirs);
            if received {
                keeper.receive().unwrap();
                keeper.receive().unwrap();
            }
            assert!(is_open(&mut reader));
            drop(keeper);
            assert!(!is_open(&mut reader));
        }
    }

    #[test]
    fn a_vmm_that_sends_nothing_is_told_from_one_that_has() {
        let (mut keeper, theirs) = Keeper::pair().unwrap();
        drop(theirs);
        assert_eq!(keeper.receive().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
