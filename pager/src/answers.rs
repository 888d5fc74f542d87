//! How the faults of a session are answered, by the session's thread.

use std::{collections::VecDeque, ops::Range, sync::Arc, time::Instant};

use nix::poll::PollFlags;

use crate::{
    fill::FillPool,
    futile::Futile,
    guest_memory::GuestMemory,
    mailbox::Supply,
    pages::{PageSet, extend},
    protocol::FailureKind,
    session::{MAX_WAITING, Session, Waiter},
    stats::Counters,
    table::Need,
    uffd::{Event, EventBuffer, PAGE, ReadError, Step},
};

/// Events read at once.
const BATCH: usize = 32;
/// Zero pages are mapped ahead of the fault inside one aligned block of this size.
const ZERO_BLOCK: u64 = 1 << 20;

/// Reason given to the sessions of an image that holds pages the pager did not place.
pub(crate) const NOT_INTACT: &str = "the page cache of this golden holds pages the pager did not \
     place: another VMM touched the RAM file outside its registered mapping; its memory can't be \
     trusted, start the session again";

/// How a fault is answered that a wake alone does not answer.
enum Answer {
    /// Map zero pages over these bytes of the image.
    Zero(Range<u64>),
    /// Copy the chunk, which is resident and pinned.
    Copy(u32),
}

/// The guest memory of a session with the state that answers depend on.
pub(crate) struct Answers {
    session: Arc<Session>,
    pub memory: Arc<GuestMemory>,
    pool: Arc<FillPool>,
    /// Pages the VMM has given back, in private-copy mode. A removal is acknowledged by reading its
    /// event, and this thread makes no copy before it has taken note of all that it has read.
    removed: PageSet,
    futile: Futile,
    buffer: EventBuffer,
    /// Faults just read, as bytes of the image.
    faults: Vec<u64>,
    /// Answers that the kernel was not ready for, at most [`MAX_WAITING`].
    busy: VecDeque<(Answer, Instant)>,
}

impl Answers {
    pub fn new(session: Arc<Session>, memory: Arc<GuestMemory>, pool: Arc<FillPool>) -> Self {
        Self {
            session,
            memory,
            pool,
            removed: PageSet::default(),
            futile: Futile::default(),
            buffer: EventBuffer::new(BATCH),
            faults: Vec::with_capacity(BATCH),
            busy: VecDeque::new(),
        }
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
        let _ = self.memory.uffd.set_nonblocking();
        self.session.set_draining();
        self.memory.wake_all();
    }

    /// Returns whether an end of the userfaultfd may let somebody touch the page cache unseen:
    /// while the VMM's address space lives.
    pub fn may_plant(&self) -> bool {
        !self.session.copies() && !self.memory.is_gone(&self.session.beat)
    }

    /// Serves what poll(2) says has come.
    pub fn turn(&mut self, events: PollFlags) {
        let draining = self.session.is_draining();
        // Before anything is read: this is how poll(2) reports a descriptor whose reads wait
        // (userfaultfd(2)). An address space that is gone is no error here.
        if !draining && events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) {
            fail_blocking(&self.session);
        }
        if self.session.is_failed() && !draining {
            return;
        }
        self.faults.clear();
        self.read_events();
        let faults = std::mem::take(&mut self.faults);
        if draining {
            // Lets those go on who wait for pages that nobody reads any more.
            for offset in &faults {
                self.answer(Answer::Zero(*offset..offset + PAGE), Instant::now());
            }
        } else if !faults.is_empty() {
            self.serve(&faults);
        }
        self.faults = faults;
    }

    /// Reads pending events: removals take effect at once, faults are collected.
    fn read_events(&mut self) {
        let session = &self.session;
        // Before Linux 6.10 a VMM that keeps its userfaultfd can make even this wait.
        let (uffd, buffer) = (&self.memory.uffd, &mut self.buffer);
        let events = match session.beat.at_vmm(move || uffd.read_events(buffer)) {
            Ok(events) => events,
            Err(ReadError::Blocking) => return fail_blocking(&self.session),
            Err(error) => {
                let reason = format!("cannot read userfaultfd events: {error}");
                return session.fail(FailureKind::VmmGone, &reason);
            }
        };
        let protocol = |reason: &str| session.fail(FailureKind::Protocol, reason);
        for event in events {
            match event {
                Event::Fault(address) => {
                    let Some(offset) = self.memory.offset_of(address) else {
                        let reason = "outside the regions handed over";
                        protocol(&format!("fault at {address:#x}, {reason}"));
                        continue;
                    };
                    self.faults.push(offset);
                }
                // What the VMM then reads there is the file, as mmap(2) has it, and not the zeros
                // of a page that was given back.
                Event::Removed(_) if !session.copies() => protocol(
                    "the VMM gave guest memory back (madvise), which is served in copy mode only",
                ),
                Event::Removed(addresses) => {
                    for range in self.memory.offsets(addresses) {
                        self.removed.insert(range, session.image.len());
                    }
                }
                Event::Moved => {
                    protocol("the VMM moved its guest memory (mremap), which is not served");
                }
                // The child's own userfaultfd: closed here, which may wait for the child. The child
                // must not touch guest memory.
                Event::Forked(uffd) => session.beat.at_vmm(|| drop(uffd)),
                Event::Unknown(kind) => {
                    protocol(&format!("unknown userfaultfd event: number {kind}"));
                }
            }
        }
    }

    fn serve(&mut self, offsets: &[u64]) {
        let session = Arc::clone(&self.session);
        if !session.image.is_intact() {
            return session.fail(FailureKind::Tampered, NOT_INTACT);
        }
        let since = Instant::now();
        let count = offsets.len() as u64;
        Counters::add(&session.counters.faults, count);
        Counters::add(&session.host.faults, count);
        for &offset in offsets {
            self.fault(offset, since);
        }
    }

    fn fault(&mut self, offset: u64, since: Instant) {
        let session = Arc::clone(&self.session);
        let image = &session.image;
        let chunk = image.chunk_of(offset);
        session.record(chunk);
        if let Some(range) = self.zeros_for(offset) {
            return self.answer(Answer::Zero(range), since);
        }
        if !session.begin_wait() {
            return self.fail_waiting();
        }
        let waiter = Waiter { session: Arc::clone(&session), offset, since };
        match image.request(chunk, waiter, session.copies()) {
            Need::Nothing(filled) => {
                session.end_wait();
                if session.copies() {
                    return self.answer(Answer::Copy(chunk), since);
                }
                if self.futile.note(filled) {
                    let reason = format!(
                        "guest memory faults again and again although it is resident, last at \
                         byte {offset:#x}: the VMM does not map the page-cache file; attach in \
                         copy mode for anonymous memory"
                    );
                    session.fail(FailureKind::Protocol, &reason);
                }
                session.wake(&image.range(chunk), since);
            }
            Need::Wait => {}
            Need::Join => self.pool.join(&session, chunk),
            Need::Ask => self.pool.ask(&session, chunk),
        }
    }

    fn fail_waiting(&self) {
        self.session.fail(
            FailureKind::Protocol,
            &format!("more than {MAX_WAITING} faults of the VMM wait, which no guest has"),
        );
    }

    /// Returns the zero pages that answer a fault at `offset`, if zeros do: pages the VMM gave
    /// back, and zero chunks.
    fn zeros_for(&self, offset: u64) -> Option<Range<u64>> {
        let block = offset / ZERO_BLOCK * ZERO_BLOCK..(offset / ZERO_BLOCK + 1) * ZERO_BLOCK;
        if self.removed.contains(offset) {
            return Some(extend(offset..offset + PAGE, PAGE, &block, |page| {
                self.removed.contains(page)
            }));
        }
        let image = &self.session.image;
        let zero = |chunk| {
            if self.session.copies() {
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
        if self.session.is_recording() {
            // Zeros mapped ahead would hide the touches of the neighbours.
            return Some(own);
        }
        let block = block.start.min(own.start)..block.end.max(own.end).min(image.len());
        Some(extend(own, image.chunk_size(), &block, |at| zero(image.chunk_of(at))))
    }

    /// Copies the chunks that fill threads have made resident for faults of this session.
    pub fn copy_supplies(&mut self) {
        for Supply { chunk, since } in self.session.mailbox.take() {
            self.session.end_wait();
            self.answer(Answer::Copy(chunk), since);
        }
    }

    /// Returns whether answers are left to be given again.
    pub fn is_busy(&self) -> bool {
        !self.busy.is_empty()
    }

    /// Gives the answers again that the kernel was not ready for.
    pub fn retry(&mut self) {
        for (answer, since) in std::mem::take(&mut self.busy) {
            self.answer(answer, since);
        }
    }

    /// Answers a fault read at `since`, now or as soon as the kernel lets us.
    fn answer(&mut self, answer: Answer, since: Instant) {
        let served = !self.session.is_failed() || self.session.is_draining();
        match if served { self.map(&answer) } else { Ok(None) } {
            Ok(None) => {}
            Ok(Some(range)) => self.session.wake(&range, since),
            Err(Step::Busy) if self.busy.len() < MAX_WAITING as usize => {
                return self.busy.push_back((answer, since));
            }
            Err(Step::Busy) => self.fail_waiting(),
            Err(Step::Gone) => {
                self.session.fail(FailureKind::VmmGone, "the VMM's address space is gone");
            }
            Err(step) => {
                let at = self.range(&answer).start;
                self.session.fail(
                    FailureKind::Protocol,
                    &format!("cannot fill guest memory at image byte {at:#x}: {step:?}"),
                );
            }
        }
        if let Answer::Copy(chunk) = answer {
            self.session.image.unpin(chunk);
        }
    }

    fn range(&self, answer: &Answer) -> Range<u64> {
        match answer {
            Answer::Zero(range) => range.clone(),
            Answer::Copy(chunk) => self.session.image.range(*chunk),
        }
    }

    /// Maps the pages of an answer; returns where.
    fn map(&self, answer: &Answer) -> Result<Option<Range<u64>>, Step> {
        let (session, range) = (&self.session, self.range(answer));
        let both = [&session.counters, &*session.host];
        match answer {
            Answer::Zero(_) => self.memory.zero(&range, &session.beat, |bytes| {
                both.iter().for_each(|c| Counters::add(&c.zero_pages, bytes / PAGE));
            })?,
            Answer::Copy(_) => self.memory.copy(
                &range,
                &session.image.file,
                &session.beat,
                |page| self.removed.contains(page),
                |bytes| both.iter().for_each(|c| Counters::add(&c.bytes_copied, bytes)),
            )?,
        }
        Ok(Some(range))
    }

    /// Takes no more, and lets go of all chunks that were pinned for it.
    pub fn close(mut self) -> Arc<GuestMemory> {
        for supply in self.session.mailbox.close() {
            self.session.image.unpin(supply.chunk);
        }
        for (answer, _) in std::mem::take(&mut self.busy) {
            if let Answer::Copy(chunk) = answer {
                self.session.image.unpin(chunk);
            }
        }
        self.session.disconnect();
        self.memory
    }
}

fn fail_blocking(session: &Session) {
    session.fail(
        FailureKind::Protocol,
        "the VMM made its userfaultfd blocking (fcntl), so that reading it would wait",
    );
}
