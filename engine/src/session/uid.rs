//! User ids for VMM processes: each session its own, from a range nobody else uses.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// First user id of VMM processes, unless configured otherwise. Above what useradd(8), systemd (`systemd.io/UIDS-GIDS`)
/// and container runtimes hand out.
pub const DEFAULT_FIRST: u32 = 0x7000_0000;
/// Default number of user ids, and thereby of sessions of one engine at a time.
pub const DEFAULT_COUNT: u32 = 4096;

/// Hands out user ids; the lowest free one first. One engine's pool starts at a place that depends on its process id, so
/// that two engines on a host rarely share ids.
#[derive(Debug)]
pub struct UidPool {
    first: u32,
    count: u32,
    used: Mutex<BTreeSet<u32>>,
}

/// All ids of the range are in use.
#[derive(Debug, thiserror::Error)]
#[error("{0} sessions are running, as many as there are user ids for them")]
pub struct NoUid(u32);

impl Default for UidPool {
    fn default() -> Self {
        let slot = std::process::id() % 0x1000;
        Self::new(DEFAULT_FIRST + slot * DEFAULT_COUNT, DEFAULT_COUNT)
    }
}

impl UidPool {
    /// A pool of `count` ids from `first` on.
    pub fn new(first: u32, count: u32) -> Self {
        Self { first, count, used: Mutex::default() }
    }

    /// Takes a free id; it returns to the pool when dropped.
    ///
    /// # Errors
    /// [`NoUid`] when all are in use.
    pub fn take(self: &Arc<Self>) -> Result<Uid, NoUid> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let free = (self.first..self.first + self.count).find(|id| !used.contains(id));
        let id = free.ok_or(NoUid(self.count))?;
        used.insert(id);
        Ok(Uid { id, pool: self.clone() })
    }
}

/// A user id in use.
#[derive(Debug)]
pub struct Uid {
    id: u32,
    pool: Arc<UidPool>,
}

impl Uid {
    /// The number.
    pub fn get(&self) -> u32 {
        self.id
    }
}

impl Drop for Uid {
    fn drop(&mut self) {
        self.pool.used.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_exclusive_and_come_back() {
        let pool = Arc::new(UidPool::new(100, 2));
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        assert_eq!((a.get(), b.get()), (100, 101));
        assert!(pool.take().is_err());
        drop(a);
        assert_eq!(pool.take().unwrap().get(), 100);
    }
}
