//! What other threads have for the thread of a session.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicU8, Ordering},
    time::Instant,
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

/// What the thread is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Order {
    /// Serve the VMM.
    Serve = 0,
    /// The owner has let go: hold the userfaultfd for as long as it is needed, then end.
    Leave = 1,
    /// End.
    Stop = 2,
}

/// A chunk that a fault waited for, resident and pinned, to be copied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Supply {
    pub chunk: u32,
    /// When the fault was read.
    pub since: Instant,
}

/// The orders and supplies of a session's thread. Posting waits for nothing.
pub(crate) struct Mailbox {
    kick: EventFd,
    order: AtomicU8,
    /// No more than [`crate::session::MAX_WAITING`]. `None`: the thread takes no more.
    supplies: Mutex<Option<Vec<Supply>>>,
}

impl Mailbox {
    pub fn new() -> nix::Result<Self> {
        let kick = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let (order, supplies) = (AtomicU8::new(Order::Serve as u8), Mutex::new(Some(Vec::new())));
        Ok(Self { kick, order, supplies })
    }

    fn kick(&self) {
        // Fails when it has been kicked so often that it is readable anyway.
        let _ = self.kick.write(1);
    }

    /// Gives an order; a weaker one than before changes nothing.
    pub fn give(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::AcqRel);
        self.kick();
    }

    pub fn order(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            0 => Order::Serve,
            1 => Order::Leave,
            _ => Order::Stop,
        }
    }

    /// Returns whether the thread will take the supply.
    pub fn post(&self, supply: Supply) -> bool {
        let posted = self.supplies.lock().as_mut().map(|supplies| supplies.push(supply)).is_some();
        self.kick();
        posted
    }

    /// Readable when there is something new; for the thread to wait on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// Makes it unreadable again; to be called before looking what is there.
    pub fn clear(&self) {
        let _ = self.kick.read();
    }

    pub fn take(&self) -> Vec<Supply> {
        self.supplies.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes the last ones.
    pub fn close(&self) -> Vec<Supply> {
        self.supplies.lock().take().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_taken_after_the_end_and_no_order_is_taken_back() {
        let mailbox = Mailbox::new().unwrap();
        let supply = |chunk| Supply { chunk, since: Instant::now() };
        assert!(mailbox.post(supply(1)) && mailbox.post(supply(2)));
        assert_eq!(mailbox.take().iter().map(|s| s.chunk).collect::<Vec<_>>(), [1, 2]);
        assert!(mailbox.take().is_empty() && mailbox.post(supply(3)));
        assert_eq!(mailbox.close().len(), 1);
        assert!(!mailbox.post(supply(4)) && mailbox.take().is_empty());
        assert_eq!(mailbox.order(), Order::Serve);
        for (given, holds) in [
            (Order::Leave, Order::Leave),
            (Order::Serve, Order::Leave),
            (Order::Stop, Order::Stop),
            (Order::Leave, Order::Stop),
        ] {
            mailbox.give(given);
            assert_eq!(mailbox.order(), holds);
        }
    }
}
