//! The end of a stream of bytes, in bounded memory, addressed by absolute offsets.

use std::collections::VecDeque;

use super::shares::{Account, Share};

/// Keeps the last bytes of a stream: `capacity` of them, or as many as its tenant may hold.
#[derive(Debug)]
pub(super) struct Ring {
    bytes: VecDeque<u8>,
    capacity: usize,
    /// What may be kept now.
    share: Share,
    /// Offset of the first kept byte in the whole stream.
    start: u64,
}

impl Ring {
    /// Creates a ring that keeps at least `least` bytes and at most `capacity`; `None` when the tenant may not
    /// hold so much as the least.
    pub fn new(account: &Account, least: usize, capacity: usize) -> Option<Self> {
        Some(Self { bytes: VecDeque::new(), capacity, share: account.take(least)?, start: 0 })
    }

    /// Returns how many bytes are kept.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the offset behind the last byte: how much the stream has had so far.
    pub fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    pub fn push(&mut self, new: &[u8]) {
        let end = self.end() + new.len() as u64;
        self.make_room(new.len());
        let most = self.share.amount();
        let kept = &new[new.len().saturating_sub(most)..];
        let excess = (self.bytes.len() + kept.len()).saturating_sub(most);
        self.bytes.drain(..excess);
        self.bytes.extend(kept);
        self.start = end - self.bytes.len() as u64;
    }

    /// Doubles what may be kept until `more` bytes fit beside the others, as far as that goes. Where
    /// the tenant holds too much, older bytes make room instead: the command need not wait.
    fn make_room(&mut self, more: usize) {
        let wanted = (self.bytes.len() + more).min(self.capacity);
        while self.share.amount() < wanted {
            let step = self.share.amount().max(1).min(self.capacity - self.share.amount());
            if !self.share.grow(step) {
                break;
            }
        }
        let room = self.share.amount().saturating_sub(self.bytes.len());
        if self.bytes.capacity() < self.share.amount() && more > 0 {
            self.bytes.reserve_exact(room);
        }
    }

    /// Returns all that is kept.
    pub fn kept(&mut self) -> &[u8] {
        self.bytes.make_contiguous()
    }

    /// Keeps at most `most` bytes from now on, and gives back what others took.
    pub fn shrink(&mut self, most: usize) {
        let excess = self.bytes.len().saturating_sub(most);
        self.bytes.drain(..excess);
        self.bytes.shrink_to_fit();
        self.start += excess as u64;
        self.capacity = self.capacity.min(most);
        self.share.shrink(self.bytes.capacity());
    }

    /// Reads at most `limit` bytes from `offset` on, or from the oldest kept byte when that is
    /// later, with the offset of the first byte returned. An offset beyond the end yields nothing,
    /// at the end.
    pub fn read(&self, offset: u64, limit: usize) -> (u64, Vec<u8>) {
        let from = offset.clamp(self.start, self.end());
        // Within the kept bytes, whose number is a usize.
        let skip = usize::try_from(from - self.start).unwrap_or(usize::MAX);
        (from, self.bytes.iter().skip(skip).take(limit).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use mayfly_api::TenantName;
    use proptest::prelude::*;

    use super::*;
    use crate::service::shares::Shares;

    #[test]
    fn a_stream_keeps_less_where_its_tenant_may_hold_less() {
        let account = Shares::new(1000, []).account(&TenantName::local(), None);
        let other = account.take(910).unwrap();
        let mut ring = Ring::new(&account, 20, 100).unwrap();
        ring.push(&[1; 300]);
        assert_eq!((ring.end(), ring.read(0, 1000).1.len()), (300, 80));
        assert!(account.held() <= 1000 && Ring::new(&account, 21, 100).is_none());
        // And more once that may.
        drop(other);
        ring.push(&[2; 300]);
        assert_eq!(ring.read(0, 1000), (500, vec![2; 100]));
        drop(ring);
        assert_eq!(account.held(), 0);
    }

    proptest! {
        #[test]
        fn is_the_end_of_everything_pushed(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..30),
            capacity in 1usize..64,
            offset in 0u64..1500,
            limit in 0usize..100,
        ) {
            let account = Shares::new(1 << 20, []).account(&TenantName::local(), None);
            let mut ring = Ring::new(&account, 1, capacity).unwrap();
            let mut all = Vec::new();
            for piece in &pieces {
                ring.push(piece);
                all.extend_from_slice(piece);
                prop_assert!(ring.bytes.len() <= account.held() && account.held() <= capacity);
            }
            prop_assert_eq!(ring.end(), all.len() as u64);
            let (from, bytes) = ring.read(offset, limit);
            let oldest = all.len().saturating_sub(capacity);
            let expected_from = usize::try_from(offset).unwrap().clamp(oldest, all.len());
            prop_assert_eq!(from, expected_from as u64);
            let expected: Vec<u8> = all[expected_from..].iter().take(limit).copied().collect();
            prop_assert_eq!(bytes, expected);
        }
    }
}
