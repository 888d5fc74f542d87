//! Context that all requests of an agent share.

use crate::config::Layout;
use crate::egress;
use crate::exec::Left;
use crate::threads::Threads;
use nix::unistd::Pid;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Between two looks whether a killed child has ended.
const REAP_PAUSE: Duration = Duration::from_millis(20);

/// How long the end of an open phase waits for killed children, and the pause between two looks.
const REAP_REST: Duration = Duration::from_secs(1);
const REAP_REST_PAUSE: Duration = Duration::from_millis(1);

/// State of one agent, for the requests of its open phases.
pub struct Context {
    /// Layout of the agent's files.
    pub layout: Layout,
    /// Whether this is a guest, whose kernel may be told to do things, or a test on a host.
    pub guest: bool,
    /// Session id of the last Hello.
    pub session: RefCell<String>,
    /// Threads for what can block.
    pub threads: Threads,
    /// Killed children whose handler is gone, until they are reaped.
    lost: RefCell<Vec<Pid>>,
    /// Told when there is one more of them.
    more_lost: Notify,
    /// Output of descendants of commands that have ended.
    pub left: Left,
    /// Listeners at which proxy clients and DNS queries arrive, while there is egress.
    pub egress: RefCell<Option<Rc<egress::Listeners>>>,
    /// Ending of the open phase, set by a request that ends it, once its answer is on the way.
    pub ending: Cell<Option<Ending>>,
}

/// Request of the engine for the time after the open phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Request to be parked.
    Park,
    /// Request to be powered off.
    PowerOff,
}

impl Context {
    /// Creates the context of an agent that has served nothing yet.
    pub fn new(layout: Layout, guest: bool) -> Self {
        Self {
            layout,
            guest,
            session: RefCell::default(),
            threads: Threads::new(),
            lost: RefCell::default(),
            more_lost: Notify::new(),
            left: Left::default(),
            egress: RefCell::default(),
            ending: Cell::new(None),
        }
    }

    /// Takes over a killed child whose handler is gone.
    pub fn lose(&self, pid: Pid) {
        self.lost.borrow_mut().push(pid);
        self.more_lost.notify_one();
    }

    /// Reaps killed children as they end, for as long as it is polled.
    pub async fn reap(&self) {
        loop {
            self.more_lost.notified().await;
            self.reap_lost();
            while !self.lost.borrow().is_empty() {
                tokio::time::sleep(REAP_PAUSE).await;
                self.reap_lost();
            }
        }
    }

    /// Reaps killed children, and waits for those that take a moment to end. What does not end stays.
    pub async fn reap_rest(&self) {
        let deadline = Instant::now() + REAP_REST;
        loop {
            self.reap_lost();
            if self.lost.borrow().is_empty() || Instant::now() >= deadline {
                return;
            }
            tokio::time::sleep(REAP_REST_PAUSE).await;
        }
    }

    /// Reaps killed children without waiting for them.
    pub fn reap_lost(&self) {
        use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
        self.lost.borrow_mut().retain(|pid| {
            matches!(waitpid(*pid, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive))
        });
    }
}
