//! Round trips: what goes in comes out, for any content.

use crate::common::*;
use mayfly_snapshotter::{CHUNK_SIZE, Error, Store, StreamKind};
use proptest::prelude::*;
use std::fs::File;
use std::io::Seek;
use std::os::unix::fs::FileExt;

/// A piece of content of a stream: at a byte offset, of a length, with bytes of some kind.
#[derive(Clone, Debug)]
enum Piece {
    Noise(u64),
    Text,
    Zeros,
}

fn pieces() -> impl Strategy<Value = Vec<(u64, usize, Piece)>> {
    let piece =
        prop_oneof![(1..4u64).prop_map(Piece::Noise), Just(Piece::Text), Just(Piece::Zeros)];
    // Whole chunks often, so that equal ones occur; odd places sometimes.
    let place = prop_oneof![
        (0..48u64).prop_map(|i| (i * CHUNK_SIZE as u64, CHUNK_SIZE)),
        (0..3_000_000u64, 1..200_000usize),
    ];
    prop::collection::vec((place, piece).prop_map(|((at, len), piece)| (at, len, piece)), 0..24)
}

fn build(len: u64, pieces: &[(u64, usize, Piece)]) -> File {
    let file = tempfile::tempfile().unwrap();
    for (at, want, piece) in pieces {
        let bytes: Vec<u8> = match piece {
            Piece::Noise(seed) => noise(*seed).into_iter().cycle().take(*want).collect(),
            Piece::Text => b"mayfly ".iter().copied().cycle().take(*want).collect(),
            Piece::Zeros => vec![0; *want],
        };
        file.write_all_at(&bytes, *at).unwrap();
    }
    file.set_len(len).unwrap();
    file
}

fn bytes_of(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    std::io::copy(&mut file, &mut bytes).unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_content_round_trips(
        (ram_len, ram) in (0..3_200_000u64, pieces()),
        (disk_len, disk) in (0..3_200_000u64, pieces()),
        device_len in 0..200_000u64,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let vm = Vm {
            ram: build(ram_len, &ram),
            device: build(device_len, &[(0, usize::try_from(device_len).unwrap(), Piece::Noise(2))]),
            disk: build(disk_len, &disk),
        };
        let mut last = None;
        let manifest = store.commit(vm.snapshot("g"), &mut |p| last = Some(p), &NEVER).unwrap();
        if let Some(progress) = last {
            prop_assert_eq!(progress.done_bytes, progress.total_bytes);
        }
        prop_assert_eq!(&store.manifest("g").unwrap(), &manifest);

        let mut distinct = std::collections::HashSet::new();
        for (kind, input) in [(StreamKind::Ram, &vm.ram), (StreamKind::Device, &vm.device), (StreamKind::Disk, &vm.disk)] {
            let expected = bytes_of(input);
            let reader = store.reader(&manifest, kind).unwrap();
            prop_assert_eq!(reader.len(), expected.len() as u64);
            let mut zeros = 0;
            for (i, bytes) in expected.chunks(CHUNK_SIZE).enumerate() {
                let zero = bytes.iter().all(|b| *b == 0);
                zeros += u64::from(zero);
                prop_assert_eq!(reader.is_zero(i), zero);
                prop_assert_eq!(reader.chunk_len(i), bytes.len());
                prop_assert_eq!(reader.chunk_id(i), (!zero).then(|| mayfly_snapshotter::Digest::of(bytes)));
                let mut out = vec![0xaa; CHUNK_SIZE];
                reader.read_chunk(i, &mut out).unwrap();
                prop_assert!(out[..bytes.len()] == *bytes);
                prop_assert!(out[bytes.len()..].iter().all(|b| *b == 0xaa), "bytes beyond the chunk were touched");
                distinct.extend(reader.chunk_id(i));
            }
            prop_assert_eq!(manifest.stream(kind).zero_chunks, zeros);
            let copy = tempfile::tempfile().unwrap();
            copy.write_all_at(&[1; 100_000], 0).unwrap();
            reader.copy_to(&copy, &mut |_| {}).unwrap();
            prop_assert!(bytes_of(&copy) == expected);
        }
        prop_assert_eq!(store.usage().unwrap().live_chunks, distinct.len() as u64);
        assert_good(&store, "g");
    }
}

#[test]
fn reads_out_of_bounds_are_typed_errors() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let manifest = Vm::of(&[1, 0, 2]).commit(&store, "g").unwrap();
    let reader = store.reader(&manifest, StreamKind::Ram).unwrap();
    let mut out = vec![0; CHUNK_SIZE];
    assert!(matches!(
        reader.read_chunk(3, &mut out),
        Err(Error::NoSuchChunk { index: 3, chunks: 3, .. })
    ));
    assert!(matches!(reader.read_chunk(0, &mut out[1..]), Err(Error::ShortBuffer { .. })));
    assert_eq!((reader.chunk_id(3), reader.is_zero(3), reader.chunk_len(3)), (None, false, 0));
    let times = reader.read_chunk(1, &mut out).unwrap();
    assert_eq!(times, mayfly_snapshotter::ReadTimes::default());
}

#[test]
fn huge_sparse_ram_costs_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let vm = Vm::of(&[1]);
    vm.ram.set_len(64 << 30).unwrap();
    vm.ram.write_all_at(b"end", (64 << 30) - 3).unwrap();
    let mut total = 0;
    let manifest = store.commit(vm.snapshot("g"), &mut |p| total = p.total_bytes, &NEVER).unwrap();
    assert_eq!(manifest.streams.ram.chunks - manifest.streams.ram.zero_chunks, 2);
    assert!(total < 4 << 20, "{total} bytes read of a sparse file");
    assert!(pack_bytes(dir.path()) < 200_000);
    assert_good(&store, "g");
}

#[test]
fn compressible_chunks_are_compressed_and_others_stored_raw() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let vm = Vm::of(&[1]);
    vm.disk.write_all_at(&vec![7; CHUNK_SIZE], 0).unwrap();
    let manifest = vm.commit(&store, "g").unwrap();
    assert_eq!(manifest.streams.ram.stored_bytes, CHUNK_SIZE as u64 + 48);
    assert!(manifest.streams.disk.stored_bytes < 200);
}
