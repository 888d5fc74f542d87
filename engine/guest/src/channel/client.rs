//! The channel itself, and its requests with one answer.

use super::buffers::Buffers;
use super::driver::{Driver, Lease};
use super::{ChannelError, handshake};
use futures::io::{AsyncWrite, AsyncWriteExt};
use mayfly_protocol::{
    FrameError, FrameReader, GuestStats, Health, Hello, HelloAck, MuxStream, QuiesceReport, Reply,
    Request, encode_frame, encode_request,
};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::task::coop;

/// The open channel to one guest.
///
/// Every method is cancel-safe: a dropped future takes its request back (a command is killed), and
/// the channel goes on. Limits of time are the caller's. The channel stays open as long as it or
/// one of its streams lives.
#[derive(Debug)]
pub struct Channel {
    driver: Driver,
}

/// A stream on which a request was sent.
#[derive(Debug)]
pub(super) struct RequestStream {
    pub reader: FrameReader<MuxStream>,
    pub driver: Driver,
    pub lease: Lease,
}

impl Channel {
    /// Gives the parked guest behind `stream` its identity and opens the channel.
    ///
    /// One write, and usually one read; nothing more is sent until the first request. The
    /// acknowledgement may name steps of the identity that failed ([`HelloAck::errors`]): such a
    /// session is not unique and must not be handed out.
    ///
    /// # Errors
    /// [`ChannelError::Handshake`] when `hello` is not valid or the agent speaks another version,
    /// [`ChannelError::Refused`] when the guest did not take it, [`ChannelError::Closed`] when it
    /// ends, and [`ChannelError::Protocol`] when it sends something else.
    pub async fn open(
        mut stream: UnixStream,
        hello: &Hello,
    ) -> Result<(Self, HelloAck), ChannelError> {
        let ack = handshake::greet(&mut stream, hello).await?;
        Ok((Self { driver: Driver::start(stream) }, ack))
    }

    /// Bounds what the guest can make this end hold: from now on each request sets aside the window
    /// of its stream, 256 KiB, and fails with [`ChannelError::NoBuffers`] where there is no room for
    /// it. Only the first call counts.
    pub fn bound_by(&self, buffers: Arc<dyn Buffers>) {
        self.driver.bound_by(buffers);
    }

    /// Asks for the state of the guest.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub async fn health(&self) -> Result<Health, ChannelError> {
        self.call(&Request::Health).await
    }

    /// Asks what the guest has used and has left: processors, memory, disk, processes.
    ///
    /// # Errors
    /// [`ChannelError`]. The figures are the guest's own, and a hostile one says what it likes.
    pub async fn stats(&self) -> Result<GuestStats, ChannelError> {
        self.call(&Request::Stats).await
    }

    /// Waits in the guest until its services are ready: the Docker API answers.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when a service has ended or `timeout` passes, with the end of its
    /// log.
    pub async fn wait_ready(&self, timeout: Duration) -> Result<Health, ChannelError> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        self.call(&Request::WaitReady { timeout_ms }).await
    }

    /// Makes the guest small and still: writes back and trims its disk, drops its caches, zeroes
    /// its free memory.
    ///
    /// # Errors
    /// [`ChannelError`]; steps the guest cannot do are passed over and named in the report.
    pub async fn quiesce(&self) -> Result<QuiesceReport, ChannelError> {
        self.call(&Request::Quiesce).await
    }

    /// Sends the guest back to the parked phase, in which its snapshot is taken; running commands
    /// are killed. The stream that comes back can be opened again with a new identity. A guest
    /// needs about a millisecond after this (more under emulation) until it blocks in read(2); a
    /// snapshot taken before is whole, too, and only wakes up busier.
    ///
    /// # Errors
    /// [`ChannelError`]; the channel is lost then.
    pub async fn park(self) -> Result<UnixStream, ChannelError> {
        self.call::<()>(&Request::Park).await?;
        let (mut stream, unread) = self.driver.stop().await?;
        handshake::await_parked(&mut stream, &unread).await?;
        Ok(stream)
    }

    /// Has the guest write back its disks and turn itself off. Its VMM ends soon after.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub async fn power_off(self) -> Result<(), ChannelError> {
        self.call(&Request::PowerOff).await
    }

    pub(super) fn driver(&self) -> &Driver {
        &self.driver
    }

    pub(super) async fn send(&self, request: &Request) -> Result<RequestStream, ChannelError> {
        RequestStream::open(&self.driver, request).await
    }

    /// Sends a request and reads its one answer.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        request: &Request,
    ) -> Result<T, ChannelError> {
        self.send(request).await?.reply().await
    }
}

impl RequestStream {
    pub async fn open(driver: &Driver, request: &Request) -> Result<Self, ChannelError> {
        let frame = encode_request(request).map_err(|error| match error {
            // What the caller gave is too long; the guest has done nothing.
            FrameError::TooLong { limit, .. } => ChannelError::TooLong { what: "request", limit },
            other => other.into(),
        })?;
        let (stream, lease) = driver.open().await?;
        let mut this = Self { reader: FrameReader::new(stream), driver: driver.clone(), lease };
        write_all(this.reader.get_mut(), &frame)
            .await
            .map_err(|error| this.driver.explain(error))?;
        Ok(this)
    }

    /// Waits for the next frame. Cancel-safe.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<T, ChannelError> {
        // Streams of the channel take no part in tokio's budget of a task: without this, one that
        // reads from a guest which is never short of frames would have a thread to itself. Before
        // the frame is taken, so that whoever gives up here loses none.
        coop::consume_budget().await;
        match self.reader.next_as().await {
            Ok(Some(frame)) => Ok(frame),
            Ok(None) => Err(self
                .driver
                .explain(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into())),
            Err(error) => Err(self.driver.explain(error.into())),
        }
    }

    /// Waits for the next frame as the answer to a request.
    pub async fn reply<T: DeserializeOwned>(&mut self) -> Result<T, ChannelError> {
        Ok(self.next::<Reply<T>>().await??)
    }

    /// Sends a frame.
    pub async fn send<T: serde::Serialize>(&mut self, value: &T) -> Result<(), ChannelError> {
        // As in `next`: of a guest that takes everything at once.
        coop::consume_budget().await;
        let frame = encode_frame(value)?;
        write_all(self.reader.get_mut(), &frame).await.map_err(|error| self.driver.explain(error))
    }
}

pub(super) async fn write_all<W: AsyncWrite + Unpin>(
    writer: &mut W,
    bytes: &[u8],
) -> Result<(), ChannelError> {
    Ok(writer.write_all(bytes).await?)
}
