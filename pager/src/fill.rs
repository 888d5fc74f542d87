//! The threads that read, verify and place chunks. Chunks a fault waits for come first, those of
//! one session in turn with those of another; prefetch comes after them. They make no call that
//! waits for a VMM.

use std::{
    collections::VecDeque,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::sys::mman::mlock;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::{
    cache::{Cache, Leftover, Reach},
    fatal,
    image::Image,
    protocol::FailureKind,
    session::{Session, Waiter},
    source::SourceError,
    stats::Counters,
    table::Turn,
    turns::Turns,
};

/// The source is told of so many chunks of a working set at once, 4 MiB of memory when they have 64
/// KiB, and again when it has been told of fewer than that in advance. So never more than twice as
/// much is fetched before it is wanted: what a fault needs from a disk queues behind that.
const TELL_CHUNKS: usize = 64;

struct Prefetch {
    image: Arc<Image<Waiter>>,
    /// The next of the working set to fill.
    next: usize,
    /// The first of the working set that the source was not told of.
    told: usize,
}

impl Prefetch {
    /// Takes the part of the working set that the source is to be told of now.
    fn tell(&mut self) -> Option<Range<usize>> {
        let start = self.told.max(self.next);
        let end = (start + TELL_CHUNKS).min(self.image.working_set.len());
        let tell = start < end && start - self.next < TELL_CHUNKS;
        tell.then(|| {
            self.told = end;
            start..end
        })
    }
}

/// What there is to do for a prefetch.
enum Ahead {
    /// Tell the source of this part of the working set.
    Tell(Range<usize>),
    /// Fill this chunk; its state is *filling* already.
    Fill(u32),
}

#[derive(Default)]
struct Queue {
    turns: Turns,
    prefetches: VecDeque<Prefetch>,
}

/// The fill threads and their queue.
pub(crate) struct FillPool {
    queue: Mutex<Queue>,
    wakeup: Condvar,
    stop: AtomicBool,
    pub cache: Arc<Cache>,
}

impl FillPool {
    /// Starts `threads` threads.
    pub fn start(
        cache: Arc<Cache>,
        threads: usize,
    ) -> std::io::Result<(Arc<Self>, Vec<JoinHandle<()>>)> {
        let pool = Arc::new(Self {
            queue: Mutex::new(Queue::default()),
            wakeup: Condvar::new(),
            stop: AtomicBool::new(false),
            cache,
        });
        let mut handles = Vec::new();
        for n in 0..threads.max(1) {
            let worker = Arc::clone(&pool);
            handles.push(std::thread::Builder::new().name(format!("fill-{n}")).spawn(
                move || {
                    let _guard = fatal::EndOnPanic("fill");
                    worker.work();
                },
            )?);
        }
        Ok((pool, handles))
    }

    /// Makes the threads end after their current chunk.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let _guard = self.lock();
        self.wakeup.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    /// Asks for a chunk in the name of `session`, which the table wants ([`Need::Ask`]).
    ///
    /// [`Need::Ask`]: crate::table::Need::Ask
    pub fn ask(&self, session: &Arc<Session>, chunk: u32) {
        self.lock().turns.ask(session, chunk);
        self.wakeup.notify_one();
    }

    /// Asks for a chunk that somebody has asked for already, so that it comes at the turn of
    /// whoever has it first.
    pub fn join(&self, session: &Arc<Session>, chunk: u32) {
        self.lock().turns.join(session, chunk);
        self.wakeup.notify_one();
    }

    /// Starts filling the working set of `image` in recorded order, unless all of it is resident or
    /// on its way.
    pub fn prefetch(&self, image: &Arc<Image<Waiter>>) {
        if image.working_set_absent() == 0 || image.prefetching.swap(true, Ordering::Relaxed) {
            return;
        }
        self.lock().prefetches.push_back(Prefetch { image: Arc::clone(image), next: 0, told: 0 });
        self.wakeup.notify_all();
    }

    /// Sees to what an eviction left behind.
    pub fn settle(&self, leftovers: Vec<Leftover>) {
        for leftover in leftovers {
            match leftover {
                Leftover::Refill(image, chunk) => {
                    let mut sessions: Vec<Arc<Session>> = Vec::new();
                    image.for_waiters(chunk, |waiter| {
                        if !sessions.iter().any(|known| Arc::ptr_eq(known, &waiter.session)) {
                            sessions.push(Arc::clone(&waiter.session));
                        }
                    });
                    sessions.iter().for_each(|session| self.ask(session, chunk));
                }
                Leftover::Resident(image, waiters) => {
                    for waiter in waiters {
                        let chunk = image.chunk_of(waiter.offset);
                        waiter.session.supply(chunk, waiter.since);
                    }
                }
            }
        }
    }

    fn work(&self) {
        let mut scratch = Scratch::default();
        loop {
            let mut queue = self.lock();
            let turn = loop {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                if let Some(turn) = queue.turns.next() {
                    break Some(turn);
                }
                if !queue.prefetches.is_empty() {
                    break None;
                }
                self.wakeup.wait(&mut queue);
            };
            drop(queue);
            if let Some((session, chunk)) = turn {
                self.take_turn(&session, chunk, &mut scratch);
            } else if let Some((image, ahead)) = self.next_prefetch() {
                // One of the two, then it is the turn of faults again.
                match ahead {
                    Ahead::Tell(part) => tell(&image, part),
                    Ahead::Fill(chunk) => self.fill_now(&image, chunk, true, &mut scratch),
                }
            }
        }
    }

    /// Fills the first chunk of those that `session` has asked for, from `chunk` on, that still
    /// needs it.
    fn take_turn(&self, session: &Session, mut chunk: Option<u32>, scratch: &mut Scratch) {
        while let Some(at) = chunk {
            match session.image.turn(at) {
                Turn::Fill => return self.fill_now(&session.image, at, false, scratch),
                Turn::Nothing => {}
                Turn::Over(waiters) => waiters.iter().for_each(|w| w.session.end_wait()),
            }
            // The lock is let go of in between: a session that has ended may have very many.
            chunk = self.lock().turns.next_of(session);
        }
    }

    /// The next step of a prefetch. Ends the prefetch of an image when nobody uses it any more,
    /// when it is complete, or when there is room only at the cost of working sets in use.
    fn next_prefetch(&self) -> Option<(Arc<Image<Waiter>>, Ahead)> {
        let image = Arc::clone(&self.lock().prefetches.front()?.image);
        let mut leftovers = Vec::new();
        let wanted = image.sessions.load(Ordering::Relaxed) > 0 && !image.is_condemned();
        let room = wanted && self.cache.make_room(image.chunk_size(), Reach::Idle, &mut leftovers);
        self.settle(leftovers);
        let mut queue = self.lock();
        let at = queue.prefetches.iter().position(|p| Arc::ptr_eq(&p.image, &image))?;
        if room {
            let prefetch = &mut queue.prefetches[at];
            if let Some(part) = prefetch.tell() {
                return Some((image, Ahead::Tell(part)));
            }
            while let Some(&chunk) = image.working_set.get(prefetch.next) {
                prefetch.next += 1;
                if image.prefetch(chunk) {
                    return Some((image, Ahead::Fill(chunk)));
                }
            }
        }
        queue.prefetches.remove(at);
        image.prefetching.store(false, Ordering::Relaxed);
        None
    }

    fn fill_now(&self, image: &Arc<Image<Waiter>>, chunk: u32, ahead: bool, scratch: &mut Scratch) {
        let mut leftovers = Vec::new();
        self.cache.make_room(0, Reach::Everything, &mut leftovers);
        self.settle(leftovers);
        let range = image.range(chunk);
        let len = usize::try_from(range.end - range.start).expect("a chunk is at most 2 MiB");
        let buf = scratch.get(len);
        let outcome =
            read(image, chunk, buf).and_then(|hash| match image.file.write(range.start, buf) {
                Ok(()) => Ok(hash),
                Err(errno) => {
                    Err(SourceError::new(format!("cannot place it in the page cache: {errno}")))
                }
            });
        let host = &self.cache.counters;
        match outcome {
            Ok(hash) => {
                let waiters = image.filled(chunk, self.cache.next_fill());
                let blamed = waiters.first().map(|w| Arc::clone(&w.session));
                let nanos = u64::try_from(hash.as_nanos()).unwrap_or(u64::MAX);
                for counters in std::iter::once(&**host).chain(blamed.iter().map(|s| &s.counters)) {
                    Counters::add(&counters.fills, 1);
                    Counters::add(&counters.bytes_filled, range.end - range.start);
                    Counters::add(&counters.hash_nanos, nanos);
                }
                Counters::add(&host.prefetch_fills, u64::from(ahead));
                // Counted before: a guest that goes on may be asked about at once.
                for waiter in waiters {
                    waiter.session.supply(chunk, waiter.since);
                }
            }
            Err(error) => {
                Counters::add(&host.failures, 1);
                let reason = format!("chunk {chunk} of golden {}: {error}", image.golden);
                tracing::warn!(reason, ahead, "chunk not served");
                for waiter in image.unfilled(chunk) {
                    Counters::add(&waiter.session.counters.failures, 1);
                    waiter.session.fail(FailureKind::Chunk, &reason);
                }
            }
        }
    }
}

/// Tells the source what will be read. One that panics at that can still be read.
fn tell(image: &Image<Waiter>, part: Range<usize>) {
    if catch_unwind(AssertUnwindSafe(|| image.will_read(part))).is_err() {
        tracing::warn!(golden = image.golden, "the chunk source panicked at what will be read");
    }
}

/// Reads and verifies a chunk. A source that panics must not leave its waiters waiting.
fn read(image: &Image<Waiter>, chunk: u32, buf: &mut [u8]) -> Result<Duration, SourceError> {
    if image.source.is_zero(chunk as usize) {
        buf.fill(0);
        return Ok(Duration::ZERO);
    }
    match catch_unwind(AssertUnwindSafe(|| image.source.read(chunk as usize, buf))) {
        Ok(report) => Ok(report?.hash),
        Err(_) => Err(SourceError::new("the chunk source panicked; its log says where")),
    }
}

/// Page-aligned memory that stays resident, as [`crate::ram_file::RamFile::write`] asks for.
#[derive(Default)]
struct Scratch {
    pages: Vec<Page>,
}

#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

impl Scratch {
    /// `len` bytes, a multiple of the page size, with whatever content.
    fn get(&mut self, len: usize) -> &mut [u8] {
        let pages = len / 4096;
        if self.pages.len() < pages {
            self.pages = vec![Page([0; 4096]); pages];
            if let Some(start) = std::ptr::NonNull::new(self.pages.as_mut_ptr()) {
                // SAFETY: locks memory this vector owns. Without the permission the pages may be
                // swapped, and `pwrite` faults them in again.
                let _ = unsafe { mlock(start.cast(), pages * 4096) };
            }
        }
        // SAFETY: `pages` elements of 4096 plain bytes each, borrowed for as long as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast::<u8>(), len) }
    }
}
