//! Damage of every kind is found, named precisely, and repaired by building again.

use crate::common::*;
use mayfly_snapshotter::{
    CHUNK_SIZE, Damage, Error, FormatError, Manifest, Store, StreamKind, Usage,
};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const PACK_HEADER: u64 = 24;
const RECORD_HEADER: u64 = 48;

/// A store with golden image `g`: one pack, four chunks of noise and a compressed one in RAM, and
/// the device state.
fn damaged_store(damage: impl FnOnce(&File)) -> (tempfile::TempDir, Store, Manifest) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let manifest = vm().commit(&store, "g").unwrap();
    damage(&OpenOptions::new().read(true).write(true).open(pack(dir.path())).unwrap());
    (dir, store, manifest)
}

fn vm() -> Vm {
    let vm = Vm::of(&[1, 2, 0, 3, 4]);
    vm.ram.write_all_at(&b"text ".repeat(CHUNK_SIZE / 5), 5 * CHUNK_SIZE as u64).unwrap();
    vm
}

fn pack(dir: &Path) -> PathBuf {
    let files = pack_files(dir);
    assert_eq!(files.len(), 1);
    dir.join("packs").join(&files[0])
}

fn flip(file: &File, at: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

/// `verify` reports exactly one chunk, reading it fails the same way, and the message says what to
/// do.
fn the_bad_chunk(store: &Store, manifest: &Manifest) -> mayfly_snapshotter::BadChunk {
    let report = store.verify("g", &mut |_| {}, &NEVER).unwrap();
    assert_eq!(report.bad.len(), 1, "{:?}", report.bad);
    let bad = report.bad.into_iter().next().unwrap();
    let reader = store.reader(manifest, bad.stream).unwrap();
    let Err(Error::BadChunk(read)) =
        reader.read_chunk(usize::try_from(bad.index).unwrap(), &mut vec![0; CHUNK_SIZE])
    else {
        panic!("the bad chunk was read");
    };
    assert_eq!(*read, bad);
    let text = bad.to_string();
    for part in
        ["`g`", &bad.stream.to_string(), ".pack", "mayfly golden verify g", "mayfly golden build"]
    {
        assert!(text.contains(part), "{text}");
    }
    bad
}

#[test]
fn a_flipped_bit_in_each_region_of_a_record_is_named() {
    for at in 0..RECORD_HEADER {
        let (_dir, store, manifest) = damaged_store(|f| flip(f, PACK_HEADER + at));
        let bad = the_bad_chunk(&store, &manifest);
        assert!(matches!(bad.damage, Damage::RecordHeader(_)), "byte {at}: {bad}");
        assert_eq!(bad.offset, PACK_HEADER);
    }
    for at in [0, 1, CHUNK_SIZE as u64 / 2, CHUNK_SIZE as u64 - 1] {
        let (_dir, store, manifest) = damaged_store(|f| flip(f, PACK_HEADER + RECORD_HEADER + at));
        let bad = the_bad_chunk(&store, &manifest);
        assert!(matches!(bad.damage, Damage::Content { .. }), "byte {at}: {bad}");
    }
}

#[test]
fn a_flipped_bit_in_the_pack_header_hits_all_its_chunks() {
    for at in 0..PACK_HEADER {
        let (_dir, store, manifest) = damaged_store(|f| flip(f, at));
        let report = store.verify("g", &mut |_| {}, &NEVER).unwrap();
        assert_eq!(report.bad.len() as u64, report.chunks);
        assert!(
            report.bad.iter().all(|b| matches!(b.damage, Damage::PackHeader(_))),
            "{:?}",
            report.bad
        );
        assert!(matches!(store.reader(&manifest, StreamKind::Ram), Err(Error::BadChunk(_))));
    }
}

#[test]
fn every_flipped_bit_of_a_compressed_chunk_is_an_error() {
    let (dir, store, manifest) = damaged_store(|_| {});
    let reader = store.reader(&manifest, StreamKind::Ram).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(pack(dir.path())).unwrap();
    // Find its record by its id.
    let bytes = std::fs::read(pack(dir.path())).unwrap();
    let id = reader.chunk_id(5).unwrap();
    let id_at = bytes.windows(32).position(|w| w == id.as_bytes()).unwrap();
    let length = u64::from(bytes[id_at - 4]);
    let stored = id_at as u64 + 32..id_at as u64 + 32 + length;
    assert!(stored.end - stored.start < 255);
    let mut out = vec![0; CHUNK_SIZE];
    for at in stored {
        flip(&file, at);
        let result = reader.read_chunk(5, &mut out);
        let good = mayfly_snapshotter::Digest::of(&out[..reader.chunk_len(5)]) == id;
        assert!(result.is_err() || good, "unverified bytes were returned");
        flip(&file, at);
    }
    reader.read_chunk(5, &mut out).unwrap();
}

#[test]
fn a_truncated_pack_is_named_with_its_length() {
    let (_dir, store, manifest) =
        damaged_store(|f| f.set_len(f.metadata().unwrap().len() - 1).unwrap());
    let bad = the_bad_chunk(&store, &manifest);
    assert!(matches!(bad.damage, Damage::Truncated { need, have } if need == have + 1), "{bad}");
    for len in [0, 10] {
        let (_dir, store, _) = damaged_store(|f| f.set_len(len).unwrap());
        let report = store.verify("g", &mut |_| {}, &NEVER).unwrap();
        assert_eq!(report.bad.len() as u64, report.chunks);
    }
}

#[test]
fn a_missing_pack_is_named_and_building_again_repairs() {
    let (dir, store, manifest) = damaged_store(|_| {});
    std::fs::remove_file(pack(dir.path())).unwrap();
    let Err(Error::BadChunk(bad)) = store.reader(&manifest, StreamKind::Ram) else {
        panic!("opened")
    };
    assert_eq!(bad.damage, Damage::PackMissing);
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert!(!store.verify("g", &mut |_| {}, &NEVER).unwrap().is_ok());
    vm().commit(&store, "g").unwrap();
    assert_good(&store, "g");
    assert_no_leftovers(&store);
}

#[test]
fn building_one_golden_again_repairs_every_golden_that_shares_the_chunk() {
    let (_dir, store, _) = damaged_store(|f| flip(f, PACK_HEADER + RECORD_HEADER));
    vm().commit(&store, "h").unwrap();
    assert_good(&store, "g");
    assert_good(&store, "h");
}

#[test]
fn compaction_never_carries_damage_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let many: Vec<u64> = (1..101).collect();
    Vm::of(&many).commit(&store, "a").unwrap();
    let manifest = Vm::of(&many[..10]).commit(&store, "g").unwrap();
    let file = OpenOptions::new().read(true).write(true).open(pack(dir.path())).unwrap();
    let bytes = std::fs::read(pack(dir.path())).unwrap();
    let id = store.reader(&manifest, StreamKind::Ram).unwrap().chunk_id(0).unwrap();
    let id_at = bytes.windows(32).position(|w| w == id.as_bytes()).unwrap() as u64;
    flip(&file, id_at + 100);
    let removed = store.remove("a").unwrap();
    assert_eq!((removed.packs_compacted, removed.packs_deleted), (0, 0));
    assert!(removed.dead_bytes_left > 0);
    assert_eq!(the_bad_chunk(&store, &manifest).id, id);
    assert_no_leftovers(&store);
}

#[test]
fn altered_metadata_is_a_typed_error_and_the_golden_can_be_removed() {
    type Change = fn(&mut Vec<u8>);
    let cases: [(&str, &str, Change); 6] = [
        ("manifests", "g", |v| v[100] ^= 1),
        ("manifests", "g", |v| v.truncate(20)),
        ("tables", "g/ram", |v| v[60] ^= 1),
        ("tables", "g/ram", |v| v.truncate(v.len() - 1)),
        ("tables", "g/disk", |v| v.clear()),
        ("working_sets", "g", |v| v[9] ^= 1),
    ];
    for (column, key, change) in cases {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let shared: Vec<u64> = (1..20).collect();
        let manifest = Vm::of(&shared).commit(&store, "g").unwrap();
        Vm::of(&shared[10..]).commit(&store, "other").unwrap();
        store.set_working_set("g", vec![1]).unwrap();
        drop(store);
        alter(dir.path(), column, key, change);

        let store = Store::open(dir.path()).unwrap();
        let error = match column {
            "manifests" => {
                store.list().unwrap_err();
                let entries = store.entries().unwrap();
                assert!(entries[0].1.is_err() && entries[1].1.is_ok());
                store.manifest("g").unwrap_err()
            }
            "tables" => {
                let kind = if key == "g/ram" { StreamKind::Ram } else { StreamKind::Disk };
                assert!(matches!(
                    store.verify("g", &mut |_| {}, &NEVER),
                    Err(Error::DamagedGolden { .. })
                ));
                store.reader(&store.manifest("g").unwrap(), kind).unwrap_err()
            }
            _ => {
                assert_good(&store, "g");
                store.working_set("g").unwrap_err()
            }
        };
        assert!(matches!(&error, Error::DamagedGolden { golden, .. } if golden == "g"), "{error}");
        assert!(error.to_string().contains("mayfly golden rm g"), "{error}");

        store.remove("g").unwrap();
        assert!(matches!(store.reader(&manifest, StreamKind::Ram), Err(Error::Stale { .. })));
        assert_ram(&store, "other", &shared[10..]);
        assert_eq!(store.usage().unwrap().live_chunks, 10);
        store.remove("other").unwrap();
        assert_eq!(store.usage().unwrap(), Usage::default());
        assert_no_leftovers(&store);
    }
}

#[test]
fn a_damaged_golden_can_be_built_again_in_place() {
    let (dir, store, _) = damaged_store(|_| {});
    drop(store);
    alter(dir.path(), "tables", "g/ram", |v| v[50] ^= 1);
    let store = Store::open(dir.path()).unwrap();
    vm().commit(&store, "g").unwrap();
    assert_good(&store, "g");
    store.remove("g").unwrap();
    assert_eq!(store.usage().unwrap(), Usage::default());
}

#[test]
fn a_store_of_another_version_is_refused() {
    let (dir, store, _) = damaged_store(|_| {});
    drop(store);
    alter(dir.path(), "meta", "format_version", |v| v[0] = 9);
    for result in [Store::open(dir.path()), Store::open_read_only(dir.path())] {
        assert!(matches!(result, Err(Error::StoreVersion { found: 9, .. })));
    }
    assert_eq!(pack_files(dir.path()).len(), 1);
}

#[test]
fn what_is_not_ours_in_the_pack_directory_stays() {
    let (dir, store, _) = damaged_store(|_| {});
    drop(store);
    let packs = dir.path().join("packs");
    for name in ["README", "00000000000000ff.pack", ".unfinished-x"] {
        File::create(packs.join(name)).unwrap();
    }
    let store = Store::open(dir.path()).unwrap();
    let files = pack_files(dir.path());
    assert!(files.contains(&"README".to_owned()) && files.len() == 2, "{files:?}");
    assert_good(&store, "g");
}

#[test]
fn format_errors_say_what_was_read() {
    let error = Manifest::decode(b"short").unwrap_err();
    assert_eq!(error, FormatError::Truncated { what: "the manifest", need: 40, have: 5 });
}
