//! Several golden images in one store: names, sharing, replacing, removing, cancelling.

use crate::common::*;
use mayfly_snapshotter::{Error, Store, StreamKind, Usage};
use std::sync::atomic::{AtomicBool, Ordering};

fn seeds(range: std::ops::Range<u64>) -> Vec<u64> {
    range.collect()
}

#[test]
fn equal_chunks_of_two_goldens_are_stored_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    Vm::of(&seeds(1..33)).commit(&store, "a").unwrap();
    let one = store.usage().unwrap();
    let manifest = Vm::of(&seeds(1..34)).commit(&store, "b").unwrap();
    let two = store.usage().unwrap();
    // One RAM chunk more; the device state is shared.
    assert_eq!(two.live_chunks, one.live_chunks + 1);
    assert!(two.pack_bytes - one.pack_bytes < 70_000);
    assert!(manifest.stored_bytes() > 33 * 65_536);
    assert_no_leftovers(&store);
}

#[test]
fn names_are_checked_and_unknown_ones_answered_with_the_known() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let error = store.manifest("a").unwrap_err().to_string();
    assert!(error.contains("there is none yet"), "{error}");
    for name in ["b", "a"] {
        Vm::of(&[1]).commit(&store, name).unwrap();
    }
    assert_eq!(
        store.list().unwrap().iter().map(|m| m.name.to_string()).collect::<Vec<_>>(),
        ["a", "b"]
    );
    let unknown =
        |e: Error| matches!(&e, Error::UnknownGolden { known, .. } if *known == ["a", "b"]);
    assert!(unknown(store.manifest("c").unwrap_err()));
    assert!(unknown(store.remove("c").unwrap_err()));
    assert!(unknown(store.verify("c", &mut |_| {}, &NEVER).unwrap_err()));
    assert!(unknown(store.set_working_set("c", vec![]).unwrap_err()));
    assert!(unknown(store.working_set("c").unwrap_err()));
    assert!(matches!(store.manifest("../etc"), Err(Error::Name(_))));
    assert!(matches!(Vm::of(&[1]).commit(&store, "No"), Err(Error::Name(_))));
}

#[test]
fn working_set_is_kept_in_order_checked_and_dropped_on_replacement() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let vm = Vm::of(&[1, 2, 3]);
    vm.commit(&store, "g").unwrap();
    assert_eq!(store.working_set("g").unwrap(), [0u32; 0]);
    store.set_working_set("g", vec![2, 0]).unwrap();
    assert!(matches!(
        store.set_working_set("g", vec![3]),
        Err(Error::NoSuchChunk { index: 3, .. })
    ));
    assert!(matches!(
        store.set_working_set("g", vec![1, 1]),
        Err(Error::DuplicateInWorkingSet { index: 1, .. })
    ));
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.working_set("g").unwrap(), [2, 0]);
    assert_eq!(store.manifest("g").unwrap().working_set_chunks, 2);
    vm.commit(&store, "g").unwrap();
    assert_eq!(store.working_set("g").unwrap(), [0u32; 0]);
    assert_eq!(store.manifest("g").unwrap().working_set_chunks, 0);
}

#[test]
fn remove_keeps_shared_chunks_and_gives_back_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    // The pack of `a` holds what `b` needs, and far more.
    Vm::of(&seeds(1..101)).commit(&store, "a").unwrap();
    Vm::of(&seeds(91..111)).commit(&store, "b").unwrap();
    let before = pack_bytes(dir.path());
    let manifest = store.manifest("b").unwrap();
    let old_reader = store.reader(&manifest, StreamKind::Ram).unwrap();

    let removed = store.remove("a").unwrap();
    assert_eq!((removed.packs_compacted, removed.dead_bytes_left), (1, 0), "{removed:?}");
    assert_eq!(removed.freed_bytes, before - pack_bytes(dir.path()));
    assert!(removed.freed_bytes >= 90 * 65_536, "{removed:?}");
    assert_ram(&store, "b", &seeds(91..111));
    assert_no_leftovers(&store);
    // Opened before the packs moved, still good.
    let mut chunk = vec![0; 65_536];
    old_reader.read_chunk(0, &mut chunk).unwrap();
    assert!(chunk == noise(91));

    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_good(&store, "b");
    let removed = store.remove("b").unwrap();
    assert_eq!(removed.packs_deleted, 2);
    assert_eq!(pack_bytes(dir.path()), 0);
    assert_eq!(store.usage().unwrap(), Usage::default());
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn a_mostly_live_pack_is_left_alone_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    Vm::of(&seeds(1..101)).commit(&store, "a").unwrap();
    Vm::of(&seeds(1..91)).commit(&store, "b").unwrap();
    let removed = store.remove("a").unwrap();
    assert_eq!((removed.packs_compacted, removed.packs_deleted, removed.freed_bytes), (0, 0, 0));
    assert_eq!(
        removed.dead_bytes_left,
        store.usage().unwrap().pack_bytes - store.usage().unwrap().live_bytes
    );
    assert_good(&store, "b");
}

#[test]
fn replacing_gives_the_new_content_and_frees_the_old() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let old = Vm::of(&seeds(1..41)).commit(&store, "g").unwrap();
    let old_reader = store.reader(&old, StreamKind::Ram).unwrap();
    Vm::of(&seeds(40..81)).commit(&store, "g").unwrap();
    assert_ram(&store, "g", &seeds(40..81));
    assert_no_leftovers(&store);
    assert!(pack_bytes(dir.path()) < 42 * 65_700, "the old chunks are still there");
    assert!(matches!(store.reader(&old, StreamKind::Ram), Err(Error::Stale { .. })));
    old_reader.read_chunk(0, &mut vec![0; 65_536]).unwrap();
    // The same content again changes nothing.
    let before = store.usage().unwrap();
    Vm::of(&seeds(40..81)).commit(&store, "g").unwrap();
    assert_eq!(store.usage().unwrap(), before);
}

#[test]
fn cancelling_leaves_the_old_state_and_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    Vm::of(&[1, 2]).commit(&store, "g").unwrap();
    let cancel = AtomicBool::new(false);
    let vm = Vm::of(&seeds(10..200));
    let mut calls = 0;
    let result = store.commit(
        vm.snapshot("g"),
        &mut |_| {
            calls += 1;
            cancel.store(true, Ordering::Relaxed);
        },
        &cancel,
    );
    assert!(matches!(result, Err(Error::Cancelled)));
    assert_eq!(calls, 1);
    assert_no_leftovers(&store);
    assert_ram(&store, "g", &[1, 2]);
    let result = store.verify("g", &mut |_| {}, &AtomicBool::new(true));
    assert!(matches!(result, Err(Error::Cancelled)));
}

#[test]
fn bad_inputs_are_typed_errors_that_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let vm = Vm::of(&[1]);
    let missing = dir.path().join("missing.ram");
    for (path, word) in [(missing.as_path(), "missing.ram"), (dir.path(), "regular")] {
        let mut snapshot = vm.snapshot("g");
        snapshot.ram = path.into();
        let error = store.commit(snapshot, &mut |_| {}, &NEVER).unwrap_err();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains(word), "{error}");
    }
    assert!(store.list().unwrap().is_empty());
    assert_no_leftovers(&store);
}
