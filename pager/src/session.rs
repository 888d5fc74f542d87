//! A session of the pager: what its own thread, the fill threads and the control thread share.
//!
//! Only its own thread makes calls that wait for its VMM, see [`crate::faults`].

use std::{
    ops::Range,
    os::fd::OwnedFd,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Instant,
};

use parking_lot::{Mutex, RwLock};

use crate::{
    guest_memory::GuestMemory,
    image::{Image, Waits},
    mailbox::{Mailbox, Order, Supply},
    protocol::{AttachRequest, FailureKind, Mode},
    recorder::Recorder,
    stats::{Counters, SessionStats},
    turns::Asked,
    watchdog::Beat,
};

/// Most faults of a session that wait. There is one for each thread of a VMM, or more when signals
/// interrupt them.
pub(crate) const MAX_WAITING: u32 = 1 << 16;

/// A fault that waits for a chunk.
pub(crate) struct Waiter {
    pub session: Arc<Session>,
    /// Byte of the image that was touched, page-aligned.
    pub offset: u64,
    /// Time at which the fault was read.
    pub since: Instant,
}

impl Waits for Waiter {
    fn copies(&self) -> bool {
        self.session.copies()
    }

    fn is_over(&self) -> bool {
        self.session.is_over()
    }
}

/// Tells the session's owner about its failure.
pub(crate) type FailureSink = Box<dyn Fn(FailureKind, &str) + Send + Sync>;

/// The guest memory of one VMM, and what becomes of it.
pub(crate) struct Session {
    pub id: u64,
    pub name: String,
    pub image: Arc<Image<Waiter>>,
    pub counters: Counters,
    pub host: Arc<Counters>,
    pub mailbox: Mailbox,
    pub asked: Asked,
    pub beat: Beat,
    mode: Mode,
    recorder: Option<Mutex<Recorder>>,
    /// What the VMM has handed over. The session's thread holds it too, and is the last to let go:
    /// nobody else may keep a copy.
    memory: RwLock<Option<Arc<GuestMemory>>>,
    /// Faults that wait for a chunk.
    waiting: AtomicU32,
    failed: AtomicBool,
    draining: AtomicBool,
    failure: OnceLock<String>,
    sink: FailureSink,
}

impl Session {
    pub fn new(
        id: u64,
        request: &AttachRequest,
        image: Arc<Image<Waiter>>,
        host: Arc<Counters>,
        sink: FailureSink,
    ) -> nix::Result<Self> {
        let recorder = request.record.then(|| Mutex::new(Recorder::new(image.chunks())));
        Ok(Self {
            id,
            name: request.session.clone(),
            image,
            counters: Counters::new(),
            host,
            mailbox: Mailbox::new()?,
            asked: Asked::default(),
            beat: Beat::default(),
            mode: request.mode,
            recorder,
            memory: RwLock::new(None),
            waiting: AtomicU32::new(0),
            failed: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            failure: OnceLock::new(),
            sink,
        })
    }

    /// Returns whether chunks are copied into the VMM, and therefore pinned meanwhile.
    pub fn copies(&self) -> bool {
        self.mode == Mode::Copy
    }

    pub fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Returns whether no chunk is of use to it any more: it has failed, or its owner has let go of
    /// it. Threads of its VMM that live on stay blocked, or are let go on by zeros, see
    /// [`crate::answers::Answers::drain`].
    pub fn is_over(&self) -> bool {
        self.is_failed() || self.mailbox.order() != Order::Serve
    }

    /// Returns whether its VMM has ended and what still waits for a page of it gets zeros, see
    /// [`crate::answers::Answers::drain`].
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Stops serving the session and tells its owner why. Only the first call counts.
    pub fn fail(&self, kind: FailureKind, reason: &str) {
        if self.failed.swap(true, Ordering::Relaxed) {
            return;
        }
        let _ = self.failure.set(reason.to_owned());
        if kind == FailureKind::VmmGone {
            // That is how each session ends; whether it was to end its owner knows.
            tracing::debug!(session = %self.name, reason, "the VMM is gone");
        } else {
            tracing::warn!(session = %self.name, ?kind, reason, "session failed");
        }
        (self.sink)(kind, reason);
    }

    /// Takes note of the guest memory, for other threads to wake who waits for it.
    pub fn connect(&self, memory: &Arc<GuestMemory>) {
        *self.memory.write() = Some(Arc::clone(memory));
    }

    /// Takes [`Self::connect`] back: from now on the caller's is the only one.
    pub fn disconnect(&self) {
        *self.memory.write() = None;
    }

    fn is_connected(&self) -> bool {
        self.memory.read().is_some()
    }

    /// Notes the first touch of a chunk, when recording.
    pub fn record(&self, chunk: u32) {
        if let Some(recorder) = &self.recorder {
            recorder.lock().touch(chunk);
        }
    }

    pub fn is_recording(&self) -> bool {
        self.recorder.is_some()
    }

    /// Returns the recorded chunks from the `from`th on, at most `limit`. `None`: not recording.
    pub fn recording(&self, from: usize, limit: usize) -> Option<(Vec<u32>, usize)> {
        Some(self.recorder.as_ref()?.lock().page(from, limit))
    }

    /// Counts a fault that is about to wait for a chunk. `false`: there are too many.
    pub fn begin_wait(&self) -> bool {
        self.waiting.fetch_add(1, Ordering::Relaxed) < MAX_WAITING
    }

    /// Takes [`Self::begin_wait`] back.
    pub fn end_wait(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// Lets a fault go on whose chunk has become resident, and is pinned when it is to be copied.
    /// Does not wait for the VMM: a copy is left to the session's thread.
    pub fn supply(&self, chunk: u32, since: Instant) {
        if !self.copies() {
            self.end_wait();
            self.wake(&self.image.range(chunk), since);
        } else if !self.mailbox.post(Supply { chunk, since }) {
            self.end_wait();
            self.image.unpin(chunk);
        }
    }

    /// Wakes the threads that wait for bytes `range` of the image, as the answer to a fault that
    /// was read at `since`.
    pub fn wake(&self, range: &Range<u64>, since: Instant) {
        if self.is_failed() && !self.is_draining() {
            return;
        }
        let memory = self.memory.read();
        let Some(memory) = memory.as_ref() else { return };
        // Taken before the wake: the woken thread may well get this CPU.
        let waited = since.elapsed();
        self.counters.waited(waited);
        self.host.waited(waited);
        if let Err(error) = memory.wake(range) {
            self.fail(FailureKind::VmmGone, &format!("cannot wake the VMM: {error}"));
        }
    }

    pub fn stats(&self) -> SessionStats {
        SessionStats {
            connected: self.is_connected(),
            failed: self.failure.get().cloned(),
            counters: self.counters.snapshot(),
            resident_bytes: self.image.resident(),
        }
    }
}

/// A failure sink that sends the event on a connection.
pub(crate) fn sink_to(connection: Arc<OwnedFd>) -> FailureSink {
    Box::new(move |kind, reason| crate::protocol::send_failure(&connection, kind, reason))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::{
        source::{ChunkSource, OpenedSource, ReadReport, SourceError},
        table::{Need, Turn},
    };

    struct OneChunk;

    impl ChunkSource for OneChunk {
        fn len(&self) -> u64 {
            4096
        }

        fn chunk_size(&self) -> usize {
            4096
        }

        fn is_zero(&self, _: usize) -> bool {
            false
        }

        fn read(&self, _: usize, _: &mut [u8]) -> Result<ReadReport, SourceError> {
            Err(SourceError::new("not read"))
        }
    }

    pub(crate) fn session(mode: Mode) -> Arc<Session> {
        let opened =
            OpenedSource { key: String::new(), source: Arc::new(OneChunk), working_set: vec![] };
        let image = Image::new("g", opened, false, Arc::new(AtomicU64::new(0))).unwrap();
        let (golden, session) = (String::new(), String::new());
        let request = AttachRequest { golden, mode, record: false, session };
        let sink = Box::new(|_, _: &str| ());
        let host = Arc::new(Counters::new());
        Arc::new(Session::new(1, &request, Arc::new(image), host, sink).unwrap())
    }

    #[test]
    fn no_more_faults_wait_than_may() {
        let session = session(Mode::Shared);
        assert!((0..MAX_WAITING).all(|_| session.begin_wait()));
        assert!(!session.begin_wait());
        session.end_wait();
        session.supply(0, Instant::now());
        assert!(session.begin_wait());
    }

    #[test]
    fn a_chunk_for_a_thread_that_has_ended_stays_pinned_for_nobody() {
        let session = session(Mode::Copy);
        let image = &session.image;
        for ended in [false, true] {
            let since = Instant::now();
            let waiter = Waiter { session: Arc::clone(&session), offset: 0, since };
            assert!(session.begin_wait());
            assert_eq!(image.request(0, waiter, true), Need::Ask);
            assert!(matches!(image.turn(0), Turn::Fill));
            assert_eq!(image.filled(0, 1).len(), 1);
            if ended {
                session.mailbox.close();
            }
            session.supply(0, since);
            assert_eq!(image.evict(false).is_some(), ended);
            for supply in session.mailbox.take() {
                image.unpin(supply.chunk);
                assert!(image.evict(false).is_some());
            }
        }
    }
}
