//! yamux over one byte stream, with few and large system calls.

use futures::io::{AsyncRead, AsyncWrite};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

pub use yamux::{ConnectionError as MuxError, Mode, Stream as MuxStream};

/// Streams the engine may have open at one time.
pub const MAX_STREAMS: usize = 256;

/// yamux counts a stream until its drop was processed, so its own limit, whose breach ends the
/// connection, is wider.
const YAMUX_STREAMS: usize = 2 * MAX_STREAMS;

/// What the other end may send unasked on one stream, in bytes. With [`RECEIVE_WINDOW`] yamux has
/// nothing left to make it larger.
pub const STREAM_WINDOW: usize = yamux::DEFAULT_CREDIT as usize;

/// All receive windows together, in bytes: what a hostile other end can make this end buffer.
const RECEIVE_WINDOW: usize = YAMUX_STREAMS * STREAM_WINDOW;

const READ_BUFFER: usize = 32 * 1024;

/// Bytes of earlier reads that are kept: a handshake magic may be cut by a read.
const HISTORY: usize = 32;

const WRITE_BUFFER: usize = 64 * 1024;

/// A yamux connection that writes to its transport only when it has nothing else to do, in one
/// piece.
///
/// yamux itself writes each header and body on its own and flushes after each; a write to a virtio
/// port is a trap into the VMM.
pub struct Mux<T> {
    connection: yamux::Connection<Shared<T>>,
    transport: Shared<T>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Mux<T> {
    /// Speaks yamux over `transport`. Nothing is sent before the first poll.
    pub fn new(transport: T, mode: Mode) -> Self {
        let transport = Shared(Arc::new(Mutex::new(Buffered::new(transport))));
        let mut config = yamux::Config::default();
        // The limits check each other, so both are opened before either is set.
        config.set_max_connection_receive_window(None);
        config.set_max_num_streams(YAMUX_STREAMS);
        config.set_max_connection_receive_window(Some(RECEIVE_WINDOW));
        Self { connection: yamux::Connection::new(transport.clone(), config, mode), transport }
    }

    /// Drives the connection; `Ready` with a stream the other end opened, `None` at the end, or an
    /// error. Nothing moves on any stream unless this is polled.
    pub fn poll_inbound(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<MuxStream, MuxError>>> {
        loop {
            if let Poll::Ready(event) = self.connection.poll_next_inbound(cx) {
                return Poll::Ready(event);
            }
            let mut transport = self.transport.lock();
            let drained = transport.poll_drain(cx);
            // yamux met a full buffer and sleeps on a wake-up that the drain has used up.
            let again = std::mem::take(&mut transport.refused) && drained.is_ready();
            drop(transport);
            match drained {
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(MuxError::Io(error)))),
                _ if again => {}
                _ => return Poll::Pending,
            }
        }
    }

    /// Waits for the next stream the other end opens; see [`Mux::poll_inbound`].
    pub async fn next_inbound(&mut self) -> Option<Result<MuxStream, MuxError>> {
        poll_fn(|cx| self.poll_inbound(cx)).await
    }

    /// Opens a stream. The other end hears of it with the stream's first bytes.
    pub fn poll_outbound(&mut self, cx: &mut Context<'_>) -> Poll<Result<MuxStream, MuxError>> {
        self.connection.poll_new_outbound(cx)
    }

    /// Returns whether every byte yamux has produced went to the transport.
    pub fn is_drained(&self) -> bool {
        self.transport.lock().outgoing.is_empty()
    }

    /// Ends yamux without a word to the other end and gives the transport back, with the last bytes
    /// read from it, at least all of the last read, whether yamux has used them or not: a handshake
    /// message that met an open yamux is in there.
    pub fn into_transport(self) -> Option<(T, Vec<u8>)> {
        drop(self.connection);
        let buffered =
            Arc::into_inner(self.transport.0)?.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut last = buffered.history;
        last.extend_from_slice(&buffered.incoming[..buffered.filled]);
        Some((buffered.inner, last))
    }
}

impl<T> fmt::Debug for Mux<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mux").finish_non_exhaustive()
    }
}

struct Buffered<T> {
    inner: T,
    incoming: Box<[u8]>,
    taken: usize,
    filled: usize,
    history: Vec<u8>,
    outgoing: Vec<u8>,
    sent: usize,
    refused: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Buffered<T> {
    fn new(inner: T) -> Self {
        Self {
            inner,
            incoming: vec![0; READ_BUFFER].into_boxed_slice(),
            taken: 0,
            filled: 0,
            history: Vec::new(),
            outgoing: Vec::new(),
            sent: 0,
            refused: false,
        }
    }

    /// Makes room for the next read.
    fn retire(&mut self) {
        self.history
            .extend_from_slice(&self.incoming[self.filled.saturating_sub(HISTORY)..self.filled]);
        let excess = self.history.len().saturating_sub(HISTORY);
        self.history.drain(..excess);
        self.taken = 0;
        self.filled = 0;
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.outgoing.len() {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &self.outgoing[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

struct Shared<T>(Arc<Mutex<Buffered<T>>>);

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Buffered<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Shared<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self.lock();
        if this.taken == this.filled {
            this.retire();
            this.filled = ready!(Pin::new(&mut this.inner).poll_read(cx, &mut this.incoming))?;
        }
        let held = &this.incoming[this.taken..this.filled];
        let count = held.len().min(out.len());
        out[..count].copy_from_slice(&held[..count]);
        this.taken += count;
        Poll::Ready(Ok(count))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Shared<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut this = self.lock();
        if this.outgoing.len() >= WRITE_BUFFER {
            match this.poll_drain(cx) {
                Poll::Ready(done) => done?,
                Poll::Pending => {
                    this.refused = true;
                    return Poll::Pending;
                }
            }
        }
        this.outgoing.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // `Mux::poll_inbound` does it, once.
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().poll_drain(cx)
    }
}
