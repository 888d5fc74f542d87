//! The byte stream below a connection: read and written in large pieces.

use super::coalesce::Coalescer;
use super::stream::{Gauge, Signal};
use futures::io::{AsyncRead, AsyncWrite};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

const READ_BUFFER: usize = 32 * 1024;

/// Bytes of earlier reads that are kept: a handshake magic may be cut by a read.
const HISTORY: usize = 32;

const WRITE_BUFFER: usize = 64 * 1024;

/// Reads, and frames, after which a client lets other tasks run: an other end that always has more
/// would keep a processor for itself.
const READS_A_POLL: u32 = 8;
const FRAMES_A_POLL: u64 = 512;

/// The transport, as yamux and its connection's owner share it.
pub(super) struct Shared<T>(Arc<Mutex<Buffered<T>>>);

pub(super) struct Buffered<T> {
    inner: T,
    incoming: Box<[u8]>,
    taken: usize,
    filled: usize,
    history: Vec<u8>,
    outgoing: Vec<u8>,
    sent: usize,
    refused: bool,
    guard: Option<Guard>,
}

/// What a client does against an other end that it does not trust.
struct Guard {
    coalescer: Coalescer,
    signal: Arc<Signal>,
    reads: u32,
    /// Number of the frame at which this poll ends.
    until: u64,
}

impl Guard {
    fn new(most_streams: usize) -> Self {
        let coalescer = Coalescer::new(most_streams);
        Self { coalescer, signal: Arc::default(), reads: 0, until: 0 }
    }

    fn is_spent(&self) -> bool {
        self.reads >= READS_A_POLL || self.coalescer.frames() >= self.until
    }

    /// Returns whether there is something for yamux beside what the transport has.
    fn look(&mut self) -> bool {
        self.signal.take() && self.coalescer.look()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.signal.end();
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Buffered<T> {
    fn new(inner: T, guard: Option<Guard>) -> Self {
        Self {
            inner,
            incoming: vec![0; READ_BUFFER].into_boxed_slice(),
            taken: 0,
            filled: 0,
            history: Vec::new(),
            outgoing: Vec::new(),
            sent: 0,
            refused: false,
            guard,
        }
    }

    /// Takes note that the connection is polled anew, which streams with something to say cause.
    pub fn begin_poll(&mut self, cx: &Context<'_>) {
        if let Some(guard) = &mut self.guard {
            // Not where it is read: yamux leaves that out while it cannot write.
            guard.signal.register(cx.waker());
            guard.reads = 0;
            guard.until = guard.coalescer.frames() + FRAMES_A_POLL;
        }
    }

    /// Takes note of a stream; returns how its reader tells how far it is.
    pub fn opened(&mut self, stream: u32) -> Option<Arc<Gauge>> {
        let guard = self.guard.as_mut()?;
        let gauge = Arc::new(Gauge::new(guard.signal.clone()));
        guard.coalescer.opened(stream, gauge.clone());
        Some(gauge)
    }

    /// Drops streams that had to wait for what yamux was being given.
    pub fn drop_left(&self) {
        if let Some(guard) = &self.guard {
            guard.signal.drop_left();
        }
    }

    /// Returns whether a write was refused since the last time.
    pub fn take_refused(&mut self) -> bool {
        std::mem::take(&mut self.refused)
    }

    /// Returns whether every byte that was written went out.
    pub fn is_drained(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// Reads more from the transport; 0 at its end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.retire();
        self.filled = ready!(Pin::new(&mut self.inner).poll_read(cx, &mut self.incoming))?;
        Poll::Ready(Ok(self.filled))
    }

    /// Moves bytes of the last read towards yamux; returns how many are in `out`.
    fn give(&mut self, out: &mut [u8]) -> usize {
        let held = &self.incoming[self.taken..self.filled];
        let Some(guard) = &mut self.guard else {
            let count = held.len().min(out.len());
            out[..count].copy_from_slice(&held[..count]);
            self.taken += count;
            return count;
        };
        let mut left = held;
        let count = guard.coalescer.give(&mut left, out);
        self.taken = self.filled - left.len();
        count
    }

    /// Whether yamux has to wait for its next turn.
    fn is_spent(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::is_spent)
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

    pub fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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

impl<T: AsyncRead + AsyncWrite + Unpin> Shared<T> {
    /// With `most_streams` the other end is not trusted; so many streams yamux has at most.
    pub fn new(inner: T, most_streams: Option<usize>) -> Self {
        Self(Arc::new(Mutex::new(Buffered::new(inner, most_streams.map(Guard::new)))))
    }
}

impl<T> Shared<T> {
    pub fn lock(&self) -> MutexGuard<'_, Buffered<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the transport with the last bytes read from it; `None` when yamux still has it.
    pub fn into_inner(self) -> Option<(T, Vec<u8>)> {
        let buffered =
            Arc::into_inner(self.0)?.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut last = buffered.history;
        last.extend_from_slice(&buffered.incoming[..buffered.filled]);
        Some((buffered.inner, last))
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
        loop {
            if this.is_spent() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let count = this.give(out);
            if count > 0 || out.is_empty() {
                return Poll::Ready(Ok(count));
            }
            if this.guard.as_mut().is_some_and(Guard::look) {
                continue;
            }
            let filled = ready!(this.poll_fill(cx))?;
            let Some(guard) = &mut this.guard else {
                if filled == 0 {
                    return Poll::Ready(Ok(0));
                }
                continue;
            };
            guard.reads += 1;
            if filled == 0 && !guard.coalescer.end() {
                return Poll::Ready(Ok(0));
            }
        }
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

#[cfg(test)]
impl<T> Buffered<T> {
    pub fn inner_mut(&mut self) -> &mut T {
        &mut self.inner
    }

    pub fn signal(&self) -> std::sync::Weak<Signal> {
        self.guard.as_ref().map(|guard| Arc::downgrade(&guard.signal)).unwrap_or_default()
    }

    pub fn kept(&self) -> (usize, usize) {
        self.guard.as_ref().map_or((0, 0), |guard| guard.coalescer.kept())
    }

    pub fn left(&self) -> usize {
        self.guard.as_ref().map_or(0, |guard| guard.signal.waiting())
    }
}
