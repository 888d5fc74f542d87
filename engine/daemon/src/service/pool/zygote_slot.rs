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
/// After a zygote could not be made the next try waits this long, and twice as long after each
/// further failure.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(60);

/// The zygote of a pool.
#[derive(Debug)]
pub(super) struct ZygoteSlot<Z> {
    current: Option<Current<Z>>,
    /// Whether VMMs can be forked here at all.
    possible: bool,
    /// None is made before then, after so many failures.
    not_before: Option<Instant>,
    failures: u32,
}

#[derive(Debug)]
struct Current<Z> {
    zygote: Arc<Z>,
    extent: Extent,
    /// Bytes of its own.
    memory: u64,
    forks: u64,
    /// Forks in a row that failed.
    failed: u32,
}

impl<Z> ZygoteSlot<Z> {
    /// An empty slot; for ever when `possible` is not set.
    pub fn new(possible: bool) -> Self {
        Self { current: None, possible, not_before: None, failures: 0 }
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
        if !self.possible || self.not_before.is_some_and(|until| now < until) {
            return None;
        }
        match &self.current {
            None => Some(Extent::Quick),
            Some(current) if current.failed >= SUSPECT => Some(Extent::Quick),
            Some(current) => (current.extent == Extent::Quick).then_some(Extent::All),
        }
    }

    /// Whether there is none, but is to be one soon.
    pub fn is_coming(&self, now: Instant) -> bool {
        self.current.is_none() && self.wanted(now).is_some()
    }

    /// Puts a zygote in place; returns the one that was there.
    pub fn put(&mut self, zygote: Arc<Z>, extent: Extent, memory: u64) -> Option<Arc<Z>> {
        let current = Current { zygote, extent, memory, forks: 0, failed: 0 };
        self.current.replace(current).map(|old| old.zygote)
    }

    /// Takes note that a zygote could not be made. The one that is there stays.
    pub fn failed(&mut self, now: Instant) {
        let wait = RETRY_FIRST.saturating_mul(1 << self.failures.min(16)).min(RETRY_LONGEST);
        self.failures += 1;
        self.not_before = Some(now + wait);
    }

    /// Takes note that VMMs cannot be forked here.
    pub fn is_impossible(&mut self) {
        self.possible = false;
    }

    /// Takes note of how a fork of `zygote` went.
    pub fn forked(&mut self, zygote: &Arc<Z>, went_well: bool) {
        let Some(current) = self.current.as_mut().filter(|own| Arc::ptr_eq(&own.zygote, zygote))
        else {
            return;
        };
        if went_well {
            current.failed = 0;
            current.forks += 1;
            self.failures = 0;
        } else {
            current.failed += 1;
        }
    }

    /// Takes out a zygote that is dead. One that never forked counts as one that could not be made.
    pub fn take_dead(&mut self, now: Instant, is_dead: impl Fn(&Z) -> bool) -> Option<Arc<Z>> {
        let dead = self.current.take_if(|current| is_dead(&current.zygote))?;
        if dead.forks == 0 {
            self.failed(now);
        }
        Some(dead.zygote)
    }

    /// Takes out the zygote.
    pub fn take(&mut self) -> Option<Arc<Z>> {
        self.current.take().map(|current| current.zygote)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_dead(dead: u32) -> impl Fn(&u32) -> bool {
        move |zygote| *zygote == dead
    }

    #[test]
    fn a_quick_one_comes_first_and_is_replaced_by_one_with_all_steps() {
        let (now, mut slot) = (Instant::now(), ZygoteSlot::new(true));
        assert_eq!((slot.wanted(now), slot.is_coming(now)), (Some(Extent::Quick), true));
        assert!(slot.put(Arc::new(1), Extent::Quick, 7).is_none());
        assert_eq!((slot.wanted(now), slot.is_coming(now)), (Some(Extent::All), false));
        // It could not be made: the first goes on.
        slot.failed(now);
        assert_eq!((slot.wanted(now), slot.get().map(|zygote| **zygote)), (None, Some(1)));
        assert_eq!(slot.wanted(now + RETRY_FIRST), Some(Extent::All));
        assert_eq!(slot.put(Arc::new(2), Extent::All, 8).as_deref(), Some(&1));
        assert_eq!((slot.wanted(now + RETRY_LONGEST), slot.memory()), (None, 8));
        assert_eq!(slot.take().as_deref(), Some(&2));
        let never = ZygoteSlot::<u32>::new(false);
        assert_eq!((never.wanted(now), never.is_coming(now)), (None, false));
    }

    #[test]
    fn forks_that_fail_replace_it_and_one_that_died_young_makes_the_next_wait() {
        let (now, mut slot) = (Instant::now(), ZygoteSlot::new(true));
        let first = Arc::new(1);
        slot.put(first.clone(), Extent::All, 0);
        (1..SUSPECT).for_each(|_| slot.forked(&first, false));
        assert_eq!(slot.wanted(now), None);
        // Not in a row.
        slot.forked(&first, true);
        (0..SUSPECT).for_each(|_| slot.forked(&first, false));
        assert_eq!((slot.wanted(now), slot.is_coming(now)), (Some(Extent::Quick), false));
        slot.put(Arc::new(2), Extent::Quick, 0);
        // Of one that is not there any more nothing is noted.
        (0..SUSPECT).for_each(|_| slot.forked(&first, false));
        assert_eq!(slot.wanted(now), Some(Extent::All));

        assert!(slot.take_dead(now, is_dead(1)).is_none());
        assert_eq!(slot.take_dead(now, is_dead(2)).as_deref(), Some(&2));
        assert_eq!((slot.is_coming(now), slot.is_coming(now + RETRY_FIRST)), (false, true));
        let third = Arc::new(3);
        slot.put(third.clone(), Extent::Quick, 0);
        slot.forked(&third, true);
        slot.take_dead(now + RETRY_FIRST, is_dead(3)).unwrap();
        assert!(slot.is_coming(now + RETRY_FIRST), "one that had forks is replaced at once");
    }

    #[test]
    fn failures_wait_longer_each_time_and_not_for_ever() {
        let (mut now, mut slot) = (Instant::now(), ZygoteSlot::<u32>::new(true));
        let mut waits = Vec::new();
        for _ in 0..40 {
            slot.failed(now);
            let wait = (0..=60).find(|s| slot.is_coming(now + Duration::from_secs(*s))).unwrap();
            now += Duration::from_secs(wait);
            waits.push(wait);
        }
        assert_eq!(waits[..8], [1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
