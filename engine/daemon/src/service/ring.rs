//! The end of a stream of bytes, in bounded memory, addressed by absolute offsets.

use std::collections::VecDeque;

/// Keeps the last `capacity` bytes of a stream.
#[derive(Debug)]
pub(super) struct Ring {
    bytes: VecDeque<u8>,
    capacity: usize,
    /// Offset of the first kept byte in the whole stream.
    start: u64,
}

impl Ring {
    pub fn new(capacity: usize) -> Self {
        Self { bytes: VecDeque::new(), capacity, start: 0 }
    }

    /// Returns the offset behind the last byte: how much the stream has had so far.
    pub fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    pub fn push(&mut self, new: &[u8]) {
        let end = self.end() + new.len() as u64;
        let kept = &new[new.len().saturating_sub(self.capacity)..];
        let excess = (self.bytes.len() + kept.len()).saturating_sub(self.capacity);
        self.bytes.drain(..excess);
        self.bytes.extend(kept);
        self.start = end - self.bytes.len() as u64;
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
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_the_end_of_everything_pushed(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..30),
            capacity in 1usize..64,
            offset in 0u64..1500,
            limit in 0usize..100,
        ) {
            let mut ring = Ring::new(capacity);
            let mut all = Vec::new();
            for piece in &pieces {
                ring.push(piece);
                all.extend_from_slice(piece);
                prop_assert!(ring.bytes.len() <= capacity);
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
