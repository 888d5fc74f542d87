//! A store that somebody altered on purpose, with every checksum computed again: refused, and no
//! guest sees a byte of it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use mayfly_chaos_tests::home::{GOLDEN, Home};
use mayfly_chaos_tests::slots;
use mayfly_snapshotter::{Digest, FileRef, SealKey, Store, StreamKind};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use crate::support::{check_failure, missing_base_disk};

const RUN: [&str; 4] = ["run", GOLDEN, "--", "true"];
/// A second golden image in the same store, equal but for its name.
const TWIN: &str = "twin";

/// The store's database, opened as anyone could who may write it.
struct Database(Connection);

impl Database {
    fn open(home: &Home) -> Self {
        let path = home.layout().store().join("db/store.sqlite");
        Self(Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap())
    }

    fn get(&self, table: &str, key: &str) -> Vec<u8> {
        let select = format!("SELECT value FROM {table} WHERE key = ?1");
        let value = self.0.query_row(&select, [key.as_bytes()], |row| row.get(0));
        value.unwrap_or_else(|error| panic!("no {key} in {table}: {error}"))
    }

    fn put(&self, table: &str, key: &str, value: &[u8]) {
        let put = format!("INSERT OR REPLACE INTO {table} (key, value) VALUES (?1, ?2)");
        self.0.execute(&put, [key.as_bytes(), value]).unwrap();
    }

    fn delete(&self, table: &str, key: &str) {
        self.0.execute(&format!("DELETE FROM {table} WHERE key = ?1"), [key.as_bytes()]).unwrap();
    }

    /// Changes a manifest and computes its checksum again.
    fn alter_manifest(&self, from: &str, to: &str, change: impl FnOnce(&mut Value)) {
        let bytes = self.get("manifests", from);
        let mut manifest: Value = serde_json::from_slice(&bytes[8..bytes.len() - 32]).unwrap();
        change(&mut manifest);
        let payload = serde_json::to_vec(&manifest).unwrap();
        self.put("manifests", to, &framed(&bytes[..8], &payload));
    }

    /// The seal as docs/src/snapshot-format.md describes it, made by who has the key.
    fn seal(&self, home: &Home, golden: &str) {
        let text = fs::read_to_string(home.layout().seal_key()).unwrap();
        let key: Digest = text.trim().parse().unwrap();
        let mut hasher = blake3::Hasher::new_keyed(&blake3::derive_key(
            "mayfly 2026 seal of a golden image",
            key.as_bytes(),
        ));
        let manifest = self.get("manifests", golden);
        hasher.update(&(manifest.len() as u64).to_le_bytes()).update(&manifest);
        hasher.update(&self.get("working_sets", golden));
        self.put("meta", &format!("seal/{golden}"), hasher.finalize().as_bytes());
    }
}

fn framed(head: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = [head, payload].concat();
    let sum = Digest::of(&bytes);
    bytes.extend_from_slice(sum.as_bytes());
    bytes
}

/// A copy of the golden image that works, with a twin.
fn home_with_twin() -> Home {
    let home = Home::with_golden();
    let database = Database::open(&home);
    database.alter_manifest(GOLDEN, TWIN, |manifest| manifest["name"] = TWIN.into());
    for stream in StreamKind::ALL {
        database.put(
            "tables",
            &format!("{TWIN}/{stream}"),
            &database.get("tables", &format!("{GOLDEN}/{stream}")),
        );
    }
    database.put("working_sets", TWIN, &database.get("working_sets", GOLDEN));
    database.seal(&home, TWIN);
    home
}

fn check_runs(home: &Home, golden: &str) {
    let ended = home.mayfly(["run", golden, "--", "echo", "in the guest"]).run();
    assert!(ended.success() && ended.stdout.contains("in the guest"), "{ended}");
    assert_eq!(home.leaks_of(ended.pid), []);
}

fn check_refused(home: &Home, words: &[&str]) {
    let ended = home.mayfly(["run", GOLDEN, "--", "echo", "in the guest"]).run();
    check_failure(home, &ended, words);
    assert!(!ended.stdout.contains("in the guest"), "{ended}");
}

#[test]
fn a_manifest_with_computed_checksums_is_refused_and_its_twin_works() {
    let home = home_with_twin();
    let _slot = slots::take(1);
    check_runs(&home, TWIN);
    check_runs(&home, GOLDEN);
    Database::open(&home).alter_manifest(GOLDEN, GOLDEN, |manifest| {
        manifest["created_unix_s"] = 1.into();
    });
    check_refused(&home, &[GOLDEN, "does not match its seal", "mayfly golden build"]);
    let verified = home.mayfly(["golden", "verify", GOLDEN]).run();
    assert_ne!(verified.code(), 0, "{verified}");
    assert!(verified.stdout.contains("does not match its seal"), "{verified}");
    check_runs(&home, TWIN);
    // The seal alone was wrong with it.
    Database::open(&home).seal(&home, GOLDEN);
    check_runs(&home, GOLDEN);
}

#[test]
fn another_working_set_and_a_missing_seal_are_refused() {
    let home = home_with_twin();
    let _slot = slots::take(1);
    let before = Database::open(&home).get("working_sets", GOLDEN);
    let other = framed(&before[..8], &[1, 0]);
    Database::open(&home).put("working_sets", GOLDEN, &other);
    check_refused(&home, &[GOLDEN, "does not match its seal"]);
    Database::open(&home).put("working_sets", GOLDEN, &before);
    check_runs(&home, GOLDEN);
    Database::open(&home).delete("meta", &format!("seal/{GOLDEN}"));
    check_refused(&home, &[GOLDEN, "has no seal", "mayfly golden build"]);
    check_runs(&home, TWIN);
}

#[test]
fn a_key_that_is_missing_or_another_or_not_secret_is_told() {
    let home = Home::with_golden();
    let key = home.layout().run().join("other.key");
    let run = |words: &[&str]| {
        let ended = home.mayfly(RUN).env("MAYFLY_SEAL_KEY", &key).run();
        check_failure(&home, &ended, words);
    };
    run(&["no key", key.to_str().unwrap(), "mayfly golden build"]);
    assert!(!key.exists(), "a key was made by who only checks");
    SealKey::load_or_create(&key).unwrap();
    run(&["does not match its seal", key.to_str().unwrap()]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    run(&["chmod 600", key.to_str().unwrap()]);
}

/// Flips a bit of the stored bytes of a chunk; again, to put it right.
fn flip(home: &Home, kind: StreamKind, index: usize) {
    let store = Store::open_read_only(home.layout().store()).unwrap();
    let reader = store.reader(&store.manifest(GOLDEN).unwrap(), kind).unwrap();
    let id = reader.chunk_id(index).expect("a chunk that is stored");
    let packs = fs::read_dir(home.layout().store().join("packs")).unwrap().flatten();
    for pack in packs.map(|entry| entry.path()).filter(|path| path.extension().is_some()) {
        let bytes = fs::read(&pack).unwrap();
        // A record's header ends with the chunk's id.
        if let Some(at) = bytes.windows(32).position(|window| window == id.as_bytes()) {
            let file = File::options().write(true).open(&pack).unwrap();
            file.write_all_at(&[bytes[at + 40] ^ 1], at as u64 + 40).unwrap();
            return;
        }
    }
    panic!("no pack has {kind} chunk {index}");
}

#[test]
fn one_flipped_bit_of_a_chunk_of_any_stream_is_refused() {
    let home = Home::with_golden();
    let _slot = slots::take(1);
    let store = Store::open_read_only(home.layout().store()).unwrap();
    let first_touched = store.working_set(GOLDEN).unwrap()[0] as usize;
    let disk = store.reader(&store.manifest(GOLDEN).unwrap(), StreamKind::Disk).unwrap();
    let stored = (0..disk.chunk_count()).find(|index| !disk.is_zero(*index)).unwrap();
    drop((store, disk));
    for (kind, index) in
        [(StreamKind::Device, 0), (StreamKind::Disk, stored), (StreamKind::Ram, first_touched)]
    {
        flip(&home, kind, index);
        check_refused(&home, &[GOLDEN, "chunk"]);
        flip(&home, kind, index);
    }
}

/// Changes one byte of a file and sets its time of modification back.
fn change_secretly(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let before = file.metadata().unwrap().modified().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.set_modified(before).unwrap();
    assert_eq!(file.metadata().unwrap().modified().unwrap(), before);
}

/// The base disk, in a folder that no other home shares.
fn own_base_disk(home: &Home) -> PathBuf {
    let (own, _) = missing_base_disk(home);
    let from =
        Home::shared().layout().images().join(own.strip_prefix(home.layout().images()).unwrap());
    let copied = Command::new("cp").arg("--sparse=always").arg(&from).arg(&own).status().unwrap();
    assert!(copied.success());
    own
}

#[test]
fn disk_files_that_were_changed_secretly_are_never_used() {
    let home = Home::with_golden();
    let _slot = slots::take(1);
    let base = own_base_disk(&home);
    check_runs(&home, GOLDEN);
    // Byte 1024 begins the ext4 superblock.
    change_secretly(&base, 1024 + 0x78);
    check_refused(&home, &[base.to_str().unwrap(), "was changed"]);
    change_secretly(&base, 1024 + 0x78);
    check_runs(&home, GOLDEN);

    // The delta is in the store as well, and taken from there.
    let manifest: Value = serde_json::from_str(&home.manifest()).unwrap();
    let blake3: Digest = manifest["labels"]["disk_delta_blake3"].as_str().unwrap().parse().unwrap();
    let delta = home.layout().disks().join(format!("{blake3}.qcow2"));
    change_secretly(&delta, 4096);
    assert_ne!(FileRef::of(&delta).unwrap().blake3, blake3);
    check_runs(&home, GOLDEN);
    assert_eq!(FileRef::of(&delta).unwrap().blake3, blake3, "a changed delta is still there");
}

#[test]
fn a_manifest_that_names_other_folders_has_none_of_them_removed() {
    let home = Home::with_golden();
    let outside = home.layout().run().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("base.img"), "not yours").unwrap();
    // Not the link to the boot artifacts that all homes share: the way out begins there.
    fs::remove_file(home.layout().images()).unwrap();
    fs::create_dir_all(home.layout().images().join("rootfs")).unwrap();
    let key = "../../../run/outside";
    assert!(
        home.layout().images().join("rootfs").join(key).join("base.img").exists(),
        "the way out leads nowhere"
    );
    Database::open(&home).alter_manifest(GOLDEN, GOLDEN, |manifest| {
        manifest["labels"]["image_key"] = key.into();
        manifest["base_disk"]["file_name"] = "base.img".into();
    });
    let removed = home.mayfly(["golden", "rm", GOLDEN]).run();
    assert!(removed.success(), "{removed}");
    assert!(outside.join("base.img").exists(), "a folder outside of the images was removed");
}
