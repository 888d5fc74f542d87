//! Connections of read-only stores, and how long one of them may show the same state.
//!
//! While a view is open, the writer can append to its log but not begin it anew. So that a
//! forgotten reader does not let the log grow for ever, a thread closes each view after
//! [`LIFETIME`]; what uses it next gets a new one.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::Connection;

/// How long a view stays at most.
const LIFETIME: Duration = Duration::from_secs(30);

/// A connection that may be closed between two uses.
pub(crate) type Slot = Mutex<Option<Connection>>;

/// The views that are open, oldest first.
static OPEN: Mutex<Views> = Mutex::new(Views { views: Vec::new(), watched: false });

struct Views {
    views: Vec<(Instant, Weak<Slot>)>,
    /// Whether the thread runs.
    watched: bool,
}

/// Has the view that was just put into `slot` closed after [`LIFETIME`], should it be there still.
pub(crate) fn limit(slot: &Arc<Slot>) {
    let mut open = OPEN.lock();
    // As many as there are stores: one that was dropped, or got another view, has no other entry.
    open.views.retain(|(_, other)| {
        other.strong_count() > 0 && !std::ptr::eq(other.as_ptr(), Arc::as_ptr(slot))
    });
    open.views.push((Instant::now(), Arc::downgrade(slot)));
    if !open.watched {
        let spawned = thread::Builder::new().name("store-views".to_owned()).spawn(watch);
        open.watched = spawned.is_ok();
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread could be started; a read-only store is not closed while nothing uses it");
        }
    }
}

fn watch() {
    loop {
        let mut open = OPEN.lock();
        let (overdue, next) = open.take_overdue(Instant::now());
        open.watched = next.is_some();
        drop(open);
        for slot in overdue {
            // Waits for what uses it now, which is one look-up or one walk over a table.
            *slot.lock() = None;
        }
        let Some(next) = next else { return };
        thread::sleep(next);
    }
}

impl Views {
    /// The views that are too old at `now`, and how long until the next one is; `None` when no
    /// other is left.
    fn take_overdue(&mut self, now: Instant) -> (Vec<Arc<Slot>>, Option<Duration>) {
        let left = |opened: &Instant| LIFETIME.checked_sub(now.saturating_duration_since(*opened));
        let is_overdue = |opened: &Instant| left(opened).is_none_or(|left| left.is_zero());
        let overdue = self
            .views
            .iter()
            .filter(|view| is_overdue(&view.0))
            .filter_map(|view| view.1.upgrade())
            .collect();
        self.views.retain(|(opened, slot)| !is_overdue(opened) && slot.strong_count() > 0);
        (overdue, self.views.first().and_then(|view| left(&view.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_overdue_after_its_lifetime_and_one_that_was_dropped_never() {
        let start = Instant::now();
        let slots: Vec<Arc<Slot>> = (0..3).map(|_| Arc::default()).collect();
        let after = |millis| start + Duration::from_millis(millis);
        let views = slots
            .iter()
            .zip([0, 10, 20])
            .map(|(slot, at)| (after(at), Arc::downgrade(slot)))
            .collect();
        let mut views = Views { views, watched: true };
        let (overdue, next) = views.take_overdue(after(5));
        assert_eq!((overdue.len(), next), (0, Some(LIFETIME - Duration::from_millis(5))));
        let (overdue, next) = views.take_overdue(start + LIFETIME);
        assert!(overdue.len() == 1 && Arc::ptr_eq(&overdue[0], &slots[0]));
        assert_eq!(next, Some(Duration::from_millis(10)));
        drop(slots);
        let (overdue, next) = views.take_overdue(start + 2 * LIFETIME);
        assert_eq!((overdue.len(), next, views.views.len()), (0, None, 0));
    }
}
