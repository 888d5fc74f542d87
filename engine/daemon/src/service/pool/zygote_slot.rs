//! The zygote of a pool: when one is to be made, replaced or waited for.
//!
//! The first takes the quick steps alone, so that there is one soon. Another that takes all first
//! steps is made beside it on idle time and takes its place. One whose forks fail is replaced the
//! same way; one that is lost leaves its place empty, and requests wait for the next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_engine::golden::Extent;

/// Forks in a row that may fail before another zygote is made.
const SUSPECT: u32 = 5;
/// A zygote that dies before it has made so many forks counts as one that could not be made.
const YOUNG: u64 = 16;
/// After a zygote could not be made the next try waits this long, and twice as long after each
/// further failure.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(60);
/// The longest wait for one that takes all first steps, each try of which may take minutes.
const RETRY_LONGEST_ALL: Duration = Duration::from_secs(1800);

/// The zygote of a pool.
#[derive(Debug)]
pub(super) struct ZygoteSlot<Z> {
    current: Option<Current<Z>>,
    /// Whether VMMs can be forked here at all.
    possible: bool,
    /// Failures to make one that takes the quick steps, and one that takes all.
    quick: Failures,
    all: Failures,
}

#[derive(Debug)]
struct Current<Z> {
    zygote: Arc<Z>,
    extent: Extent,
    /// Bytes of its own.
    memory: u64,
}

/// What a slot has to know of a zygote.
pub(super) trait Forkable {
    /// Whether it is of no use any more.
    fn is_dead(&self) -> bool;
    /// Forks that it made.
    fn forks(&self) -> u64;
    /// Forks in a row that it did not make.
    fn failed_forks(&self) -> u32;
}

/// Failures in a row.
#[derive(Debug, Default)]
struct Failures {
    count: u32,
    /// No other try is made before then.
    not_before: Option<Instant>,
}

impl Failures {
    fn add(&mut self, now: Instant, longest: Duration) {
        let wait = RETRY_FIRST.saturating_mul(1 << self.count.min(16)).min(longest);
        self.count += 1;
        self.not_before = Some(now + wait);
    }

    fn are_over(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|until| until <= now)
    }
}

impl<Z: Forkable> ZygoteSlot<Z> {
    /// An empty slot; for ever when `possible` is not set.
    pub fn new(possible: bool) -> Self {
        let (quick, all) = (Failures::default(), Failures::default());
        Self { current: None, possible, quick, all }
    }

    /// Returns the zygote.
    pub fn get(&self) -> Option<&Arc<Z>> {
        self.current.as_ref().map(|current| &current.zygote)
    }

    /// Returns what of the first steps the zygote has taken.
    pub fn extent(&self) -> Option<Extent> {
        self.current.as_ref().map(|current| current.extent)
    }

    /// Returns its bytes of its own.
    pub fn memory(&self) -> u64 {
        self.current.as_ref().map_or(0, |current| current.memory)
    }

    /// Returns which zygote is to be made now.
    pub fn wanted(&self, now: Instant) -> Option<Extent> {
        let wanted = match &self.current {
            _ if !self.possible => return None,
            Some(current) if current.is_good() => {
                (current.extent != Extent::All).then_some(Extent::All)?
            }
            _ => Extent::Quick,
        };
        let failures = if wanted == Extent::All { &self.all } else { &self.quick };
        failures.are_over(now).then_some(wanted)
    }

    /// Whether there is none, but is to be one soon.
    pub fn is_coming(&self, now: Instant) -> bool {
        self.current.as_ref().is_none_or(|current| current.zygote.is_dead())
            && self.wanted(now).is_some()
    }

    /// Puts a zygote in place; returns the one that was there, or this one when that is the better.
    pub fn put(
        &mut self,
        zygote: Arc<Z>,
        extent: Extent,
        memory: u64,
        now: Instant,
    ) -> Option<Arc<Z>> {
        match &self.current {
            Some(current)
                if current.is_good() && current.extent == Extent::All && extent != Extent::All =>
            {
                return Some(zygote);
            }
            Some(current) if current.is_good() => {}
            // Its successor may do no better.
            Some(_) => self.quick.add(now, RETRY_LONGEST),
            None => {}
        }
        if extent == Extent::All {
            self.all = Failures::default();
        }
        let current = Current { zygote, extent, memory };
        self.current.replace(current).map(|old| old.zygote)
    }

    /// Takes note that a zygote could not be made. The one that is there stays.
    pub fn failed(&mut self, extent: Extent, now: Instant) {
        match extent {
            Extent::All => self.all.add(now, RETRY_LONGEST_ALL),
            Extent::Start | Extent::Quick => self.quick.add(now, RETRY_LONGEST),
        }
    }

    /// Takes note that VMMs cannot be forked here.
    pub fn rule_out(&mut self) {
        self.possible = false;
    }

    /// Takes out a zygote that is dead.
    pub fn take_dead(&mut self, now: Instant) -> Option<Arc<Z>> {
        let dead = self.current.take_if(|current| current.zygote.is_dead())?;
        if dead.zygote.forks() >= YOUNG {
            self.quick = Failures::default();
        } else {
            self.failed(Extent::Quick, now);
            if dead.extent == Extent::All {
                self.failed(Extent::All, now);
            }
        }
        Some(dead.zygote)
    }

    /// Takes out the zygote.
    pub fn take(&mut self) -> Option<Arc<Z>> {
        self.current.take().map(|current| current.zygote)
    }
}

impl<Z: Forkable> Current<Z> {
    fn is_good(&self) -> bool {
        self.zygote.failed_forks() < SUSPECT && !self.zygote.is_dead()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use super::*;

    /// What a pool would see of a zygote.
    #[derive(Debug, Default)]
    struct Seen {
        dead: AtomicBool,
        forks: AtomicU32,
        failed: AtomicU32,
    }

    impl Forkable for Seen {
        fn is_dead(&self) -> bool {
            self.dead.load(Ordering::Relaxed)
        }

        fn forks(&self) -> u64 {
            self.forks.load(Ordering::Relaxed).into()
        }

        fn failed_forks(&self) -> u32 {
            self.failed.load(Ordering::Relaxed)
        }
    }

    fn is(slot: &ZygoteSlot<Seen>, zygote: &Arc<Seen>) -> bool {
        slot.get().is_some_and(|own| Arc::ptr_eq(own, zygote))
    }

    #[test]
    fn a_quick_one_comes_first_and_is_replaced_by_one_with_all_steps() {
        let (now, mut slot) = (Instant::now(), ZygoteSlot::new(true));
        let [quick, all] = [0, 1].map(|_| Arc::new(Seen::default()));
        assert_eq!((slot.wanted(now), slot.is_coming(now)), (Some(Extent::Quick), true));
        assert!(slot.put(quick.clone(), Extent::Quick, 7, now).is_none());
        assert_eq!((slot.wanted(now), slot.is_coming(now)), (Some(Extent::All), false));
        // It could not be made, and not at the next try either: the first goes on.
        slot.failed(Extent::All, now);
        slot.failed(Extent::All, now);
        assert!(is(&slot, &quick) && slot.wanted(now + RETRY_FIRST).is_none());
        assert_eq!(slot.wanted(now + 2 * RETRY_FIRST), Some(Extent::All));
        assert!(
            slot.put(all.clone(), Extent::All, 8, now).is_some_and(|old| Arc::ptr_eq(&old, &quick))
        );
        assert_eq!((slot.wanted(now + RETRY_LONGEST), slot.memory()), (None, 8));
        // One that comes late is not put in its place.
        let late = Arc::new(Seen::default());
        assert!(
            slot.put(late.clone(), Extent::Quick, 9, now)
                .is_some_and(|old| Arc::ptr_eq(&old, &late))
        );
        assert!(is(&slot, &all) && slot.take().is_some() && slot.get().is_none());
        let never = ZygoteSlot::<Seen>::new(false);
        assert_eq!((never.wanted(now), never.is_coming(now)), (None, false));
    }

    #[test]
    fn one_that_does_not_fork_is_replaced_while_it_serves() {
        let (now, mut slot) = (Instant::now(), ZygoteSlot::new(true));
        let [first, second] = [0, 1].map(|_| Arc::new(Seen::default()));
        slot.put(first.clone(), Extent::All, 0, now);
        first.failed.store(SUSPECT - 1, Ordering::Relaxed);
        assert_eq!(slot.wanted(now), None);
        first.failed.store(SUSPECT, Ordering::Relaxed);
        assert_eq!((slot.wanted(now), slot.is_coming(now)), (Some(Extent::Quick), false));
        assert!(is(&slot, &first));
        slot.put(second.clone(), Extent::Quick, 0, now);
        assert!(is(&slot, &second));
        // If that does no better, the next waits.
        second.failed.store(SUSPECT, Ordering::Relaxed);
        assert_eq!((slot.wanted(now), slot.wanted(now + RETRY_FIRST)), (None, Some(Extent::Quick)));
    }

    #[test]
    fn a_dead_one_is_replaced_at_once_unless_it_died_young() {
        let (now, mut slot) = (Instant::now(), ZygoteSlot::new(true));
        let [young, old] = [0, 1].map(|_| Arc::new(Seen::default()));
        slot.put(young.clone(), Extent::Quick, 0, now);
        assert!(slot.take_dead(now).is_none());
        young.dead.store(true, Ordering::Relaxed);
        assert!(slot.is_coming(now), "a dead one is none");
        assert!(slot.take_dead(now).is_some());
        assert!(!slot.is_coming(now));
        let now = now + RETRY_LONGEST;
        assert!(slot.is_coming(now));
        slot.put(old.clone(), Extent::Quick, 0, now);
        old.forks.store(u32::try_from(YOUNG).unwrap(), Ordering::Relaxed);
        old.dead.store(true, Ordering::Relaxed);
        assert!(slot.take_dead(now).is_some() && slot.is_coming(now));
    }

    #[test]
    fn failures_wait_longer_each_time_and_not_for_ever() {
        let (mut now, mut slot) = (Instant::now(), ZygoteSlot::<Seen>::new(true));
        let mut waits = Vec::new();
        for _ in 0..40 {
            slot.failed(Extent::Quick, now);
            let wait = (0..=60).find(|s| slot.is_coming(now + Duration::from_secs(*s))).unwrap();
            now += Duration::from_secs(wait);
            waits.push(wait);
        }
        assert_eq!(waits[..8], [1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
