//! Chunk tables and working sets: no bytes make decoding panic or allocate without bound.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_snapshotter::{ChunkTable, Digest, WorkingSet};

/// Frames a payload, so that the fuzzer gets past the checksum.
fn seal(magic: &[u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    bytes.extend_from_slice(&1u32.to_le_bytes());
    bytes.extend_from_slice(payload);
    let sum = Digest::of(&bytes);
    bytes.extend_from_slice(sum.as_bytes());
    bytes
}

fuzz_target!(|data: &[u8]| {
    let _ = ChunkTable::decode(data);
    if let Ok(table) = ChunkTable::decode(&seal(b"MFCT", data)) {
        assert_eq!(ChunkTable::decode(&table.encode()).unwrap(), table);
    }
    if let Ok(set) = WorkingSet::decode(&seal(b"MFWS", data)) {
        assert_eq!(WorkingSet::decode(&set.encode()).unwrap(), set);
    }
});
