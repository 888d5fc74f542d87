//! The threads of the sessions: one for each, from its attachment until nothing of its VMM is left
//! to be seen to.

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use crate::{
    fatal, faults::FaultThread, fill::FillPool, mailbox::Order, session::Session, vmm::Vmm,
};

/// Of each thread. A host has hundreds, and none calls anything deep.
const STACK: usize = 256 << 10;

/// The sessions whose threads run.
pub(crate) struct Threads {
    pool: Arc<FillPool>,
    running: Mutex<HashMap<u64, Arc<Session>>>,
    ended: Condvar,
}

impl Threads {
    pub fn new(pool: Arc<FillPool>) -> Self {
        Self { pool, running: Mutex::default(), ended: Condvar::new() }
    }

    /// Starts the thread of a session whose VMM is expected.
    pub fn start(self: &Arc<Self>, session: &Arc<Session>, vmm: Vmm) -> io::Result<()> {
        let (threads, id) = (Arc::clone(self), session.id);
        let thread = FaultThread::new(Arc::clone(session), Arc::clone(&self.pool), vmm);
        self.running.lock().insert(id, Arc::clone(session));
        let started = std::thread::Builder::new()
            .name(format!("faults-{id}"))
            .stack_size(STACK)
            .spawn(move || {
                let _guard = fatal::EndOnPanic("faults");
                thread.run();
                threads.remove(id);
            });
        if started.is_err() {
            self.remove(id);
        }
        started.map(drop)
    }

    fn remove(&self, id: u64) {
        self.running.lock().remove(&id);
        self.ended.notify_all();
    }

    pub fn is_empty(&self) -> bool {
        self.running.lock().is_empty()
    }

    pub fn running(&self) -> Vec<Arc<Session>> {
        self.running.lock().values().cloned().collect()
    }

    /// Makes all threads end. Waits for them no longer than `limit`: one whose VMM keeps its lock
    /// ends when the VMM does.
    pub fn stop(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut running = self.running.lock();
        running.values().for_each(|session| session.mailbox.give(Order::Stop));
        while !running.is_empty() {
            if self.ended.wait_until(&mut running, end).timed_out() {
                let left = running.len();
                return tracing::warn!(left, "threads are left that wait for their VMMs");
            }
        }
    }
}
