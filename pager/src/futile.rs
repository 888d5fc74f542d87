//! How it is noticed that a VMM maps something else than the page cache.

/// How many faults on resident chunks a session may have before its mapping is taken to be of
/// another file.
const FUTILE_WAKES: u32 = 4096;
/// How many of them each fill that is newer than all before it makes up for: threads that faulted
/// on the chunk just before it was filled, and are read after.
const WAKES_PER_FILL: u32 = 128;

/// Faults of a session on resident chunks, less what its fills account for. A VMM that maps
/// something else than the page-cache file would fault there for ever, on one page or on many in
/// turn.
#[derive(Default)]
pub(crate) struct Futile {
    /// The newest fill whose chunk such a fault was on.
    newest: u64,
    count: u32,
}

impl Futile {
    /// One more, on a chunk of fill `filled`; whether it is one too many.
    pub fn note(&mut self, filled: u64) -> bool {
        if filled > self.newest {
            self.newest = filled;
            self.count = self.count.saturating_sub(WAKES_PER_FILL);
        }
        self.count = self.count.saturating_add(1);
        self.count > FUTILE_WAKES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_on_resident_chunks_add_up_whichever_pages_they_are_on() {
        let mut futile = Futile::default();
        let last = (0..2 * u64::from(FUTILE_WAKES)).map(|n| futile.note(1 + n % 3)).last();
        assert_eq!(last, Some(true));
        // Many threads that waited for chunk after chunk.
        let mut honest = Futile::default();
        for fill in 1..10_000 {
            for _ in 0..WAKES_PER_FILL {
                assert!(!honest.note(fill));
                assert!(honest.count <= 2 * WAKES_PER_FILL);
            }
        }
    }
}
