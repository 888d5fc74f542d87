//! Chunk tables (which chunk is where in a stream) and working sets (which chunks a restore touches
//! first).

use crate::chunk::CHUNK_SIZE_U32;
use crate::chunk::chunk_count;
use crate::envelope::{Envelope, FormatError};
use crate::{CHUNK_SIZE, ChunkId};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

const TABLE: Envelope = Envelope { what: "a chunk table", magic: *b"MFCT", version: 1 };
const WORKING_SET: Envelope = Envelope { what: "the working set", magic: *b"MFWS", version: 1 };

/// Greatest length of a stream: its chunk indexes must fit in 32 bits.
pub(crate) const MAX_STREAM_LEN: u64 = (u32::MAX as u64) * CHUNK_SIZE as u64;

/// The chunks of one stream in order; `None` is a chunk of zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkTable {
    /// Length of the stream in bytes.
    pub len: u64,
    /// Entries of the chunks, one for each: `len / 64 KiB`, rounded up.
    pub chunks: Vec<Option<ChunkId>>,
}

/// The encoded form (postcard): a bitmap of the chunks that are not zeros, then their ids.
#[derive(Serialize, Deserialize)]
struct Wire {
    len: u64,
    chunk_size: u32,
    present: Vec<u8>,
    ids: Vec<ChunkId>,
}

impl ChunkTable {
    /// A table of a stream of `len` bytes, all zeros.
    pub(crate) fn zeros(len: u64) -> Self {
        Self {
            len,
            chunks: vec![
                None;
                usize::try_from(chunk_count(len)).expect("a table that fits into memory")
            ],
        }
    }

    /// Returns the number of chunks of zeros.
    pub fn zero_chunks(&self) -> u64 {
        self.chunks.iter().filter(|c| c.is_none()).count() as u64
    }

    /// Returns the ids of the stored chunks, in order, with repetitions.
    pub fn ids(&self) -> impl Iterator<Item = &ChunkId> {
        self.chunks.iter().flatten()
    }

    /// Encodes into a checksummed envelope.
    #[expect(clippy::missing_panics_doc, reason = "plain data can be encoded")]
    pub fn encode(&self) -> Vec<u8> {
        let mut present = vec![0; self.chunks.len().div_ceil(8)];
        for (i, _) in self.chunks.iter().enumerate().filter(|(_, c)| c.is_some()) {
            present[i / 8] |= 1 << (i % 8);
        }
        let ids = self.ids().copied().collect();
        let wire = Wire { len: self.len, chunk_size: CHUNK_SIZE_U32, present, ids };
        // Growing a Vec is the only sink: postcard cannot fail here.
        TABLE.seal(&postcard::to_stdvec(&wire).expect("a chunk table is plain data"))
    }

    /// Reads what [`ChunkTable::encode`] wrote.
    ///
    /// # Errors
    /// [`FormatError`] for bytes that are truncated, altered, of another format version, or not
    /// consistent. Memory used is bounded by a small multiple of `bytes.len()`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (wire, rest) = postcard::take_from_bytes::<Wire>(TABLE.open(bytes)?)
            .map_err(|e| TABLE.malformed(&e))?;
        if !rest.is_empty() {
            return Err(TABLE.malformed("bytes behind its end"));
        }
        if wire.chunk_size as usize != CHUNK_SIZE {
            return Err(
                TABLE.malformed(&format!("chunks of {} bytes, not {CHUNK_SIZE}", wire.chunk_size))
            );
        }
        let count = chunk_count(wire.len);
        if wire.len > MAX_STREAM_LEN || wire.present.len() as u64 != count.div_ceil(8) {
            return Err(TABLE.malformed("its bitmap does not fit the length"));
        }
        let set = |i: u64| wire.present[(i / 8) as usize] >> (i % 8) & 1 == 1;
        let ones: u64 = wire.present.iter().map(|b| u64::from(b.count_ones())).sum();
        if ones != wire.ids.len() as u64 || (count..wire.present.len() as u64 * 8).any(set) {
            return Err(TABLE.malformed("its bitmap does not fit the ids"));
        }
        let mut ids = wire.ids.iter();
        let chunks = (0..count).map(|i| if set(i) { ids.next().copied() } else { None }).collect();
        Ok(Self { len: wire.len, chunks })
    }
}

/// Indexes of the RAM chunks a fresh session touches, in the order of first touch, each once.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct WorkingSet(pub Vec<u32>);

impl WorkingSet {
    /// Encodes into a checksummed envelope.
    #[expect(clippy::missing_panics_doc, reason = "plain data can be encoded")]
    pub fn encode(&self) -> Vec<u8> {
        WORKING_SET.seal(&postcard::to_stdvec(&self.0).expect("a list of integers is plain data"))
    }

    /// Reads what [`WorkingSet::encode`] wrote.
    ///
    /// # Errors
    /// [`FormatError`] for bytes that are truncated, altered, of another format version, or name a
    /// chunk twice.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (list, rest) = postcard::take_from_bytes::<Vec<u32>>(WORKING_SET.open(bytes)?)
            .map_err(|e| WORKING_SET.malformed(&e))?;
        let set = Self(list);
        if !rest.is_empty() {
            return Err(WORKING_SET.malformed("bytes behind its end"));
        }
        match set.first_duplicate() {
            Some(index) => Err(WORKING_SET.malformed(&format!("chunk {index} is in it twice"))),
            None => Ok(set),
        }
    }

    /// The first index that occurs a second time.
    pub(crate) fn first_duplicate(&self) -> Option<u32> {
        let mut seen = HashSet::with_capacity(self.0.len());
        self.0.iter().copied().find(|i| !seen.insert(*i))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tables() -> impl Strategy<Value = ChunkTable> {
        (prop::collection::vec(prop::option::of(any::<[u8; 32]>()), 0..70), 1..=CHUNK_SIZE as u64)
            .prop_map(|(chunks, last)| ChunkTable {
                len: (chunks.len() as u64 * CHUNK_SIZE as u64)
                    .saturating_sub(CHUNK_SIZE as u64 - last)
                    * u64::from(!chunks.is_empty()),
                chunks: chunks.into_iter().map(|c| c.map(ChunkId::from_bytes)).collect(),
            })
    }

    proptest! {
        #[test]
        fn table_round_trips(table in tables()) {
            prop_assert_eq!(ChunkTable::decode(&table.encode()).unwrap(), table);
        }

        #[test]
        fn altered_table_is_an_error(table in tables(), at: prop::sample::Index, bit in 0..8u8) {
            let mut bytes = table.encode();
            let at = at.index(bytes.len());
            prop_assert!(ChunkTable::decode(&bytes[..at]).is_err());
            bytes[at] ^= 1 << bit;
            prop_assert!(ChunkTable::decode(&bytes).is_err());
        }

        #[test]
        fn payload_past_the_checksum_never_panics_and_decodes_canonically(table in tables(), edits: Vec<(prop::sample::Index, u8)>) {
            let mut payload = TABLE.open(&table.encode()).unwrap().to_vec();
            for (at, value) in edits {
                let at = at.index(payload.len());
                payload[at] = value;
            }
            if let Ok(table) = ChunkTable::decode(&TABLE.seal(&payload)) {
                prop_assert_eq!(table.chunks.len() as u64, chunk_count(table.len));
                prop_assert_eq!(ChunkTable::decode(&table.encode()).unwrap(), table);
            }
        }

        #[test]
        fn arbitrary_payloads_never_panic(payload: Vec<u8>) {
            let _ = ChunkTable::decode(&TABLE.seal(&payload));
            let _ = WorkingSet::decode(&WORKING_SET.seal(&payload));
        }

        #[test]
        fn working_set_round_trips(list in prop::collection::hash_set(any::<u32>(), 0..100)) {
            let set = WorkingSet(list.into_iter().collect());
            prop_assert_eq!(WorkingSet::decode(&set.encode()).unwrap(), set);
        }
    }

    #[test]
    fn duplicate_in_working_set_is_an_error() {
        let error = WorkingSet::decode(&WorkingSet(vec![1, 2, 1]).encode()).unwrap_err();
        assert!(error.to_string().contains("chunk 1"), "{error}");
    }

    #[test]
    fn bits_beyond_the_end_are_refused() {
        let id = ChunkId::of(b"x");
        let wire = Wire { len: 1, chunk_size: CHUNK_SIZE_U32, present: vec![0b10], ids: vec![id] };
        let bytes = TABLE.seal(&postcard::to_stdvec(&wire).unwrap());
        assert!(matches!(ChunkTable::decode(&bytes), Err(FormatError::Content { .. })));
    }
}
