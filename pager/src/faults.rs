//! The thread of a session. It alone reads the session's userfaultfd, makes the calls that map
//! pages in its VMM, and closes what came from there: all that may wait for the VMM.
//!
//! So a VMM can delay nobody's faults but its own. Whoever else has something for the thread puts
//! it into its [mailbox](crate::mailbox), and does not wait.

use std::{os::fd::AsFd, sync::Arc, time::Duration};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::{
    answers::Answers,
    fatal,
    fill::FillPool,
    guest_memory::GuestMemory,
    handshake::Handshake,
    mailbox::Order,
    protocol::FailureKind,
    session::Session,
    vmm::{News, Vmm},
};

/// How often a session that its owner has let go of looks whether it can end, in milliseconds.
const LEAVE_EVERY: u8 = 100;
/// The first and the longest pause before an answer is given again that the kernel was not ready
/// for: the VMM's thread that changes mappings must run first.
const PAUSES: [Duration; 2] = [Duration::from_micros(20), Duration::from_millis(1)];

pub(crate) struct FaultThread {
    session: Arc<Session>,
    pool: Arc<FillPool>,
    vmm: Vmm,
    /// Once the VMM has handed over its guest memory.
    answers: Option<Answers>,
    /// The pause before the next try, when there is one.
    pause: Option<Duration>,
    /// Events of the userfaultfd are left alone until the next look.
    deaf: bool,
}

/// What poll(2) has found.
struct Ready {
    door: bool,
    process: bool,
    uffd: PollFlags,
}

impl FaultThread {
    pub fn new(session: Arc<Session>, pool: Arc<FillPool>, vmm: Vmm) -> Self {
        Self { session, pool, vmm, answers: None, pause: None, deaf: false }
    }

    /// Serves the session until nothing is left to do for it.
    pub fn run(mut self) {
        let session = Arc::clone(&self.session);
        loop {
            let ready = self.wait();
            session.beat.begin();
            // Looked at after each wait: a session that was let go of is not served any more.
            let order = session.mailbox.order();
            if order == Order::Stop || (order == Order::Leave && !self.leave()) {
                break;
            }
            self.see_vmm(&ready, order);
            self.give_answers(ready.uffd, order);
            session.beat.end();
        }
        session.beat.at_vmm(|| self.close());
        session.beat.end();
    }

    /// Waits until there is something to do.
    fn wait(&mut self) -> Ready {
        let session = &self.session;
        let order = session.mailbox.order();
        let hears = session.is_draining() || (order == Order::Serve && !session.is_failed());
        let timeout = if let Some(pause) = self.pause {
            std::thread::sleep(pause);
            PollTimeout::ZERO
        } else if order == Order::Serve && !self.deaf {
            PollTimeout::NONE
        } else {
            LEAVE_EVERY.into()
        };
        let mailbox = session.mailbox.fd();
        // What is not there is the mailbox once more, asked for nothing.
        let or_nothing = |fd: Option<_>| match fd {
            Some(fd) => PollFd::new(fd, PollFlags::POLLIN),
            None => PollFd::new(mailbox, PollFlags::empty()),
        };
        let uffd = self.answers.as_ref().map(|answers| answers.memory.uffd.as_fd());
        let mut fds = [
            PollFd::new(mailbox, PollFlags::POLLIN),
            or_nothing(self.vmm.door()),
            or_nothing(self.vmm.process()),
            or_nothing(uffd.filter(|_| hears && !self.deaf)),
        ];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => fatal::end(&format!("it cannot wait for faults: {errno}")),
        }
        let [news, door, process, uffd] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        if !news.is_empty() {
            session.mailbox.clear();
        }
        self.deaf = false;
        Ready { door: !door.is_empty(), process: !process.is_empty(), uffd }
    }

    /// Takes note of what has come from the VMM.
    fn see_vmm(&mut self, ready: &Ready, order: Order) {
        let session = Arc::clone(&self.session);
        if ready.door && order == Order::Leave {
            session.beat.at_vmm(|| self.vmm.close_door());
        } else if ready.door {
            let (connected, image) = (self.answers.is_some(), session.image.len());
            // What it closes may wait.
            let news = session.beat.at_vmm(|| self.vmm.look(connected, image));
            self.learn(news);
        }
        if ready.process {
            let news = self.vmm.process_ended();
            self.learn(news);
        }
    }

    fn learn(&mut self, news: News) {
        match news {
            News::Nothing => {}
            News::Connected(handshake) => self.connect(handshake),
            News::Refused(kind, reason) => self.session.fail(kind, &reason),
            News::Ended(reason) => {
                self.session.fail(FailureKind::VmmGone, reason);
                self.drain();
            }
        }
    }

    fn connect(&mut self, handshake: Handshake) {
        match GuestMemory::new(handshake) {
            Ok(memory) if !memory.shows_its_end(&self.session.beat) => {
                let reason = "the regions are at addresses that no process can have, or the \
                              userfaultfd was not set up (UFFDIO_API)";
                self.session.fail(FailureKind::Handshake, reason);
                self.session.beat.at_vmm(|| drop(memory));
            }
            Ok(memory) => {
                let memory = Arc::new(memory);
                self.session.connect(&memory);
                let (session, pool) = (Arc::clone(&self.session), Arc::clone(&self.pool));
                self.answers = Some(Answers::new(session, memory, pool));
            }
            Err(errno) => self
                .session
                .fail(FailureKind::Pager, &format!("cannot watch the VMM's userfaultfd: {errno}")),
        }
    }

    fn drain(&self) {
        if let Some(answers) = &self.answers {
            answers.drain();
        }
    }

    fn give_answers(&mut self, events: PollFlags, order: Order) {
        let Some(answers) = &mut self.answers else { return };
        let (draining, again) = (self.session.is_draining(), answers.is_busy());
        if !events.is_empty() && (draining || order == Order::Serve) {
            answers.turn(events);
            // A VMM that lives after all, and makes the descriptor blocking again and again.
            self.deaf = draining && events.contains(PollFlags::POLLERR);
        }
        answers.copy_supplies();
        if again {
            // The events that must be read first have been.
            answers.retry();
        }
        let [first, longest] = PAUSES;
        let pause = self.pause.map_or(first, |pause| (pause * 2).min(longest));
        self.pause = answers.is_busy().then_some(pause);
    }

    /// Sees whether a session that its owner has let go of can end, which is `false`: nearly always
    /// at once, for the address space of its VMM is gone by then.
    ///
    /// The pager holds on to the userfaultfd so long, and does not serve it: a VMM that still runs
    /// blocks at its next fault. When it has ended, whoever in the kernel still waits for a page
    /// gets zeros. See [`Answers::drain`] for what happened otherwise.
    fn leave(&mut self) -> bool {
        let session = Arc::clone(&self.session);
        session.beat.at_vmm(|| self.vmm.leave());
        let Some(answers) = &self.answers else { return false };
        if !answers.may_plant() {
            tracing::debug!(session = %session.name, "its address space is gone");
            return false;
        }
        if self.vmm.has_ended() {
            if session.is_draining() {
                answers.memory.wake_all();
            } else {
                answers.drain();
            }
        }
        true
    }

    /// Lets go of all that came from the VMM, which may wait for it.
    fn close(self) {
        drop(self.answers.map(Answers::close));
        drop(self.vmm);
    }
}
