//! Chunks: size, id, the test for zeros, and the small values reported about chunk work.

use crate::Digest;
use std::time::Duration;

/// Bytes of one chunk, before compression: 64 KiB. Only the last chunk of a stream may be shorter.
pub const CHUNK_SIZE: usize = 64 * 1024;

/// [`CHUNK_SIZE`] as it is written down.
#[expect(clippy::cast_possible_truncation, reason = "64 KiB")]
pub(crate) const CHUNK_SIZE_U32: u32 = CHUNK_SIZE as u32;

/// Name of a chunk: blake3 of its uncompressed bytes.
pub type ChunkId = Digest;

/// Progress of a long operation, in bytes of stream data (holes are not counted).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes worked off so far; reaches `total_bytes` at the end.
    pub done_bytes: u64,
    /// Bytes to work off in all.
    pub total_bytes: u64,
}

/// Times spent in one verified chunk read. All zero for an elided zero chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadTimes {
    /// Reading the stored bytes from the pack file.
    pub read: Duration,
    /// Expanding them (a copy for chunks stored raw).
    pub decompress: Duration,
    /// Hashing the result and comparing it with the chunk id.
    pub hash: Duration,
}

/// Chunks needed for `len` bytes.
pub(crate) const fn chunk_count(len: u64) -> u64 {
    len.div_ceil(CHUNK_SIZE as u64)
}

/// Bytes in chunk `index` of a stream of `len` bytes; 0 beyond its end.
#[expect(clippy::cast_possible_truncation, reason = "what is cast is less than CHUNK_SIZE")]
pub(crate) const fn chunk_len(len: u64, index: u64) -> usize {
    let rest = len.saturating_sub(index.saturating_mul(CHUNK_SIZE as u64));
    if rest < CHUNK_SIZE as u64 { rest as usize } else { CHUNK_SIZE }
}

/// Whether every byte is zero. The inner fold has no early exit so that it vectorises.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let mut blocks = bytes.chunks_exact(256);
    blocks.by_ref().all(|b| b.iter().fold(0, |acc, x| acc | x) == 0)
        && blocks.remainder().iter().all(|x| *x == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_at_the_edges() {
        let size = CHUNK_SIZE as u64;
        assert_eq!(chunk_count(0), 0);
        assert_eq!(chunk_count(1), 1);
        assert_eq!(chunk_count(size), 1);
        assert_eq!(chunk_count(size + 1), 2);
        assert_eq!(chunk_len(size + 1, 0), CHUNK_SIZE);
        assert_eq!(chunk_len(size + 1, 1), 1);
        assert_eq!(chunk_len(size + 1, 2), 0);
    }

    #[test]
    fn zero_is_seen_at_every_position() {
        for len in [0, 1, 255, 256, 257, 1000] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for i in 0..len {
                bytes[i] = 1;
                assert!(!is_zero(&bytes), "{i} of {len}");
                bytes[i] = 0;
            }
        }
    }
}
