//! The thread that reads faults of all sessions and answers those it can at once.

use std::{collections::HashMap, sync::Arc, thread::JoinHandle, time::Instant};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
    },
};
use parking_lot::{Mutex, MutexGuard};

use crate::{
    fatal,
    fill::FillPool,
    protocol::FailureKind,
    session::{Answer, Session, Waiter},
    stats::Counters,
    table::Need,
    uffd::{EventBuffer, PAGE, Uffd},
    watchdog::Beat,
};

/// The token of the descriptor that ends the thread; sessions count from 1.
const STOP: u64 = 0;
/// Events read from one session before the others have their turn.
const BATCH: usize = 32;

/// Reason given to the sessions of an image that holds pages the pager did not place.
pub(crate) const NOT_INTACT: &str = "the page cache of this golden holds pages the pager did not place: another VMM touched the \
     RAM file outside its registered mapping; its memory can't be trusted, start the session again";

/// The sessions watched, and the epoll instance that watches them.
pub(crate) struct FaultLoop {
    epoll: Epoll,
    stop: EventFd,
    sessions: Mutex<HashMap<u64, Arc<Session>>>,
    pool: Arc<FillPool>,
    pub beat: Arc<Beat>,
}

impl FaultLoop {
    /// Starts the thread.
    pub fn start(pool: Arc<FillPool>) -> std::io::Result<(Arc<Self>, JoinHandle<()>)> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        let (sessions, beat) = (Mutex::new(HashMap::new()), Arc::new(Beat::default()));
        let faults = Arc::new(Self { epoll, stop, sessions, pool, beat });
        let thread = Arc::clone(&faults);
        let handle = std::thread::Builder::new().name("faults".to_owned()).spawn(move || {
            let _guard = fatal::EndOnPanic("faults");
            thread.run();
        })?;
        Ok((faults, handle))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Session>>> {
        self.sessions.lock()
    }

    /// Fails a session at whose faults the thread has been for long: its VMM keeps a lock of its
    /// address space, for which the calls that map pages wait (mmap_lock). It is killed then, and the
    /// thread goes on.
    pub fn blame(&self, session: u64) {
        let session = self.lock().get(&session).cloned();
        if let Some(session) = session {
            session.fail(
                FailureKind::Protocol,
                "the VMM holds up the pager: mapping a page for it does not return",
            );
        }
    }

    /// Makes the thread end.
    pub fn stop(&self) {
        let _ = self.stop.write(1);
    }

    /// Serves the faults of a connected session from now on.
    pub fn watch(&self, session: &Arc<Session>, uffd: &Uffd) -> nix::Result<()> {
        self.lock().insert(session.id, Arc::clone(session));
        self.epoll.add(uffd, EpollEvent::new(EpollFlags::EPOLLIN, session.id))
    }

    /// Serves a session no more. Its userfaultfd is closed when nobody else holds the session
    /// either.
    pub fn forget(&self, session: &Session) {
        self.unwatch(&mut self.lock(), session);
    }

    fn unwatch(&self, sessions: &mut HashMap<u64, Arc<Session>>, session: &Session) {
        if let Some(uffd) = session.uffd() {
            let _ = self.epoll.delete(uffd);
        }
        sessions.remove(&session.id);
    }

    /// Answers what still waits for a page of a session whose VMM has ended, see
    /// [`Session::drain`].
    pub fn drain(&self, session: &Arc<Session>) {
        let Some(uffd) = session.uffd() else { return };
        // Under the lock, so that the thread does not forget it between these steps, for having
        // failed.
        let mut sessions = self.lock();
        session.drain();
        if sessions.insert(session.id, Arc::clone(session)).is_none() {
            let _ = self.epoll.add(uffd, EpollEvent::new(EpollFlags::EPOLLIN, session.id));
        }
    }

    fn forget_failed(&self, session: &Session) {
        let mut sessions = self.lock();
        if !session.is_draining() {
            self.unwatch(&mut sessions, session);
        }
    }

    fn run(&self) {
        let mut ready = [EpollEvent::empty(); 64];
        let mut buffer = EventBuffer::new(BATCH);
        let mut offsets = Vec::with_capacity(BATCH);
        loop {
            let count = match self.epoll.wait(&mut ready, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(errno) => {
                    // New sessions would wait for ever.
                    fatal::end(&format!("it cannot wait for faults: {errno}"));
                }
            };
            self.beat.toggle();
            for event in &ready[..count] {
                if event.data() == STOP {
                    self.beat.toggle();
                    return;
                }
                let session = self.lock().get(&event.data()).cloned();
                self.beat.serve(event.data());
                if let Some(session) = session {
                    offsets.clear();
                    self.turn(&session, event.events(), &mut buffer, &mut offsets);
                }
                self.beat.next();
            }
            self.beat.toggle();
        }
    }

    /// Serves what has come for one session.
    fn turn(
        &self,
        session: &Arc<Session>,
        events: EpollFlags,
        buffer: &mut EventBuffer,
        offsets: &mut Vec<u64>,
    ) {
        if session.is_draining() {
            session.read_events(buffer, offsets);
            return self.discard(session, offsets);
        }
        // Before anything is read: this is how poll(2) reports a descriptor whose reads wait
        // (userfaultfd(2)). An address space that is gone is no error here.
        if events.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            session.fail_blocking();
        }
        if session.is_failed() {
            // Nothing of it is served any more; it stays attached until its owner lets go.
            return self.forget_failed(session);
        }
        session.read_events(buffer, offsets);
        self.serve(session, offsets);
    }

    /// Lets those go on who wait for pages that nobody reads any more.
    fn discard(&self, session: &Arc<Session>, offsets: &[u64]) {
        for &offset in offsets {
            let waiter = Waiter { session: Arc::clone(session), offset, since: Instant::now() };
            self.pool.answer(waiter, Answer::Zero(offset..offset + PAGE));
        }
    }

    fn serve(&self, session: &Arc<Session>, offsets: &[u64]) {
        if offsets.is_empty() {
            return;
        }
        if !session.image.is_intact() {
            return session.fail(FailureKind::Tampered, NOT_INTACT);
        }
        let since = Instant::now();
        let count = offsets.len() as u64;
        Counters::add(&session.counters.faults, count);
        Counters::add(&self.pool.cache.counters.faults, count);
        for &offset in offsets {
            self.fault(Waiter { session: Arc::clone(session), offset, since });
        }
    }

    fn fault(&self, waiter: Waiter) {
        let (session, offset) = (Arc::clone(&waiter.session), waiter.offset);
        let image = &session.image;
        let chunk = image.chunk_of(offset);
        session.record(chunk);
        if let Some(range) = session.zeros_for(offset) {
            return self.pool.answer(waiter, Answer::Zero(range));
        }
        let again = Waiter { session: Arc::clone(&session), ..waiter };
        match image.request(chunk, again, session.copies()) {
            Need::Nothing(filled) => {
                if !session.copies() {
                    session.note_wake(offset, filled);
                }
                self.pool.answer(waiter, Answer::Supply(chunk));
            }
            Need::Wait => {}
            Need::Fill => self.pool.fill(Arc::clone(image), chunk),
        }
    }
}
