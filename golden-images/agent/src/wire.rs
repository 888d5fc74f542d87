//! Stream of one request: frames in, frames out, without ever waiting for one before the other.

use mayfly_protocol::{FrameError, FrameReader, MuxStream, Request, append_frame};
use nix::errno::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::io::AsyncWrite;

/// A yamux stream with frames.
pub struct Wire {
    reader: FrameReader<MuxStream>,
    out: Vec<u8>,
    sent: usize,
}

/// Event on a wire.
pub enum Event {
    /// A frame came; `None` at the end of the stream.
    Input(Option<Vec<u8>>),
    /// Everything sent has left.
    Drained,
}

impl Wire {
    /// Frames over `stream`.
    pub fn new(stream: MuxStream) -> Self {
        Self { reader: FrameReader::new(stream), out: Vec::new(), sent: 0 }
    }

    /// Queues a frame.
    pub fn send<T: Serialize>(&mut self, value: &T) -> Result<(), FrameError> {
        append_frame(&mut self.out, value)
    }

    /// Returns the number of bytes queued and not taken by the stream yet.
    pub fn backlog(&self) -> usize {
        self.out.len() - self.sent
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.out.len() {
            match ready!(Pin::new(self.reader.get_mut()).poll_write(cx, &self.out[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        self.out.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Waits until the stream has taken every queued frame.
    pub async fn drain(&mut self) -> Result<(), FrameError> {
        Ok(poll_fn(|cx| self.poll_drain(cx)).await?)
    }

    /// Queues a frame and waits until the stream has taken it.
    pub async fn send_now<T: Serialize>(&mut self, value: &T) -> Result<(), FrameError> {
        self.send(value)?;
        self.drain().await
    }

    /// Sends and waits for a frame at the same time. Dropping the future loses nothing.
    pub async fn event(&mut self) -> Result<Event, FrameError> {
        poll_fn(|cx| {
            if self.backlog() > 0 && self.poll_drain(cx)?.is_ready() {
                return Poll::Ready(Ok(Event::Drained));
            }
            self.reader.poll_next(cx).map_ok(Event::Input)
        })
        .await
    }

    /// Waits for the next frame decoded, `None` at the end of the stream.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        self.reader.next_as().await
    }

    /// Waits for the request, which is the first frame; `None` at the end of the stream.
    pub async fn next_request(&mut self) -> Result<Option<Request>, FrameError> {
        self.reader.next_request().await
    }

    /// Resolves when the other end has closed its direction or the stream is lost, before it has
    /// sent another frame; with one, never. Dropping the future loses nothing.
    pub async fn ended(&mut self) {
        let ended = poll_fn(|cx| self.reader.poll_end(cx)).await;
        if !ended {
            std::future::pending::<()>().await;
        }
    }

    /// Sends what is queued and ends our direction of the stream.
    pub async fn close(mut self) -> Result<(), FrameError> {
        self.drain().await?;
        Ok(poll_fn(|cx| Pin::new(self.reader.get_mut()).poll_close(cx)).await?)
    }

    /// Returns the stream for what comes after the frames; the queue must be empty.
    pub fn into_reader(self) -> FrameReader<MuxStream> {
        self.reader
    }
}

/// Converts an I/O result to `Reply<T>`.
pub fn reply<T>(what: impl std::fmt::Display, result: io::Result<T>) -> mayfly_protocol::Reply<T> {
    result.map_err(|error| mayfly_protocol::GuestError::io(what, &error))
}

/// Creates the `Reply` for a bad argument.
pub fn invalid(message: impl Into<String>) -> mayfly_protocol::GuestError {
    mayfly_protocol::GuestError { errno: Errno::EINVAL as i32, message: message.into() }
}
