//! A session of the pager: the guest memory of one VMM, and how a page gets into it.

use std::{
    ops::Range,
    os::fd::OwnedFd,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use parking_lot::{Mutex, RwLock};

use crate::{
    futile::Futile,
    handshake::{Handshake, Region},
    image::{Image, Waits},
    pages::{PageSet, extend},
    protocol::{FailureKind, Mode},
    recorder::Recorder,
    stats::{Counters, SessionStats},
    uffd::{self, Event, EventBuffer, PAGE, ReadError, Step, Uffd},
};

/// Zero pages are mapped ahead of the fault inside one aligned block of this size.
const ZERO_BLOCK: u64 = 1 << 20;

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
}

/// How a fault is answered.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// Map zero pages over these bytes of the image.
    Zero(Range<u64>),
    /// The chunk is resident: let the VMM map it, or copy it.
    Supply(u32),
}

/// Whether an answer took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Yes, or the session has failed and needs none.
    Done,
    /// Not before the session's next event is read.
    Busy,
}

/// Tells the session's owner about its failure.
pub(crate) type FailureSink = Box<dyn Fn(FailureKind, &str) + Send + Sync>;

/// The guest memory of one VMM.
pub(crate) struct Session {
    pub id: u64,
    pub name: String,
    pub image: Arc<Image<Waiter>>,
    pub counters: Counters,
    host: Arc<Counters>,
    mode: Mode,
    recorder: Option<Mutex<Recorder>>,
    link: OnceLock<Link>,
    failed: AtomicBool,
    draining: AtomicBool,
    failure: OnceLock<String>,
    sink: FailureSink,
    futile: Mutex<Futile>,
}

struct Link {
    uffd: Uffd,
    regions: Vec<Region>,
    /// Pages the VMM has given back, in private-copy mode. Held for writing while events are read:
    /// a copy that runs after the removal has been acknowledged must already see it.
    removed: RwLock<PageSet>,
}

impl Session {
    pub fn new(
        id: u64,
        name: String,
        image: Arc<Image<Waiter>>,
        mode: Mode,
        record: bool,
        host: Arc<Counters>,
        sink: FailureSink,
    ) -> Self {
        let recorder = record.then(|| Mutex::new(Recorder::new(image.chunks())));
        Self {
            id,
            name,
            image,
            counters: Counters::new(),
            host,
            mode,
            recorder,
            link: OnceLock::new(),
            failed: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            failure: OnceLock::new(),
            sink,
            futile: Mutex::default(),
        }
    }

    /// Returns whether chunks are copied into the VMM, and therefore pinned meanwhile.
    pub fn copies(&self) -> bool {
        self.mode == Mode::Copy
    }

    pub fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Returns whether its VMM has ended and what still waits for a page of it gets zeros, see
    /// [`Session::drain`].
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Answers every fault from now on with zero pages of the VMM's own, for nobody reads them any
    /// more. Only for a session whose VMM has ended.
    ///
    /// A KVM guest's faults are waited for by threads of the kernel, which a kill of the VMM does
    /// not reach (`kvm_setup_async_pf`, virt/kvm/async_pf.c). They keep its address space alive.
    /// Were the userfaultfd closed before they are done, they would go on, and allocate zero pages
    /// in the page cache that other sessions read.
    pub fn drain(&self) {
        // Whatever the VMM has made of it; nobody is left who might do so again.
        if let Some(link) = self.link.get() {
            let _ = link.uffd.set_nonblocking();
        }
        self.draining.store(true, Ordering::Relaxed);
        self.wake_all();
    }

    /// Wakes whoever waits for a page; who still finds none faults again.
    pub fn wake_all(&self) {
        let Some(link) = self.link.get() else { return };
        for region in &link.regions {
            let _ = link.uffd.wake(region.base, region.size);
        }
    }

    /// Returns whether an end of the userfaultfd may let somebody touch the page cache unseen:
    /// while the VMM's address space lives.
    pub fn may_plant(&self) -> bool {
        let Some(link) = self.link.get().filter(|_| !self.copies()) else { return false };
        // A page in none of the regions: the kernel looks whether there is an address space before
        // it looks for the page.
        let outside = link
            .regions
            .iter()
            .map(|region| region.base)
            .min()
            .unwrap_or(PAGE)
            .saturating_sub(PAGE);
        uffd::zero(&link.uffd, outside, PAGE) != Step::Gone
    }

    /// Stops serving the session and tells its owner why. Only the first call counts.
    pub fn fail(&self, kind: FailureKind, reason: &str) {
        if self.failed.swap(true, Ordering::Relaxed) {
            return;
        }
        let _ = self.failure.set(reason.to_owned());
        tracing::warn!(session = %self.name, ?kind, reason, "session failed");
        (self.sink)(kind, reason);
    }

    /// Takes over the guest memory. Returns the userfaultfd to watch.
    pub fn connect(&self, handshake: Handshake) -> nix::Result<&Uffd> {
        handshake.uffd.set_nonblocking()?;
        assert!(!self.is_connected(), "a session is connected once");
        let link = self.link.get_or_init(|| Link {
            uffd: handshake.uffd,
            regions: handshake.regions,
            removed: RwLock::new(PageSet::default()),
        });
        Ok(&link.uffd)
    }

    pub fn is_connected(&self) -> bool {
        self.link.get().is_some()
    }

    pub fn uffd(&self) -> Option<&Uffd> {
        self.link.get().map(|l| &l.uffd)
    }

    /// Reads pending events: removals take effect at once, faults are returned as bytes of the
    /// image.
    pub fn read_events(&self, buffer: &mut EventBuffer, faults: &mut Vec<u64>) {
        let Some(link) = self.link.get() else { return };
        let mut removed = link.removed.write();
        let events = match link.uffd.read_events(buffer) {
            Ok(events) => events,
            Err(ReadError::Blocking) => return self.fail_blocking(),
            Err(error) => {
                return self.fail(
                    FailureKind::VmmGone,
                    &format!("cannot read userfaultfd events: {error}"),
                );
            }
        };
        for event in events {
            match event {
                Event::Fault(address) => match link.offset_of(address) {
                    Some(offset) => faults.push(offset),
                    None => self.fail(
                        FailureKind::Protocol,
                        &format!("fault at {address:#x}, outside the regions handed over"),
                    ),
                },
                // What the VMM then reads there is the file, as mmap(2) has it, and not the zeros
                // of a page that was given back.
                Event::Removed(_) if !self.copies() => {
                    self.fail(
                        FailureKind::Protocol,
                        "the VMM gave guest memory back (madvise), which is served in copy mode only",
                    );
                }
                Event::Removed(addresses) => {
                    for range in link.offsets(addresses) {
                        removed.insert(range, self.image.len());
                    }
                }
                Event::Moved => {
                    self.fail(
                        FailureKind::Protocol,
                        "the VMM moved its guest memory (mremap), which is not served",
                    );
                }
                // The child's own userfaultfd: closed here. The child must not touch guest memory.
                Event::Forked(uffd) => drop(uffd),
                Event::Unknown(kind) => {
                    self.fail(
                        FailureKind::Protocol,
                        &format!("unknown userfaultfd event: number {kind}"),
                    );
                }
            }
        }
    }

    /// Fails the session because reads of its userfaultfd would wait.
    pub fn fail_blocking(&self) {
        self.fail(
            FailureKind::Protocol,
            "the VMM made its userfaultfd blocking (fcntl), which would hold up all sessions",
        );
    }

    /// Notes the first touch of a chunk, when recording.
    pub fn record(&self, chunk: u32) {
        if let Some(recorder) = &self.recorder {
            recorder.lock().touch(chunk);
        }
    }

    /// Returns the recorded chunks from the `from`th on, at most `limit`. `None`: not recording.
    pub fn recording(&self, from: usize, limit: usize) -> Option<(Vec<u32>, usize)> {
        Some(self.recorder.as_ref()?.lock().page(from, limit))
    }

    /// Returns the zero pages that answer a fault at `offset`, if zeros do: pages the VMM gave
    /// back, and zero chunks.
    pub fn zeros_for(&self, offset: u64) -> Option<Range<u64>> {
        let link = self.link.get()?;
        let block = offset / ZERO_BLOCK * ZERO_BLOCK..(offset / ZERO_BLOCK + 1) * ZERO_BLOCK;
        let removed = link.removed.read();
        if removed.contains(offset) {
            return Some(extend(offset..offset + PAGE, PAGE, &block, |page| {
                removed.contains(page)
            }));
        }
        drop(removed);
        let image = &self.image;
        let zero = |chunk| {
            if self.copies() {
                image.source.is_zero(chunk as usize)
            } else {
                image.is_plain_zero(chunk)
            }
        };
        let chunk = image.chunk_of(offset);
        if !zero(chunk) {
            return None;
        }
        let own = image.range(chunk);
        if self.recorder.is_some() {
            // Zeros mapped ahead would hide the touches of the neighbours.
            return Some(own);
        }
        let block = block.start.min(own.start)..block.end.max(own.end).min(image.len());
        Some(extend(own, image.chunk_size(), &block, |at| zero(image.chunk_of(at))))
    }

    /// Notes that a wake will answer a fault at `offset` whose chunk is resident since fill
    /// `filled`; see [`Futile`].
    pub fn note_wake(&self, offset: u64, filled: u64) {
        if self.futile.lock().note(filled) {
            let reason = format!(
                "guest memory faults again and again although it is resident, last at byte {offset:#x}: the VMM does not map \
                 the page-cache file; attach in copy mode for anonymous memory"
            );
            self.fail(FailureKind::Protocol, &reason);
        }
    }

    /// Tries to answer a fault read at `since`, and wakes the threads it concerns.
    pub fn answer(&self, answer: &Answer, since: Instant) -> Progress {
        let Some(link) = self.link.get() else {
            return Progress::Done;
        };
        if self.is_failed() && !self.is_draining() {
            return Progress::Done;
        }
        let (range, copy) = match answer {
            Answer::Zero(range) => (range.clone(), None),
            Answer::Supply(chunk) => (self.image.range(*chunk), self.copies().then_some(*chunk)),
        };
        let filled = match (answer, copy) {
            (Answer::Zero(_), _) => self.zero(link, &range),
            (Answer::Supply(_), Some(_)) => self.copy(link, &range),
            (Answer::Supply(_), None) => Ok(()),
        };
        match filled {
            Ok(()) => {}
            Err(Step::Busy) => return Progress::Busy,
            Err(Step::Gone) => {
                self.fail(FailureKind::VmmGone, "the VMM's address space is gone");
                return Progress::Done;
            }
            Err(step) => {
                let at = range.start;
                self.fail(
                    FailureKind::Protocol,
                    &format!("cannot fill guest memory at image byte {at:#x}: {step:?}"),
                );
                return Progress::Done;
            }
        }
        // Taken before the wake: the woken thread may well get this CPU.
        let waited = since.elapsed();
        self.counters.waited(waited);
        self.host.waited(waited);
        for (start, len, _) in link.segments(&range) {
            if let Err(error) = link.uffd.wake(start, len) {
                self.fail(FailureKind::VmmGone, &format!("cannot wake the VMM: {error}"));
            }
        }
        Progress::Done
    }

    fn zero(&self, link: &Link, range: &Range<u64>) -> Result<(), Step> {
        for (start, len, _) in link.segments(range) {
            let mut done = 0;
            while done < len {
                match uffd::zero(&link.uffd, start + done, len - done) {
                    Step::Filled(n) => {
                        done += n.max(PAGE);
                        Counters::add(&self.counters.zero_pages, n / PAGE);
                        Counters::add(&self.host.zero_pages, n / PAGE);
                    }
                    Step::Exists => done += PAGE,
                    step => return Err(step),
                }
            }
        }
        Ok(())
    }

    fn copy(&self, link: &Link, range: &Range<u64>) -> Result<(), Step> {
        for (start, len, offset) in link.segments(range) {
            let mut done = 0;
            while done < len {
                let removed = link.removed.read();
                if removed.contains(offset + done) {
                    done += PAGE;
                    continue;
                }
                let run = extend(
                    offset + done..offset + done + PAGE,
                    PAGE,
                    &(offset + done..offset + len),
                    |page| !removed.contains(page),
                );
                // SAFETY: the chunk is resident and pinned, so its pages are mapped read-only for
                // the whole run.
                let step = unsafe {
                    uffd::copy(
                        &link.uffd,
                        self.image.file.address(run.start),
                        start + done,
                        run.end - run.start,
                    )
                };
                match step {
                    Step::Filled(n) => {
                        done += n.max(PAGE);
                        Counters::add(&self.counters.bytes_copied, n);
                        Counters::add(&self.host.bytes_copied, n);
                    }
                    Step::Exists => done += PAGE,
                    step => return Err(step),
                }
            }
        }
        Ok(())
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

impl Link {
    /// The byte of the image at `address` in the VMM, page-aligned.
    fn offset_of(&self, address: u64) -> Option<u64> {
        let page = address / PAGE * PAGE;
        let region = self.regions.iter().find(|r| (r.base..r.end()).contains(&page))?;
        Some(page - region.base + region.offset)
    }

    /// Bytes of the image that the addresses of `range` hold.
    fn offsets(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        self.regions.iter().filter_map(move |r| {
            let (start, end) = (range.start.max(r.base), range.end.min(r.end()));
            (start < end).then(|| start - r.base + r.offset..end - r.base + r.offset)
        })
    }

    /// Where bytes of the image are in the VMM: address, length, byte of the image.
    fn segments(&self, range: &Range<u64>) -> impl Iterator<Item = (u64, u64, u64)> {
        let range = range.clone();
        self.regions.iter().filter_map(move |r| {
            let (start, end) = (range.start.max(r.offset), range.end.min(r.offset + r.size));
            (start < end).then(|| (r.base + (start - r.offset), end - start, start))
        })
    }
}

/// A failure sink that sends the event on a connection.
pub(crate) fn sink_to(connection: Arc<OwnedFd>) -> FailureSink {
    Box::new(move |kind, reason| crate::protocol::send_failure(&connection, kind, reason))
}
