//! Limits of egress, and the counts that are held against them.

use std::io;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Requests of one session, names included. One that is faster waits: each gets its line in the
/// log, and the log must not be flooded.
pub(super) const PER_SECOND: NonZeroU32 = NonZeroU32::new(100).unwrap();
/// Requests that may come at once after a pause.
pub(super) const BURST: NonZeroU32 = NonZeroU32::new(1000).unwrap();

/// Limits on the egress of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most connections of the guest to its proxy at a time, 1 to [`Limits::MAX_CONNECTIONS`].
    /// Further ones are answered with 429.
    pub max_connections: usize,
    /// Most connections to the outside in all. Every plain HTTP request counts as one.
    pub total_connections: u64,
    /// Most bytes to and from the outside in all, both directions together.
    pub max_bytes: u64,
}

impl Limits {
    /// The channel to a guest has room for twice as many streams, so that commands always find one.
    pub const MAX_CONNECTIONS: usize = 128;
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_connections: 64, total_connections: 100_000, max_bytes: 16 << 30 }
    }
}

/// What a session has used of its limits, which may change.
#[derive(Debug)]
pub(super) struct Budget {
    max_connections: AtomicUsize,
    total_connections: AtomicU64,
    max_bytes: AtomicU64,
    clients: Arc<AtomicUsize>,
    connections: AtomicU64,
    bytes: AtomicU64,
}

/// Place of one client of the guest's proxy port; free again when it is dropped.
#[derive(Debug)]
pub(super) struct ClientPlace(Arc<AtomicUsize>);

impl Drop for ClientPlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Budget {
    pub fn new(limits: Limits) -> Self {
        let budget = Self {
            max_connections: AtomicUsize::default(),
            total_connections: AtomicU64::default(),
            max_bytes: AtomicU64::default(),
            clients: Arc::default(),
            connections: AtomicU64::default(),
            bytes: AtomicU64::default(),
        };
        budget.set_limits(limits);
        budget
    }

    /// Sets other limits. What was used counts for them, and who has a place keeps it.
    pub fn set_limits(&self, limits: Limits) {
        let places = limits.max_connections.clamp(1, Limits::MAX_CONNECTIONS);
        self.max_connections.store(places, Ordering::Relaxed);
        self.total_connections.store(limits.total_connections, Ordering::Relaxed);
        self.max_bytes.store(limits.max_bytes, Ordering::Relaxed);
    }

    pub fn limits(&self) -> Limits {
        Limits {
            max_connections: self.max_connections.load(Ordering::Relaxed),
            total_connections: self.total_connections.load(Ordering::Relaxed),
            max_bytes: self.max_bytes.load(Ordering::Relaxed),
        }
    }

    /// Takes a place for one client, if there is one.
    pub fn place(&self) -> Option<ClientPlace> {
        let most = self.max_connections.load(Ordering::Relaxed);
        let taken = self.clients.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            (held < most).then_some(held + 1)
        });
        taken.ok().map(|_| ClientPlace(Arc::clone(&self.clients)))
    }

    /// Accounts for a connection to the outside, if it may be made.
    pub fn connection(&self) -> bool {
        take(&self.connections, self.total_connections.load(Ordering::Relaxed), 1) == 1
    }

    /// Accounts for bytes that a connection has transferred.
    pub fn spend(&self, bytes: u64) {
        take(&self.bytes, u64::MAX, bytes);
    }

    /// Returns the numbers of bytes and connections that were used.
    pub fn used(&self) -> Used {
        Used {
            bytes: self.bytes.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
        }
    }

    /// Returns the number of bytes that may still be transferred.
    pub fn bytes_left(&self) -> u64 {
        let most = self.max_bytes.load(Ordering::Relaxed);
        most.saturating_sub(self.bytes.load(Ordering::Relaxed))
    }
}

/// Adds up to `wanted` to what is `used`, which stays below `most`; returns how much it was.
fn take(used: &AtomicU64, most: u64, wanted: u64) -> u64 {
    let granted = |before: u64| most.saturating_sub(before).min(wanted);
    let before = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| {
        Some(before + granted(before))
    });
    granted(before.unwrap_or(u64::MAX))
}

/// What a session has used of its egress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Bytes to and from the outside, of connections that have ended.
    pub bytes: u64,
    /// Connections to the outside.
    pub connections: u64,
}

/// Account of one session's egress, which outlives its policies: what was used under one counts for
/// the next. Cheap to clone; all clones are the same account.
#[derive(Clone, Debug)]
pub struct EgressAccount {
    pub(super) budget: Arc<Budget>,
    /// Whether there was egress before, which the guest may still be about to end.
    pub(super) begun: Arc<AtomicBool>,
}

impl Default for EgressAccount {
    fn default() -> Self {
        Self { budget: Arc::new(Budget::new(Limits::default())), begun: Arc::default() }
    }
}

impl EgressAccount {
    /// Returns what was used.
    pub fn used(&self) -> Used {
        self.budget.used()
    }
}

/// Bytes of one connection to the outside.
#[derive(Debug, Default)]
pub(super) struct Meter {
    up: AtomicU64,
    down: AtomicU64,
    exhausted: AtomicBool,
}

impl Meter {
    /// Returns the numbers of bytes sent and received.
    pub fn bytes(&self) -> (u64, u64) {
        (self.up.load(Ordering::Relaxed), self.down.load(Ordering::Relaxed))
    }

    /// Returns whether the session's bytes were used up on it.
    pub fn is_exhausted(&self) -> bool {
        self.exhausted.load(Ordering::Relaxed)
    }
}

/// A connection to the outside that takes its bytes from a budget, and fails when there are none.
#[derive(Debug)]
pub(super) struct Metered<S> {
    inner: S,
    budget: Arc<Budget>,
    meter: Arc<Meter>,
}

impl<S> Metered<S> {
    pub fn new(inner: S, budget: Arc<Budget>) -> Self {
        Self { inner, budget, meter: Arc::default() }
    }

    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Bytes for one transfer of at most `wanted`.
    fn reserve(&self, wanted: usize) -> io::Result<usize> {
        let most = self.budget.max_bytes.load(Ordering::Relaxed);
        match take(&self.budget.bytes, most, wanted as u64) {
            0 if wanted > 0 => {
                self.meter.exhausted.store(true, Ordering::Relaxed);
                Err(io::Error::new(
                    io::ErrorKind::QuotaExceeded,
                    "the session has used up its egress bytes",
                ))
            }
            granted => Ok(usize::try_from(granted).expect("never more than `wanted`")),
        }
    }

    fn settle(&self, granted: usize, used: usize, direction: &AtomicU64) {
        self.budget.bytes.fetch_sub((granted - used) as u64, Ordering::Relaxed);
        direction.fetch_add(used as u64, Ordering::Relaxed);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let granted = self.reserve(buffer.remaining())?;
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(granted));
        let read = Pin::new(&mut self.inner).poll_read(cx, &mut part);
        let used = part.filled().len();
        self.settle(granted, used, &self.meter.down);
        buffer.advance(used);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let granted = self.reserve(bytes.len())?;
        let written = Pin::new(&mut self.inner).poll_write(cx, &bytes[..granted]);
        let used = if let Poll::Ready(Ok(used)) = &written { *used } else { 0 };
        self.settle(granted, used, &self.meter.up);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// When something was last read from or written to a [`Watched`] stream.
#[derive(Clone, Debug)]
pub(super) struct Activity {
    began: Instant,
    /// Milliseconds after `began`.
    last: Arc<AtomicU64>,
}

impl Activity {
    fn new() -> Self {
        Self { began: Instant::now(), last: Arc::default() }
    }

    fn touch(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Resolves when nothing has happened for `limit`.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let end = self.began + Duration::from_millis(self.last.load(Ordering::Relaxed)) + limit;
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end.into()).await;
        }
    }
}

/// A stream that notes when it is used.
#[derive(Debug)]
pub(super) struct Watched<S> {
    inner: S,
    activity: Activity,
}

impl<S> Watched<S> {
    pub fn new(inner: S) -> (Self, Activity) {
        let activity = Activity::new();
        (Self { inner, activity: activity.clone() }, activity)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        self.activity.touch();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, bytes))?;
        self.activity.touch();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn no_byte_more_than_the_budget_in_either_direction() {
        let limits = Limits { max_bytes: 10_000, ..Limits::default() };
        let budget = Arc::new(Budget::new(limits));
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let mut ours = Metered::new(ours, Arc::clone(&budget));
        theirs.write_all(&[1; 6000]).await.unwrap();
        ours.read_exact(&mut [0; 6000]).await.unwrap();
        let error = ours.write_all(&[2; 6000]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
        assert_eq!(ours.meter().bytes(), (4000, 6000));
        assert!(ours.meter().is_exhausted() && budget.bytes_left() == 0);
        assert_eq!(ours.read(&mut [0; 1]).await.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        drop(ours);
        let mut heard = Vec::new();
        theirs.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard.len(), 4000);
    }

    #[tokio::test]
    async fn a_transfer_that_waits_holds_no_bytes() {
        let budget = Arc::new(Budget::new(Limits { max_bytes: 100, ..Limits::default() }));
        let (ours, _theirs) = tokio::io::duplex(10);
        let mut ours = Metered::new(ours, Arc::clone(&budget));
        assert!(futures::FutureExt::now_or_never(ours.read(&mut [0; 1000])).is_none());
        assert_eq!(budget.bytes_left(), 100);
    }

    #[test]
    fn places_and_connections_run_out() {
        let budget = Budget::new(Limits { max_connections: 1, total_connections: 2, max_bytes: 0 });
        let place = budget.place();
        assert!(place.is_some() && budget.place().is_none());
        drop(place);
        assert!(budget.place().is_some());
        assert!(budget.connection() && budget.connection() && !budget.connection());
        let wide = Budget::new(Limits { max_connections: usize::MAX, ..Limits::default() });
        assert_eq!(wide.limits().max_connections, Limits::MAX_CONNECTIONS);
    }

    #[test]
    fn what_was_used_counts_for_other_limits() {
        let budget = Budget::new(Limits { max_connections: 2, total_connections: 1, max_bytes: 9 });
        let places = [budget.place(), budget.place()];
        assert!(places.iter().all(Option::is_some) && budget.connection());
        budget.spend(7);
        budget.set_limits(Limits { max_connections: 1, total_connections: 2, max_bytes: 5 });
        assert_eq!((budget.bytes_left(), budget.used()), (0, Used { bytes: 7, connections: 1 }));
        assert!(budget.connection() && !budget.connection());
        let [first, second] = places;
        drop(first);
        assert!(budget.place().is_none(), "one is still there");
        drop(second);
        assert!(budget.place().is_some());
        budget.set_limits(Limits { max_bytes: 20, ..Limits::default() });
        assert_eq!(budget.bytes_left(), 13);
        budget.spend(u64::MAX);
        assert_eq!((budget.bytes_left(), budget.used().bytes), (0, u64::MAX));
    }
}
