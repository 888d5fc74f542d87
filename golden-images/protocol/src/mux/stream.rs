//! A stream of a connection, and how far its reader is.

use futures::io::{AsyncRead, AsyncWrite};
use futures::stream::Stream as _;
use futures::task::AtomicWaker;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

/// A stream of a [`Mux`](super::Mux). Dropping it tells the other end that all is over.
pub struct MuxStream {
    /// Taken by [`Drop`] alone.
    inner: Option<yamux::Stream>,
    gauge: Option<Arc<Gauge>>,
}

/// How far the reader of a stream is. Shared by the stream and its connection.
#[derive(Default)]
pub(super) struct Gauge {
    /// Bytes of the stream that yamux was given, and that were read.
    passed: AtomicU64,
    read: AtomicU64,
    /// Whether the connection keeps bytes until all of these are read.
    keeps: AtomicBool,
    dropped: AtomicBool,
    /// Whether yamux is being given a body.
    under_way: AtomicBool,
    signal: Arc<Signal>,
}

/// What the streams of a connection have to say to it.
#[derive(Default)]
pub(super) struct Signal {
    raised: AtomicBool,
    waker: AtomicWaker,
    left: Mutex<Left>,
}

/// Streams that were dropped while a body of theirs was under way.
enum Left {
    Waiting(Vec<(yamux::Stream, Arc<Gauge>)>),
    /// The connection is over, and nothing comes any more.
    Over,
}

impl Default for Left {
    fn default() -> Self {
        Self::Waiting(Vec::new())
    }
}

impl Signal {
    /// Returns whether it was raised since the last time.
    pub fn take(&self) -> bool {
        self.raised.swap(false, Ordering::SeqCst)
    }

    /// Empties and drops the streams of which nothing is under way any more.
    pub fn drop_left(&self) {
        if let Left::Waiting(left) = &mut *self.left() {
            left.retain_mut(|(stream, gauge)| {
                empty(stream);
                gauge.is_under_way()
            });
        }
    }

    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        if let Left::Waiting(left) = &*self.left() { left.len() } else { 0 }
    }

    /// Drops them all, now and from now on.
    pub fn end(&self) {
        *self.left() = Left::Over;
    }

    /// Says that there is something to look at, which cannot wait.
    fn raise(&self) {
        self.raised.store(true, Ordering::SeqCst);
        self.waker.wake();
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes `waker` at the next word that cannot wait.
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }
}

impl Gauge {
    pub fn new(signal: Arc<Signal>) -> Self {
        Self { signal, ..Self::default() }
    }

    /// Takes note of `count` bytes that yamux is given.
    pub fn pass(&self, count: usize) {
        self.keeps.store(false, Ordering::SeqCst);
        self.passed.fetch_add(count as u64, Ordering::SeqCst);
    }

    /// Takes note that bytes are kept until all others are read; returns whether they are, and
    /// nobody will say so.
    pub fn keep(&self) -> bool {
        self.keeps.store(true, Ordering::SeqCst);
        self.is_read()
    }

    /// Returns whether all that yamux was given was read.
    pub fn is_read(&self) -> bool {
        self.read.load(Ordering::SeqCst) >= self.passed.load(Ordering::SeqCst)
    }

    /// Returns whether the stream is not used any more.
    pub fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::SeqCst)
    }

    /// Takes note of whether yamux is being given a body.
    pub fn set_under_way(&self, is: bool) {
        self.under_way.store(is, Ordering::SeqCst);
    }

    /// Returns whether it is.
    pub fn is_under_way(&self) -> bool {
        self.under_way.load(Ordering::SeqCst)
    }

    /// Takes note of `count` bytes that were read.
    pub(super) fn read(&self, count: usize) {
        self.read.fetch_add(count as u64, Ordering::SeqCst);
        if self.keeps.load(Ordering::SeqCst) && self.is_read() {
            self.signal.raise();
        }
    }

    pub(super) fn drop_stream(&self) {
        self.dropped.store(true, Ordering::SeqCst);
        self.signal.raised.store(true, Ordering::SeqCst);
    }
}

impl MuxStream {
    pub(super) fn new(inner: yamux::Stream, gauge: Option<Arc<Gauge>>) -> Self {
        Self { inner: Some(inner), gauge }
    }

    fn inner(&mut self) -> Pin<&mut yamux::Stream> {
        Pin::new(self.inner.as_mut().expect("taken when it is dropped"))
    }
}

/// Takes all that yamux keeps of a stream.
fn empty(stream: &mut yamux::Stream) {
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(Some(Ok(_))) = Pin::new(&mut *stream).poll_next(&mut cx) {}
}

impl fmt::Debug for MuxStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MuxStream").field(&self.inner).finish()
    }
}

impl AsyncRead for MuxStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.inner().poll_read(cx, out))?;
        if let Some(gauge) = &self.gauge {
            gauge.read(count);
        }
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.inner().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_close(cx)
    }
}

impl Drop for MuxStream {
    fn drop(&mut self) {
        let Some(gauge) = &self.gauge else { return };
        // From here on no frame is added to what yamux keeps of the stream until it hears of the
        // drop, which a connection whose other end does not read may never do.
        gauge.drop_stream();
        let Some(mut stream) = self.inner.take() else { return };
        empty(&mut stream);
        if !gauge.is_under_way() {
            return;
        }
        if let Left::Waiting(left) = &mut *gauge.signal.left() {
            left.push((stream, gauge.clone()));
        }
        // The body may have come just before, and nobody but us tells of a stream that is kept.
        gauge.signal.raise();
    }
}
