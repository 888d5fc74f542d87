//! Socket between the engine and the proxy: one message each way at a time, with at most one
//! descriptor beside it (unix(7), `SOCK_SEQPACKET` and `SCM_RIGHTS`).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use mayfly_host::descriptors;
use mayfly_protocol::{FrameError, append_frame, decode_frame, split_frame};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, sendmsg, shutdown,
    socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::messages::Ready;

/// Longest message in bytes. The longest that is sent is a DNS message, see
/// [`MAX_DNS_MESSAGE`](mayfly_protocol::MAX_DNS_MESSAGE).
pub(super) const MAX_MESSAGE: usize = 16 << 10;

/// One end of the socket. Usable from several tasks at a time.
#[derive(Debug)]
pub struct Link(AsyncFd<OwnedFd>);

impl Link {
    /// Makes a connected pair: one end for this process, one to give away.
    ///
    /// # Errors
    /// When there are too many descriptors.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )?;
        Ok((Self::new(ours)?, theirs))
    }

    /// Takes an end that was given away.
    ///
    /// # Errors
    /// When it cannot be watched: it is no socket, or there is no tokio runtime with I/O.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL)?);
        fcntl(&socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // SAFETY: an OwnedFd is open, and the same descriptor, for all its life.
        let watched = unsafe { AsyncFd::register(socket) };
        Ok(Self(watched.map_err(|error| error.into_parts().1)?))
    }

    /// Sends a message, with a descriptor or without. Cancel-safe: it is sent whole or not at all.
    ///
    /// # Errors
    /// When the other end is gone, or the message is longer than [`MAX_MESSAGE`].
    pub(super) async fn send(
        &self,
        message: &impl Serialize,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        append_frame(&mut bytes, message).map_err(io::Error::other)?;
        if bytes.len() > MAX_MESSAGE {
            return Err(io::Error::other(format!("a message of {} bytes", bytes.len())));
        }
        let raw: Vec<RawFd> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights };
        let send = |socket: &OwnedFd| {
            let parts = [IoSlice::new(&bytes)];
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            Ok(sendmsg::<()>(socket.as_raw_fd(), &parts, control, flags, None)?)
        };
        self.0.async_io(Interest::WRITABLE, send).await.map(drop)
    }

    /// Receives the next message; `None` when the other end sends no more. Cancel-safe.
    ///
    /// # Errors
    /// When what came is no message of this kind ([`io::ErrorKind::InvalidData`]), or the socket
    /// cannot be read.
    pub(super) async fn receive<T: DeserializeOwned>(
        &self,
    ) -> io::Result<Option<(T, Option<OwnedFd>)>> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let receive = |socket: &OwnedFd| receive(socket, &mut bytes);
        let (length, descriptor) = self.0.async_io(Interest::READABLE, receive).await?;
        if length == 0 {
            return Ok(None);
        }
        let message = read(&bytes[..length]).map_err(|error| broken(error.to_string()))?;
        Ok(Some((message, descriptor)))
    }

    /// Waits until the proxy serves what the link is for.
    ///
    /// # Errors
    /// When it has ended, or sends something else.
    pub async fn ready(&self) -> io::Result<()> {
        match self.receive::<Ready>().await? {
            Some(_) => Ok(()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Tells the other end that nothing more comes. What it sends can still be received.
    pub(super) fn finish(&self) {
        // The other end may be gone.
        let _ = shutdown(self.0.get_ref().as_raw_fd(), Shutdown::Write);
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// The message in a datagram.
fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    match split_frame(bytes)? {
        Some(range) if range.end == bytes.len() => decode_frame(&bytes[range]),
        _ => Err(FrameError::Truncated { held: bytes.len() }),
    }
}

/// Receives a datagram, and the last of the descriptors that came with it.
fn receive(socket: &OwnedFd, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut received = descriptors::receive(socket, bytes, false)?;
    if received.truncated {
        return Err(broken(format!("a message of more than {MAX_MESSAGE} bytes")));
    }
    Ok((received.length, received.descriptors.pop()))
}

/// An error of a peer that does not keep to the protocol.
pub(super) fn broken(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, Write};

    use proptest::prelude::*;

    use super::super::messages::{FromEngine, FromProxy};
    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_either_end_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let header = u32::try_from(bytes.len()).unwrap().to_le_bytes();
            for bytes in [&bytes[..], &[&header[..], &bytes].concat()] {
                let _ = read::<FromProxy>(bytes);
                let _ = read::<FromEngine>(bytes);
            }
        }
    }

    #[tokio::test]
    async fn messages_come_whole_in_order_with_their_descriptors_until_the_end() {
        let (ours, theirs) = Link::pair().unwrap();
        let theirs = Link::new(theirs).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"text").unwrap();
        ours.send(&"first", None).await.unwrap();
        ours.send(&"second", Some(file.as_fd())).await.unwrap();
        ours.finish();
        let (text, none) = theirs.receive::<String>().await.unwrap().unwrap();
        assert!(text == "first" && none.is_none());
        let (text, file) = theirs.receive::<String>().await.unwrap().unwrap();
        let mut file = File::from(file.unwrap());
        file.rewind().unwrap();
        let content = io::read_to_string(file).unwrap();
        assert_eq!((text.as_str(), content.as_str()), ("second", "text"));
        assert!(theirs.receive::<String>().await.unwrap().is_none());
        theirs.send(&7_u32, None).await.unwrap();
        assert_eq!(ours.receive::<u32>().await.unwrap().unwrap().0, 7);
        drop(ours);
        theirs.send(&8_u32, None).await.unwrap_err();
    }

    #[tokio::test]
    async fn what_is_no_message_or_too_long_is_an_error_and_the_next_one_is_read() {
        let (ours, theirs) = Link::pair().unwrap();
        let theirs = Link::new(theirs).unwrap();
        let send = |bytes: &[u8]| nix::unistd::write(&ours, bytes).unwrap();
        ours.send(&vec![0_u8; MAX_MESSAGE], None).await.unwrap_err();
        for bytes in [&[1][..], &[0xff; 9], &[1, 0, 0, 0, 5, 6], &[0; MAX_MESSAGE + 1]] {
            send(bytes);
            theirs.receive::<u32>().await.unwrap_err();
        }
        ours.send(&5_u32, None).await.unwrap();
        assert_eq!(theirs.receive::<u32>().await.unwrap().unwrap().0, 5);
    }
}
