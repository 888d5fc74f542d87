//! Where the chunks of a working set lie after it was recorded, whatever else happens to the store.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use crate::pack::{Codec, PackWriter, pack_file_name};
use crate::working_set::{Placed, pieces};
use crate::{
    CHUNK_SIZE, ChunkId, Digest, FileRef, GoldenName, HostPins, NewSnapshot, Store, StreamKind,
    Usage, VmShape, WorkingSet,
};

/// A chunk of bytes that do not compress, the same for the same `seed`.
fn noise(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; CHUNK_SIZE];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Commits golden image `name` with RAM of one chunk per seed; seed 0 is zeros.
fn commit(store: &Store, name: &str, seeds: &[u64]) {
    let [ram, device, disk]: [File; 3] = std::array::from_fn(|_| tempfile::tempfile().unwrap());
    ram.set_len((seeds.len() * CHUNK_SIZE) as u64).unwrap();
    for (i, seed) in seeds.iter().enumerate().filter(|(_, seed)| **seed != 0) {
        ram.write_all_at(&noise(*seed), (i * CHUNK_SIZE) as u64).unwrap();
    }
    let text = String::new;
    let snapshot = NewSnapshot {
        name,
        build_key: text(),
        pins: HostPins {
            arch: text(),
            vmm: text(),
            vmm_version: text(),
            machine: text(),
            accel: text(),
            cpu_model: text(),
            kernel_blake3: Digest::of(b"kernel"),
        },
        vm: VmShape { vcpus: 1, memory_bytes: 1 << 30, kernel_cmdline: text() },
        base_disk: FileRef { file_name: text(), blake3: Digest::of(b"base"), len: 4 },
        ram: (&ram).into(),
        device: (&device).into(),
        disk: (&disk).into(),
        labels: BTreeMap::new(),
    };
    store.commit(snapshot, &mut |_| {}, &AtomicBool::new(false)).unwrap();
}

fn seeds(range: std::ops::Range<u64>) -> Vec<u64> {
    range.collect()
}

/// Indexes of `n` chunks in an order that has no two neighbours in a row.
fn scattered(n: u32) -> Vec<u32> {
    (0..n).step_by(2).rev().chain((1..n).step_by(2)).collect()
}

/// The stored chunks of the working set of `name`, with where they are.
fn laid(store: &Store, name: &str) -> Vec<Placed> {
    store.placed(name, &WorkingSet(store.working_set(name).unwrap())).unwrap()
}

/// Asserts that the RAM of `name` is that of the seeds, and that all of it is good.
fn assert_whole(store: &Store, name: &str, seeds: &[u64]) {
    let reader = store.reader(&store.manifest(name).unwrap(), StreamKind::Ram).unwrap();
    let mut chunk = vec![0; CHUNK_SIZE];
    for (i, seed) in seeds.iter().enumerate() {
        reader.read_chunk(i, &mut chunk).unwrap();
        let expected = if *seed == 0 { vec![0; CHUNK_SIZE] } else { noise(*seed) };
        assert!(chunk == expected, "chunk {i} of {name} has other bytes");
    }
    let report = store.verify(name, &mut |_| {}, &AtomicBool::new(false)).unwrap();
    assert!(report.is_ok(), "{:?}", report.bad);
}

/// Asserts that there are the files of the packs that the metadata knows, and no others.
fn assert_no_leftovers(store: &Store) {
    let mut files: Vec<_> = fs::read_dir(&store.packs)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let known: Vec<_> =
        store.db.packs().unwrap().into_iter().map(|(id, _)| pack_file_name(id)).collect();
    assert_eq!(files, known);
}

/// Bytes in packs that no golden image uses, but for the headers of the packs.
fn dead(store: &Store) -> u64 {
    let Usage { packs, pack_bytes, live_bytes, .. } = store.usage().unwrap();
    pack_bytes - live_bytes - 24 * packs
}

/// Copies the store as a crash of the host would leave it now.
fn crashed(store: &Store) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["db", "packs"] {
        fs::create_dir(dir.path().join(folder)).unwrap();
        for entry in fs::read_dir(store.dir().join(folder)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), dir.path().join(folder).join(entry.file_name())).unwrap();
        }
    }
    dir
}

fn new_store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

#[test]
fn a_working_set_lies_in_its_order_in_a_pack_of_its_own_and_the_old_records_go() {
    let (_dir, store) = new_store();
    // Zeros, and a chunk that is there twice.
    let mut ram = seeds(1..101);
    (ram[4], ram[7], ram[9]) = (0, 0, 1);
    commit(&store, "g", &ram);
    let old_reader = store.reader(&store.manifest("g").unwrap(), StreamKind::Ram).unwrap();
    let before = store.usage().unwrap();
    store.set_working_set("g", scattered(50)).unwrap();

    let set = laid(&store, "g");
    assert_eq!((set.len(), pieces(&set)), (47, 1));
    let ids: Vec<ChunkId> = set.iter().map(|(id, _)| *id).collect();
    let mut expected: Vec<ChunkId> = Vec::new();
    for index in scattered(50).into_iter().filter(|index| ![4, 7].contains(index)) {
        let id = Digest::of(&noise(ram[index as usize]));
        if !expected.contains(&id) {
            expected.push(id);
        }
    }
    assert_eq!(ids, expected);
    let of_its_own = store.db.pack(set[0].1.pack).unwrap().unwrap();
    assert_eq!((of_its_own.chunks, of_its_own.live_chunks), (47, 47));
    let after = store.usage().unwrap();
    assert_eq!((after.live_bytes, dead(&store)), (before.live_bytes, 0));
    assert_whole(&store, "g", &ram);
    assert_no_leftovers(&store);
    // Opened before its packs went.
    let mut chunk = vec![0; CHUNK_SIZE];
    for index in [0, 50, 99] {
        old_reader.read_chunk(index, &mut chunk).unwrap();
        assert!(chunk == noise(ram[index]));
    }
}

#[test]
fn a_set_that_lies_well_is_left_where_it_is_and_another_order_is_laid_out_anew() {
    let (_dir, store) = new_store();
    commit(&store, "g", &seeds(1..101));
    for order in [scattered(60), (0..60).rev().collect()] {
        store.set_working_set("g", order.clone()).unwrap();
        let first = laid(&store, "g");
        assert_eq!(pieces(&first), 1);
        store.set_working_set("g", order).unwrap();
        assert_eq!(laid(&store, "g"), first);
        assert_eq!(dead(&store), 0);
    }
    store.set_working_set("g", Vec::new()).unwrap();
    assert_whole(&store, "g", &seeds(1..101));
    assert_no_leftovers(&store);
}

#[test]
fn chunks_in_the_layout_of_another_golden_stay_there() {
    let (_dir, store) = new_store();
    commit(&store, "a", &seeds(1..101));
    store.set_working_set("a", scattered(80)).unwrap();
    let of_a = laid(&store, "a");
    // Half of it is shared, and every second chunk of its set; some that `a` has not in its set.
    let ram: Vec<u64> = (1..101).map(|i| if i % 2 == 0 { i } else { 1000 + i }).collect();
    commit(&store, "b", &ram);
    store.set_working_set("b", (0..100).collect()).unwrap();
    assert_eq!(laid(&store, "a"), of_a);
    let packs_of_a: Vec<u64> = of_a.iter().map(|(_, location)| location.pack).collect();
    let own: Vec<Placed> = laid(&store, "b")
        .into_iter()
        .filter(|(_, location)| !packs_of_a.contains(&location.pack))
        .collect();
    assert_eq!((own.len(), pieces(&own)), (60, 1));
    assert_whole(&store, "a", &seeds(1..101));
    assert_whole(&store, "b", &ram);
    // Without `a` nobody holds them there.
    store.remove("a").unwrap();
    store.set_working_set("b", (0..100).collect()).unwrap();
    assert_eq!(pieces(&laid(&store, "b")), 1);
    assert_whole(&store, "b", &ram);
    assert_eq!(dead(&store), 0);
    assert_no_leftovers(&store);
}

#[test]
fn compaction_keeps_the_order() {
    let (_dir, store) = new_store();
    commit(&store, "a", &seeds(1..101));
    store.set_working_set("a", scattered(100)).unwrap();
    // Has the first 30 in the pack of that layout, in the order of that.
    commit(&store, "b", &seeds(1..31));
    let order: Vec<u32> = scattered(100).into_iter().filter(|index| *index < 30).collect();
    assert_eq!(store.remove("a").unwrap().packs_compacted, 1);
    let set = store.placed("b", &WorkingSet(order.clone())).unwrap();
    assert_eq!((set.len(), pieces(&set)), (30, 1));
    // So there is nothing to lay out.
    let packs = store.db.packs().unwrap();
    store.set_working_set("b", order).unwrap();
    assert_eq!(store.db.packs().unwrap(), packs);
    assert_whole(&store, "b", &seeds(1..31));
}

#[test]
fn a_crash_leaves_the_old_layout_or_the_new_one_and_what_it_left_goes_with_the_next_set() {
    let (_dir, store) = new_store();
    let name = GoldenName::new("g").unwrap();
    commit(&store, "g", &seeds(1..101));
    let old = store.placed("g", &WorkingSet(scattered(40))).unwrap();

    // While the copies are written.
    let mut writer = PackWriter::new(&store.packs, &store.next_pack);
    writer.append(old[0].0, 65_536, Codec::Raw, &noise(39)).unwrap();
    let writing = crashed(&store);
    drop(writer);
    // When they have their name, and nobody knows them.
    let transaction = store.record_set(&name, scattered(40)).unwrap();
    let copied = crashed(&store);
    for dir in [writing, copied] {
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.working_set("g").unwrap(), [0; 0]);
        assert_eq!(store.placed("g", &WorkingSet(scattered(40))).unwrap(), old);
        assert_whole(&store, "g", &seeds(1..101));
        assert_no_leftovers(&store);
        store.set_working_set("g", scattered(40)).unwrap();
        assert_eq!(pieces(&laid(&store, "g")), 1);
    }
    // When the layout is committed, and the old records are there still.
    store.commit_and_delete(transaction).unwrap();
    let committed = crashed(&store);
    let store = Store::open(committed.path()).unwrap();
    assert_eq!(pieces(&laid(&store, "g")), 1);
    assert!(dead(&store) >= 40 * CHUNK_SIZE as u64);
    assert_whole(&store, "g", &seeds(1..101));
    assert_no_leftovers(&store);
    // A set of any golden image will do.
    commit(&store, "other", &[7]);
    store.set_working_set("other", vec![0]).unwrap();
    assert_eq!(dead(&store), 0);
    assert_eq!(pieces(&laid(&store, "g")), 1);
    assert_whole(&store, "g", &seeds(1..101));
}

#[test]
fn a_damaged_chunk_stays_where_verify_finds_it() {
    let (_dir, store) = new_store();
    commit(&store, "g", &seeds(1..101));
    let [(id, location)] = store.placed("g", &WorkingSet(vec![10])).unwrap()[..] else { panic!() };
    let pack = store.packs.join(pack_file_name(location.pack));
    File::options().write(true).open(pack).unwrap().write_all_at(&[1], location.end() - 9).unwrap();
    store.set_working_set("g", scattered(40)).unwrap();
    let set = laid(&store, "g");
    assert_eq!(set.iter().find(|(other, _)| *other == id).unwrap().1, location);
    let others: Vec<Placed> = set.into_iter().filter(|(other, _)| *other != id).collect();
    assert_eq!((others.len(), pieces(&others)), (39, 1));
    let report = store.verify("g", &mut |_| {}, &AtomicBool::new(false)).unwrap();
    assert_eq!(report.bad.iter().map(|bad| bad.id).collect::<Vec<_>>(), [id]);
}

#[derive(Clone, Debug)]
enum Change {
    Commit { name: usize, shared: u64, own: u64 },
    SetInOrderOf { name: usize, salt: u64 },
    Remove { name: usize },
}

fn changes() -> impl Strategy<Value = Change> {
    let name = 0..3usize;
    prop_oneof![
        2 => (name.clone(), 0..40u64, 1..9u64)
            .prop_map(|(name, shared, own)| Change::Commit { name, shared, own }),
        4 => (name.clone(), 0..3u64).prop_map(|(name, salt)| Change::SetInOrderOf { name, salt }),
        1 => name.prop_map(|name| Change::Remove { name }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_is_committed_recorded_and_removed_all_is_whole_and_what_others_laid_out_stays(
        changes in prop::collection::vec(changes(), 1..12),
    ) {
        let (_dir, store) = new_store();
        let mut model: HashMap<&str, Vec<u64>> = HashMap::new();
        for change in changes {
            match change {
                Change::Commit { name, shared, own } => {
                    let name = ["a", "b", "c"][name];
                    let ram: Vec<u64> = (1..61)
                        .map(|i| if i < shared { i } else { own * 1000 + i })
                        .collect();
                    commit(&store, name, &ram);
                    model.insert(name, ram);
                }
                Change::SetInOrderOf { name, salt } => {
                    let name = ["a", "b", "c"][name];
                    let Some(ram) = model.get(name) else { continue };
                    let others: Vec<_> = model
                        .keys()
                        .filter(|other| **other != name)
                        .map(|other| (*other, laid(&store, other)))
                        .filter(|(_, set)| !set.is_empty() && pieces(set) == 1)
                        .collect();
                    let mut order: Vec<u32> = (0..50).collect();
                    order.sort_by_cached_key(|i| noise(ram[*i as usize] * 3 + salt));
                    store.set_working_set(name, order.clone()).unwrap();
                    prop_assert_eq!(store.working_set(name).unwrap(), order);
                    for (other, before) in others {
                        let after = laid(&store, other);
                        prop_assert!(pieces(&after) == 1 && after.len() == before.len());
                    }
                    let kept = store.laid_out_for_others(name).unwrap();
                    let mut own = laid(&store, name);
                    own.retain(|(id, _)| !kept.contains(id));
                    prop_assert!(pieces(&own) <= 1);
                    let Usage { packs, live_bytes, .. } = store.usage().unwrap();
                    prop_assert!(dead(&store) <= live_bytes / 4 + (packs << 20));
                }
                Change::Remove { name } => {
                    let name = ["a", "b", "c"][name];
                    if model.remove(name).is_some() {
                        store.remove(name).unwrap();
                    }
                }
            }
            for (name, ram) in &model {
                assert_whole(&store, name, ram);
            }
            assert_no_leftovers(&store);
        }
    }
}
