//! Sessions that their owner has let go of, until the address space of their VMM is gone.
//!
//! The pager holds on to their userfaultfd so long, and does not serve them: a VMM that still runs
//! blocks at its next fault. When it has ended, whoever in the kernel still waits for a page gets
//! zeros. See [`Session::drain`] for what happened otherwise.

use std::{collections::HashMap, os::fd::OwnedFd, sync::Arc};

use crate::{faults::FaultLoop, session::Session};

/// There is at most one for each VMM that lives.
pub(crate) struct Leaving {
    faults: Arc<FaultLoop>,
    sessions: HashMap<u64, Left>,
}

struct Left {
    session: Arc<Session>,
    /// What tells of the VMM's end. `None`: it has ended.
    vmm: Option<OwnedFd>,
}

impl Leaving {
    pub fn new(faults: Arc<FaultLoop>) -> Self {
        Self { faults, sessions: HashMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Takes over the session of connection `id`, with the watched descriptor that tells of its
    /// VMM's end, `None` when it has ended. Nearly always its address space is gone by now, and
    /// nothing is kept.
    pub fn add(&mut self, id: u64, session: Arc<Session>, vmm: Option<OwnedFd>) {
        if !session.may_plant() {
            return;
        }
        if vmm.is_none() {
            self.faults.drain(&session);
        }
        self.sessions.insert(id, Left { session, vmm });
    }

    /// Takes note that the VMM of connection `id` has ended.
    pub fn vmm_ended(&mut self, id: u64) {
        if let Some(left) = self.sessions.get_mut(&id) {
            left.vmm = None;
            self.faults.drain(&left.session);
        }
    }

    /// Lets go of the sessions whose address space is gone.
    pub fn see_off(&mut self) {
        self.sessions.retain(|_, left| {
            if left.session.may_plant() {
                if left.vmm.is_none() {
                    left.session.wake_all();
                }
                return true;
            }
            self.faults.forget(&left.session);
            tracing::debug!(session = %left.session.name, "its address space is gone");
            false
        });
    }
}
