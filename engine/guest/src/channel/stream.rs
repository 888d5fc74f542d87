//! Byte streams to Unix sockets and TCP ports of the guest, and a host socket that leads to its
//! Docker daemon.

use super::client::RequestStream;
use super::driver::{Driver, Lease};
use super::{Channel, ChannelError};
use crate::docker;
use futures::future::{BoxFuture, FutureExt};
use mayfly_protocol::{ByteString, Duplex, MuxStream, Request};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinSet, coop};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};

/// Pause after a failed accept(2), which out of descriptors fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection to a Unix socket or a TCP port of the guest. `shutdown` closes one direction, as
/// docker attach needs it; dropping it closes both.
#[derive(Debug)]
pub struct GuestStream {
    stream: Compat<Duplex<MuxStream>>,
    _lease: Lease,
}

impl Channel {
    /// Connects to a Unix stream socket of the guest.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when nothing listens there.
    pub async fn connect_unix(
        &self,
        path: impl Into<ByteString>,
    ) -> Result<GuestStream, ChannelError> {
        GuestStream::connect(self.driver(), &Request::Connect { path: path.into() }).await
    }

    /// Connects to a TCP port of the guest's loopback interface: 127.0.0.1, or ::1 when nothing
    /// listens there.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when nothing listens on either.
    pub async fn connect_tcp(&self, port: u16) -> Result<GuestStream, ChannelError> {
        GuestStream::connect(self.driver(), &Request::ConnectTcp { port }).await
    }

    /// Leads docker clients that connect to `listener` to the Docker daemon at a Unix socket of the
    /// guest, as [`docker::relay`] does: with it, `DOCKER_HOST=unix://...` reaches the guest's
    /// dockerd. Serves until the future is dropped, which ends its connections, or the channel is
    /// over.
    ///
    /// A connection that the guest refuses is closed at once, which a client sees as an end before
    /// any answer.
    pub fn forward_docker(
        &self,
        listener: UnixListener,
        guest_path: impl Into<ByteString>,
    ) -> BoxFuture<'static, ChannelError> {
        forward(self.driver().clone(), listener, guest_path.into()).boxed()
    }
}

async fn forward(driver: Driver, listener: UnixListener, path: ByteString) -> ChannelError {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    let (driver, path) = (driver.clone(), path.clone());
                    connections.spawn(async move { carry(driver, client, path).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept on a forwarded socket");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(done) = connections.join_next() => match done {
                Ok(Err(error @ (ChannelError::Closed { .. } | ChannelError::Protocol { .. }))) => return error,
                Ok(Err(error)) => tracing::debug!(%error, %path, "forwarded connection"),
                Ok(Ok(())) => {}
                Err(error) => tracing::warn!(%error, "forwarded connection"),
            },
        }
    }
}

async fn carry(driver: Driver, client: UnixStream, path: ByteString) -> Result<(), ChannelError> {
    let connect = {
        let driver = driver.clone();
        move || {
            let (driver, path) = (driver.clone(), path.clone());
            async move { GuestStream::connect(&driver, &Request::Connect { path }).await }.boxed()
        }
    };
    docker::relay(client, Box::new(connect)).await.map_err(|error| driver.explain(error))
}

impl GuestStream {
    pub(super) async fn connect(driver: &Driver, request: &Request) -> Result<Self, ChannelError> {
        let mut stream = RequestStream::open(driver, request).await?;
        stream.reply::<()>().await?;
        Ok(Self { stream: Duplex::new(stream.reader).compat(), _lease: stream.lease })
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // As tokio's own streams do, or a task that copies from a guest which always has something
        // would have a thread to itself.
        let budget = ready!(coop::poll_proceed(cx));
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            budget.made_progress();
        }
        read
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let budget = ready!(coop::poll_proceed(cx));
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if written.is_ready() {
            budget.made_progress();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
