//! Bound on the virtual machines that the tests of one process run at a time.

use std::sync::{Condvar, Mutex, PoisonError};

/// Virtual machines at a time: software emulation needs a processor for each.
pub const ALL: usize = 2;

static FREE: Mutex<usize> = Mutex::new(ALL);
static RETURNED: Condvar = Condvar::new();

/// The right to run some virtual machines, until dropped.
#[derive(Debug)]
#[must_use]
pub struct Slots(usize);

/// Waits for the right to run `count` virtual machines. With [`ALL`] the test has this process for
/// itself.
pub fn take(count: usize) -> Slots {
    assert!(count <= ALL, "{count} of {ALL} slots");
    let free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut free =
        RETURNED.wait_while(free, |free| *free < count).unwrap_or_else(PoisonError::into_inner);
    *free -= count;
    Slots(count)
}

impl Drop for Slots {
    fn drop(&mut self) {
        *FREE.lock().unwrap_or_else(PoisonError::into_inner) += self.0;
        RETURNED.notify_all();
    }
}
