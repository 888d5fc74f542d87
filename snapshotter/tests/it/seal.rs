//! Seals: what somebody without the key has altered is refused, also when every checksum was
//! computed again.

use crate::common::*;
use mayfly_snapshotter::{Digest, Error, Manifest, SealKey, Store, WorkingSet};
use std::path::Path;

fn key(dir: &Path) -> SealKey {
    SealKey::load_or_create(&dir.join("seal.key")).unwrap()
}

/// A store with the sealed golden images `g` and `other`, and the key of both.
fn sealed_store() -> (tempfile::TempDir, SealKey) {
    let dir = tempfile::tempdir().unwrap();
    let key = key(dir.path());
    let store = Store::open(dir.path().join("store")).unwrap().with_seal_key(key.clone());
    for name in ["g", "other"] {
        Vm::of(&[1, 2, 3]).commit(&store, name).unwrap();
        store.set_working_set(name, vec![2, 0]).unwrap();
    }
    (dir, key)
}

/// Frames a payload as the store does, with a checksum of its own.
fn framed(magic: &[u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut bytes = [magic.as_slice(), &1u32.to_le_bytes(), payload].concat();
    let sum = Digest::of(&bytes);
    bytes.extend_from_slice(sum.as_bytes());
    bytes
}

#[test]
fn what_was_committed_is_sealed_also_after_its_working_set_and_a_restart() {
    let (dir, key) = sealed_store();
    for store in
        [Store::open(dir.path().join("store")), Store::open_read_only(dir.path().join("store"))]
    {
        let store = store.unwrap().with_seal_key(key.clone());
        let (manifest, working_set) = store.sealed("g").unwrap();
        assert_eq!((manifest, working_set), (store.manifest("g").unwrap(), vec![2, 0]));
        assert!(matches!(store.sealed("x"), Err(Error::UnknownGolden { .. })));
    }
}

#[test]
fn a_change_with_computed_checksums_is_refused_and_its_siblings_work() {
    type Change = fn(&mut Manifest);
    let changes: [Change; 5] = [
        |m| m.base_disk.blake3 = Digest::of(b"another disk"),
        |m| m.streams.ram.table_blake3 = Digest::of(b"another table"),
        |m| m.streams.device.table_blake3 = Digest::of(b"another state"),
        |m| m.vm.kernel_cmdline.push_str(" init=/bin/sh"),
        |m| {
            drop(
                m.labels
                    .insert("disk_delta_blake3".into(), Digest::of(b"another delta").to_string()),
            );
        },
    ];
    for change in changes {
        let (dir, key) = sealed_store();
        let path = dir.path().join("store");
        alter(&path, "manifests", "g", |bytes| {
            let mut manifest = Manifest::decode(bytes).unwrap();
            change(&mut manifest);
            *bytes = manifest.encode();
        });
        let store = Store::open(&path).unwrap().with_seal_key(key);
        // Without the seal nothing would be wrong with it.
        store.manifest("g").unwrap();
        let error = store.sealed("g").unwrap_err();
        assert!(matches!(&error, Error::WrongSeal { golden, .. } if golden == "g"), "{error}");
        assert!(error.to_string().contains("mayfly golden build"), "{error}");
        // It is not sealed by what comes later, either.
        assert!(matches!(store.set_working_set("g", vec![1]), Err(Error::WrongSeal { .. })));
        store.sealed("g").unwrap_err();
        store.sealed("other").unwrap();
        Vm::of(&[1, 2, 3]).commit(&store, "g").unwrap();
        store.sealed("g").unwrap();
    }
}

#[test]
fn another_working_set_is_refused() {
    let (dir, key) = sealed_store();
    let path = dir.path().join("store");
    alter(&path, "working_sets", "g", |bytes| {
        *bytes = framed(b"MFWS", &[1, 1]);
        assert_eq!(WorkingSet::decode(bytes).unwrap().0, [1]);
    });
    let store = Store::open(&path).unwrap().with_seal_key(key);
    assert_eq!(store.working_set("g").unwrap(), [1]);
    assert!(matches!(store.sealed("g"), Err(Error::WrongSeal { .. })));
    store.sealed("other").unwrap();
}

#[test]
fn a_seal_of_another_golden_or_another_host_or_none_is_refused() {
    let (dir, key) = sealed_store();
    let path = dir.path().join("store");
    let mut of_other = Vec::new();
    alter(&path, "meta", "seal/other", |seal| of_other = seal.clone());
    alter(&path, "meta", "seal/g", |seal| *seal = of_other);
    let store = Store::open(&path).unwrap().with_seal_key(key.clone());
    assert!(matches!(store.sealed("g"), Err(Error::WrongSeal { .. })));
    store.sealed("other").unwrap();
    drop(store);

    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = self::key(elsewhere.path());
    let store = Store::open(&path).unwrap().with_seal_key(foreign.clone());
    let error = store.sealed("other").unwrap_err();
    assert!(matches!(error, Error::WrongSeal { .. }), "{error}");
    assert!(error.to_string().contains(foreign.path().to_str().unwrap()), "{error}");
    drop(store);

    // As an earlier release stored it.
    let store = Store::open(&path).unwrap();
    assert!(matches!(store.sealed("other"), Err(Error::NoSealKey { .. })));
    Vm::of(&[4]).commit(&store, "other").unwrap();
    drop(store);
    let store = Store::open_read_only(&path).unwrap().with_seal_key(key);
    let error = store.sealed("other").unwrap_err();
    assert!(
        matches!(error, Error::Unsealed { .. }) && error.to_string().contains("build it again"),
        "{error}"
    );
}

#[test]
fn a_removed_golden_leaves_no_seal() {
    let (dir, key) = sealed_store();
    let path = dir.path().join("store");
    let store = Store::open(&path).unwrap().with_seal_key(key);
    store.remove("g").unwrap();
    drop(store);
    assert!(value(&path, "meta", "seal/g").is_none());
    assert!(value(&path, "meta", "seal/other").is_some());
}
