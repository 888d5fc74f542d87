//! Page caches of the host, under one byte budget.
//!
//! # Eviction policy
//! Above the budget, chunks go one by one in this order, the one filled longest ago first within
//! each class:
//! 1. chunks outside the working set, of images no session uses;
//! 2. chunks outside the working set, of images in use;
//! 3. working-set chunks of images no session uses;
//! 4. working-set chunks of images in use.
//!
//! A fault may evict from every class; prefetch stops rather than take from the fourth. The order
//! is of fills, not of touches: a touch of a resident page is invisible to the pager, which is the
//! point of the cache.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use parking_lot::{Mutex, MutexGuard};

use crate::{
    config::MIN_BUDGET_CHUNKS,
    image::{Image, ImageError},
    session::Waiter,
    source::OpenedSource,
    stats::Counters,
};

/// What may be evicted for a fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Everything: a fault waits.
    Everything,
    /// All but working sets in use: nobody waits.
    Idle,
}

/// A chunk that eviction left to be filled, or waiters it left to be woken.
pub(crate) enum Leftover {
    Refill(Arc<Image<Waiter>>, u32),
    Resident(Arc<Image<Waiter>>, Vec<Waiter>),
}

/// Every page cache of the host.
pub(crate) struct Cache {
    images: Mutex<Vec<Arc<Image<Waiter>>>>,
    resident: Arc<AtomicU64>,
    budget: u64,
    fill_number: AtomicU64,
    pub counters: Arc<Counters>,
}

impl Cache {
    pub fn new(budget: u64) -> Self {
        Self {
            images: Mutex::new(Vec::new()),
            resident: Arc::new(AtomicU64::new(0)),
            budget,
            fill_number: AtomicU64::new(0),
            counters: Arc::new(Counters::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Image<Waiter>>>> {
        self.images.lock()
    }

    /// Acquires the image of `opened` for one more session, new when recording or not yet known.
    /// Pair it with [`Cache::release`].
    pub fn acquire(
        &self,
        golden: &str,
        opened: OpenedSource,
        record: bool,
    ) -> Result<Arc<Image<Waiter>>, ImageError> {
        let mut images = self.lock();
        let known =
            images.iter().find(|i| !record && !i.recording && i.key == opened.key && i.is_intact());
        let image = if let Some(image) = known {
            Arc::clone(image)
        } else {
            let image = Arc::new(Image::new(golden, opened, record, Arc::clone(&self.resident))?);
            images.push(Arc::clone(&image));
            image
        };
        image.sessions.fetch_add(1, Ordering::Relaxed);
        if !record {
            // An older image under the same name has been replaced.
            images.retain(|i| {
                Arc::ptr_eq(i, &image)
                    || i.golden != golden
                    || i.sessions.load(Ordering::Relaxed) > 0
            });
        }
        Ok(image)
    }

    /// Releases `image` for one session.
    pub fn release(&self, image: &Arc<Image<Waiter>>) {
        let mut images = self.lock();
        let last = image.sessions.fetch_sub(1, Ordering::Relaxed) == 1;
        let newest = images.iter().rfind(|i| !i.recording && i.golden == image.golden);
        let replaced = newest.is_some_and(|i| !Arc::ptr_eq(i, image));
        if last && (image.recording || image.is_condemned() || replaced) {
            images.retain(|i| !Arc::ptr_eq(i, image));
        }
    }

    /// Drops the page caches of `golden`. `Err`: so many sessions use it.
    pub fn forget(&self, golden: &str) -> Result<u64, usize> {
        let mut images = self.lock();
        let of = |i: &Arc<Image<Waiter>>| i.golden == golden;
        let users: usize =
            images.iter().filter(|i| of(i)).map(|i| i.sessions.load(Ordering::Relaxed)).sum();
        if users > 0 {
            return Err(users);
        }
        let bytes = images.iter().filter(|i| of(i)).map(|i| i.resident()).sum();
        images.retain(|i| !of(i));
        Ok(bytes)
    }

    pub fn images(&self) -> Vec<Arc<Image<Waiter>>> {
        self.lock().clone()
    }

    pub fn resident(&self) -> u64 {
        self.resident.load(Ordering::Relaxed)
    }

    /// Returns the budget in force: the configured one, but room for what one guest instruction can
    /// touch.
    pub fn budget(&self) -> u64 {
        let largest = self.lock().iter().map(|i| i.chunk_size()).max().unwrap_or(0);
        self.budget.max(largest * MIN_BUDGET_CHUNKS)
    }

    pub fn next_fill(&self) -> u64 {
        self.fill_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Evicts until the budget holds with `more` bytes on top of what is charged. `false`: it
    /// cannot, within `reach`.
    pub fn make_room(&self, more: u64, reach: Reach, leftovers: &mut Vec<Leftover>) -> bool {
        if self.resident() + more <= self.budget {
            return true;
        }
        let budget = self.budget();
        while self.resident() + more > budget {
            if self.evict_one(reach, leftovers).is_none() {
                return false;
            }
        }
        true
    }

    /// Evicts at least `bytes` if there are so many. Returns what was freed.
    pub fn evict(&self, bytes: u64, leftovers: &mut Vec<Leftover>) -> u64 {
        let mut freed = 0;
        while freed < bytes {
            match self.evict_one(Reach::Everything, leftovers) {
                Some(n) => freed += n,
                None => break,
            }
        }
        freed
    }

    fn evict_one(&self, reach: Reach, leftovers: &mut Vec<Leftover>) -> Option<u64> {
        let mut candidates: Vec<(u8, u64, Arc<Image<Waiter>>, bool)> = Vec::new();
        for image in self.lock().iter() {
            let in_use = image.sessions.load(Ordering::Relaxed) > 0;
            for working_set in [false, true] {
                let class = 1 + u8::from(in_use) + 2 * u8::from(working_set);
                if class == 4 && reach == Reach::Idle {
                    continue;
                }
                if let Some(filled) = image.oldest(working_set) {
                    candidates.push((class, filled, Arc::clone(image), working_set));
                }
            }
        }
        candidates.sort_unstable_by_key(|c| (c.0, c.1));
        for (_, _, image, working_set) in candidates {
            let Some(evicted) = image.evict(working_set) else {
                continue;
            };
            if evicted.bytes > 0 {
                Counters::add(&self.counters.evictions, 1);
            }
            if let Some(chunk) = evicted.refill {
                leftovers.push(Leftover::Refill(Arc::clone(&image), chunk));
            }
            if !evicted.kept.is_empty() {
                leftovers.push(Leftover::Resident(Arc::clone(&image), evicted.kept));
            }
            if evicted.bytes > 0 {
                return Some(evicted.bytes);
            }
        }
        None
    }
}
