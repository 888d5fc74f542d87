//! Raw bytes both ways with half-close both ways, on top of a stream that has no such thing to rely
//! on.
//!
//! Bytes travel in frames, an empty frame is the half-close. yamux has a half-close of its own, but
//! a stream dropped after it sends no reset (yamux 0.14, `on_drop_stream`), and the other end would
//! never hear that nobody reads.

use crate::frame::{FrameError, FrameReader};
use crate::request::MAX_CHUNK;
use futures::io::{AsyncRead, AsyncWrite};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// A byte stream with half-close over `S`. Dropping it drops `S`, which tells the other end that
/// all is over.
#[derive(Debug)]
pub struct Duplex<S> {
    reader: FrameReader<S>,
    incoming: Vec<u8>,
    taken: usize,
    read_closed: bool,
    outgoing: Vec<u8>,
    sent: usize,
    write_closed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Duplex<S> {
    /// Goes on with a stream whose request and reply frames were exchanged through `reader`.
    pub fn new(reader: FrameReader<S>) -> Self {
        Self {
            reader,
            incoming: Vec::new(),
            taken: 0,
            read_closed: false,
            outgoing: Vec::new(),
            sent: 0,
            write_closed: false,
        }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.outgoing.len() {
            match ready!(
                Pin::new(self.reader.get_mut()).poll_write(cx, &self.outgoing[self.sent..])
            )? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Duplex<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if out.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            let held = &self.incoming[self.taken..];
            if !held.is_empty() {
                let count = held.len().min(out.len());
                out[..count].copy_from_slice(&held[..count]);
                self.taken += count;
                return Poll::Ready(Ok(count));
            }
            if self.read_closed {
                return Poll::Ready(Ok(0));
            }
            // The other end never sends more: what it announces beyond that is not taken in.
            match ready!(self.reader.poll_next_within(cx, MAX_CHUNK)) {
                Ok(Some(bytes)) if bytes.is_empty() => self.read_closed = true,
                Ok(Some(bytes)) => {
                    self.incoming = bytes;
                    self.taken = 0;
                }
                // An end without the half-close frame: the other end is gone, not done.
                Ok(None) => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                Err(FrameError::Io(error)) => return Poll::Ready(Err(error)),
                Err(FrameError::TooLong { length, .. }) => {
                    let what = format!("piece of {length} bytes, the limit is {MAX_CHUNK}");
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, what)));
                }
                Err(error) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
                }
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Duplex<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.write_closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(self.poll_drain(cx))?;
        let count = bytes.len().min(MAX_CHUNK);
        self.outgoing.extend_from_slice(
            &u32::try_from(count).expect("no more than MAX_CHUNK").to_le_bytes(),
        );
        self.outgoing.extend_from_slice(&bytes[..count]);
        // The bytes are taken whether or not they can leave at once; a failure shows at the next
        // call.
        match self.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(count)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(self.reader.get_mut()).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.write_closed {
            self.outgoing.extend_from_slice(&[0; 4]);
            self.write_closed = true;
        }
        self.poll_flush(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use futures::io::{AsyncReadExt, AsyncWriteExt, Cursor};

    #[test]
    fn half_close_is_an_end_and_a_lost_stream_is_an_error() {
        let mut whole =
            Duplex::new(FrameReader::new(Cursor::new(b"\x02\0\0\0hi\0\0\0\0".to_vec())));
        let mut text = String::new();
        block_on(whole.read_to_string(&mut text)).unwrap();
        assert_eq!(text, "hi");
        let mut lost = Duplex::new(FrameReader::new(Cursor::new(b"\x02\0\0\0hi".to_vec())));
        assert_eq!(
            block_on(lost.read_to_string(&mut text)).unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
    }

    #[test]
    fn a_piece_that_is_too_long_is_refused_at_its_first_bytes() {
        let frame = |length: usize| {
            let mut wire = u32::try_from(length).unwrap().to_le_bytes().to_vec();
            wire.extend_from_slice(&vec![7; length]);
            wire
        };
        let mut longest = Duplex::new(FrameReader::new(Cursor::new(frame(MAX_CHUNK))));
        let mut read = vec![0; MAX_CHUNK];
        block_on(longest.read_exact(&mut read)).unwrap();
        assert_eq!(read, vec![7; MAX_CHUNK]);

        // One byte too long, nothing of it has come; and all of it, behind one that is not.
        let announced = u32::try_from(MAX_CHUNK + 1).unwrap().to_le_bytes().to_vec();
        for wire in [announced, [frame(1), frame(MAX_CHUNK + 1)].concat()] {
            let mut duplex = Duplex::new(FrameReader::new(Cursor::new(wire)));
            let error = block_on(duplex.read_to_end(&mut read)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains("65537 bytes"), "{error}");
        }
    }

    #[test]
    fn writes_are_cut_into_frames_and_closed_once() {
        let mut duplex = Duplex::new(FrameReader::new(Cursor::new(Vec::new())));
        block_on(async {
            duplex.write_all(&vec![7; MAX_CHUNK + 1]).await.unwrap();
            duplex.close().await.unwrap();
            duplex.close().await.unwrap();
            assert_eq!(duplex.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        });
        let wire = duplex.reader.get_mut().get_ref();
        assert_eq!(wire.len(), 4 + MAX_CHUNK + 4 + 1 + 4);
    }
}
