//! The database's files cut, altered and replaced: a typed error that names the file, or what was
//! stored. Never other bytes, and never a pack deleted because the database has forgotten it.

use crate::common::*;
use mayfly_snapshotter::{Error, SealKey, Store, StreamKind};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const GOLDENS: [(&str, &[u64]); 2] = [("g", &[1, 2, 0, 3, 4]), ("other", &[3, 4, 5, 6, 7, 8])];

/// A store with both goldens, sealed, closed.
struct Stored {
    dir: tempfile::TempDir,
    key: SealKey,
}

impl Stored {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = SealKey::load_or_create(&dir.path().join("seal.key")).unwrap();
        let stored = Self { dir, key };
        drop(stored.fill());
        stored
    }

    fn fill(&self) -> Store {
        let store = Store::open(self.path()).unwrap().with_seal_key(self.key.clone());
        for (name, ram) in GOLDENS {
            let vm = Vm::of(ram);
            let mut snapshot = vm.snapshot(name);
            // More than fits into a page with others.
            snapshot.labels.insert("notes".to_owned(), "x".repeat(6000));
            store.commit(snapshot, &mut |_| {}, &NEVER).unwrap();
            store.set_working_set(name, vec![2, 0]).unwrap();
        }
        store
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn file(&self) -> PathBuf {
        self.path().join("db/store.sqlite")
    }

    /// Removes what readers leave beside the database.
    fn without_log(&self) {
        for name in ["store.sqlite-wal", "store.sqlite-shm"] {
            let _ = fs::remove_file(self.path().join("db").join(name));
        }
    }

    /// Reads everything there is. What is believed is what was stored; what is not, is a typed
    /// error that says where and what to do. Returns how many goldens were good.
    fn probe(&self, case: &str) -> usize {
        let fine = |error: &Error| {
            let text = error.to_string();
            let place = [self.path().to_str().unwrap(), "golden image `"]
                .iter()
                .any(|place| text.contains(place));
            assert!(place && text.contains("build"), "{case}: {text}");
            let typed = matches!(
                error,
                Error::DamagedStore { .. }
                    | Error::DamagedGolden { .. }
                    | Error::StoreVersion { .. }
                    | Error::WrongSeal { .. }
                    | Error::Unsealed { .. }
                    | Error::BadChunk(_)
                    | Error::Stale { .. }
            );
            assert!(typed, "{case}: {error:?}");
        };
        let store = match Store::open_read_only(self.path()) {
            Ok(store) => store.with_seal_key(self.key.clone()),
            Err(error) => {
                fine(&error);
                return 0;
            }
        };
        match store.entries() {
            Ok(entries) => {
                entries.iter().filter_map(|(_, manifest)| manifest.as_ref().err()).for_each(fine);
            }
            Err(error) => fine(&error),
        }
        let mut good = 0;
        for (name, ram) in GOLDENS {
            let read = store.sealed(name).and_then(|(manifest, working_set)| {
                // None in the state before it was recorded.
                assert!(working_set.is_empty() || working_set == [2, 0], "{case}: {working_set:?}");
                StreamKind::ALL
                    .into_iter()
                    .try_for_each(|kind| store.reader(&manifest, kind).map(drop))
            });
            match read {
                Ok(()) => {
                    assert_ram(&store, name, ram);
                    good += 1;
                }
                // The name itself was altered, or the tree does not lead to it any more.
                Err(Error::UnknownGolden { .. }) => {}
                Err(error) => fine(&error),
            }
        }
        good
    }
}

fn assert_damaged(stored: &Stored, case: &str) {
    let packs = pack_files(&stored.path());
    for result in [Store::open_read_only(stored.path()), Store::open(stored.path())] {
        let error = result.expect_err(case);
        assert!(matches!(error, Error::DamagedStore { .. }), "{case}: {error:?}");
        let text = error.to_string();
        for part in
            [stored.path().to_str().unwrap(), "db/store.sqlite", "build the golden images again"]
        {
            assert!(text.contains(part), "{case}: {text}");
        }
    }
    assert_eq!(pack_files(&stored.path()), packs, "{case}: packs went");
}

#[test]
fn a_flipped_bit_anywhere_in_the_database_is_told_or_harmless() {
    let stored = Stored::new();
    let file = OpenOptions::new().read(true).write(true).open(stored.file()).unwrap();
    let len = file.metadata().unwrap().len();
    let packs = pack_files(&stored.path());
    let (mut cases, mut refused) = (0, 0);
    // All of the first page's header, and a byte here and there of all pages.
    for at in (0..100).chain((100..len).step_by(43)) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << (at % 8))], at).unwrap();
        let case = format!("bit {} of byte {at}", at % 8);
        cases += 1;
        refused += u32::from(stored.probe(&case) < GOLDENS.len());
        // A writer deletes packs that it does not know. Fewer of these: opening for writing waits
        // for the disk.
        if at < 100 || at % 5 == 0 {
            match Store::open(stored.path()) {
                Ok(store) => drop(store),
                Err(Error::DamagedStore { .. } | Error::StoreVersion { .. }) => {}
                Err(error) => panic!("{case}: {error:?}"),
            }
            assert_eq!(pack_files(&stored.path()), packs, "{case}: packs went");
        }
        stored.without_log();
        file.write_all_at(&byte, at).unwrap();
    }
    assert!(refused > cases / 20, "of {cases} cases only {refused} hit anything");
    assert_eq!(stored.probe("put right again"), GOLDENS.len());
}

#[test]
fn a_database_cut_anywhere_is_told() {
    let stored = Stored::new();
    let bytes = fs::read(stored.file()).unwrap();
    assert_eq!(bytes.len() % 4096, 0);
    for len in
        [0, 1, 15, 16, 99, 100, 511, 512, 4095].into_iter().chain((4096..bytes.len()).step_by(4096))
    {
        fs::write(stored.file(), &bytes[..len]).unwrap();
        assert_damaged(&stored, &format!("cut at {len}"));
        stored.without_log();
    }
    // Inside of a page, what is missing is zeros to SQLite.
    for len in (4097..bytes.len()).step_by(1021) {
        fs::write(stored.file(), &bytes[..len]).unwrap();
        stored.probe(&format!("cut at {len}"));
        stored.without_log();
    }
    fs::write(stored.file(), &bytes).unwrap();
    assert_eq!(stored.probe("whole again"), GOLDENS.len());
}

#[test]
fn another_file_in_the_place_of_the_database_is_told() {
    let stored = Stored::new();
    let bytes = fs::read(stored.file()).unwrap();
    let put = |content: &[u8]| {
        fs::write(stored.file(), content).unwrap();
        stored.without_log();
    };
    put(&noise(1));
    assert_damaged(&stored, "noise");
    put(&[0; 65_536]);
    assert_damaged(&stored, "zeros");
    for sql in [
        "CREATE TABLE more (a)",
        "CREATE TRIGGER t AFTER INSERT ON meta BEGIN DELETE FROM manifests; END",
        "CREATE VIEW v AS SELECT * FROM meta",
        "CREATE INDEX i ON meta (value)",
        "DROP TABLE packs",
        "DROP TABLE packs; CREATE VIEW packs AS SELECT key, value FROM chunks",
        "DROP TABLE packs; CREATE TABLE packs (key BLOB PRIMARY KEY, value BLOB DEFAULT (randomblob(9)))",
        "DROP TABLE meta",
        "PRAGMA journal_mode = DELETE",
    ] {
        put(&bytes);
        database(&stored.path()).execute_batch(sql).unwrap();
        assert_damaged(&stored, sql);
    }
    fs::remove_file(stored.file()).unwrap();
    stored.without_log();
    rusqlite::Connection::open(stored.file())
        .unwrap()
        .execute_batch("CREATE TABLE theirs (a)")
        .unwrap();
    assert_damaged(&stored, "a database of somebody else");
    fs::remove_file(stored.file()).unwrap();
    stored.without_log();
    fs::create_dir(stored.file()).unwrap();
    assert_damaged(&stored, "a folder");
    fs::remove_dir(stored.file()).unwrap();
    // A pipe makes whoever opens it wait.
    nix::unistd::mkfifo(&stored.file(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_damaged(&stored, "a pipe");
    fs::remove_file(stored.file()).unwrap();
    put(&bytes);
    assert_eq!(stored.probe("the right one again"), GOLDENS.len());
}

#[test]
fn entries_without_an_envelope_have_a_checksum_that_covers_their_key() {
    for (sql, what) in [
        (
            "UPDATE chunks SET value = CAST(substr(value, 1, length(value) - 1) || x'00' AS BLOB)",
            "chunk entry",
        ),
        ("UPDATE chunks SET value = (SELECT value FROM chunks LIMIT 1)", "chunk entry"),
        ("UPDATE chunks SET value = x'00'", "chunk entry"),
        (
            "UPDATE packs SET key = x'0000000000000009' WHERE key = (SELECT key FROM packs LIMIT 1)",
            "pack entry",
        ),
    ] {
        let stored = Stored::new();
        assert!(database(&stored.path()).execute(sql, []).unwrap() > 0);
        let store = Store::open_read_only(stored.path()).unwrap();
        let error = match what {
            "pack entry" => store.usage().unwrap_err(),
            _ => store.reader(&store.manifest("other").unwrap(), StreamKind::Ram).unwrap_err(),
        };
        assert!(matches!(error, Error::DamagedStore { .. }), "{sql}: {error}");
        assert!(error.to_string().contains(what), "{sql}: {error}");
        let packs = pack_files(&stored.path());
        if what == "pack entry" {
            assert!(matches!(Store::open(stored.path()), Err(Error::DamagedStore { .. })));
        }
        assert_eq!(pack_files(&stored.path()), packs, "{sql}: packs went");
    }
}

#[test]
fn a_damaged_log_leaves_an_earlier_state() {
    let source = Stored::new();
    fs::remove_dir_all(source.path()).unwrap();
    // Open still: nothing is written back yet.
    let writer = source.fill();
    let copied = Stored { dir: tempfile::tempdir().unwrap(), key: source.key.clone() };
    copy(&source.path(), &copied.path());
    let (log, index) =
        (copied.path().join("db/store.sqlite-wal"), copied.path().join("db/store.sqlite-shm"));
    let bytes = fs::read(&log).unwrap();
    assert!(bytes.len() > 16 * 4096);
    drop(writer);
    let mut seen = [0; 3];
    for at in (0..bytes.len()).step_by(389) {
        let mut altered = bytes.clone();
        altered[at] ^= 1 << (at % 8);
        fs::write(&log, altered).unwrap();
        fs::write(&index, noise(at as u64)).unwrap();
        seen[copied.probe(&format!("byte {at} of the log"))] += 1;
    }
    for len in (0..bytes.len()).step_by(1999) {
        fs::write(&log, &bytes[..len]).unwrap();
        seen[copied.probe(&format!("the log cut at {len}"))] += 1;
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
    fs::write(&log, &bytes).unwrap();
    assert_eq!(copied.probe("the whole log"), GOLDENS.len());
    // What a reader made of the log is not written back: a writer finds it as it was.
    Store::open(copied.path()).unwrap();
    assert_eq!(copied.probe("written back"), GOLDENS.len());
}

#[test]
fn a_store_of_rocksdb_is_refused_as_an_older_version_and_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("db")).unwrap();
    fs::create_dir_all(dir.path().join("packs")).unwrap();
    fs::write(dir.path().join("db/CURRENT"), "MANIFEST-000005\n").unwrap();
    let pack = dir.path().join("packs/0000000000000001.pack");
    fs::write(&pack, "").unwrap();
    for result in [Store::open_read_only(dir.path()), Store::open(dir.path())] {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::StoreVersion { found: 1, supported: 2, .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(dir.path().to_str().unwrap())
                && text.contains("build the golden images again"),
            "{text}"
        );
    }
    assert!(pack.exists() && !dir.path().join("db/store.sqlite").exists());
}

#[test]
fn a_new_database_does_not_take_the_log_of_one_that_was_removed() {
    let stored = Stored::new();
    let writer = Store::open(stored.path()).unwrap();
    Vm::of(&[9]).commit(&writer, "h").unwrap();
    let log = fs::read(stored.path().join("db/store.sqlite-wal")).unwrap();
    drop(writer);
    fs::remove_file(stored.file()).unwrap();
    fs::write(stored.path().join("db/store.sqlite-wal"), log).unwrap();
    fs::write(stored.path().join("db/store.sqlite.new"), "an interrupted attempt").unwrap();
    assert!(matches!(Store::open_read_only(stored.path()), Err(Error::NoStore { .. })));
    let store = Store::open(stored.path()).unwrap();
    assert_eq!(store.list().unwrap(), []);
    Vm::of(&[9]).commit(&store, "h").unwrap();
    assert_ram(&store, "h", &[9]);
    assert!(!stored.path().join("db/store.sqlite.new").exists());
}
