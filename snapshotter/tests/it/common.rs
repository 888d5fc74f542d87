//! Snapshots to store: deterministic content, so that a test can say what must come back.

use mayfly_snapshotter::{
    CHUNK_SIZE, Digest, FileRef, HostPins, Manifest, NewSnapshot, Result, Store, StreamKind,
    VmShape,
};
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;

pub static NEVER: AtomicBool = AtomicBool::new(false);

/// Makes one chunk of bytes that do not compress, the same for the same `seed`.
pub fn noise(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; CHUNK_SIZE];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Makes a stream of one chunk per seed; seed 0 is a hole.
pub fn sparse(seeds: &[u64]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len((seeds.len() * CHUNK_SIZE) as u64).unwrap();
    for (i, seed) in seeds.iter().enumerate().filter(|(_, s)| **s != 0) {
        file.write_all_at(&noise(*seed), (i * CHUNK_SIZE) as u64).unwrap();
    }
    file
}

pub struct Vm {
    pub ram: File,
    pub device: File,
    pub disk: File,
}

impl Vm {
    /// Makes RAM of one chunk per seed, a short device state, an empty disk delta.
    pub fn of(ram: &[u64]) -> Self {
        let device = tempfile::tempfile().unwrap();
        device.write_all_at(b"device state", 0).unwrap();
        Self { ram: sparse(ram), device, disk: tempfile::tempfile().unwrap() }
    }

    pub fn snapshot<'a>(&'a self, name: &'a str) -> NewSnapshot<'a> {
        NewSnapshot {
            name,
            build_key: Digest::of(name.as_bytes()).to_string(),
            pins: HostPins {
                arch: "x86_64".into(),
                vmm: "qemu".into(),
                vmm_version: "10.0.2".into(),
                machine: "microvm".into(),
                accel: "tcg".into(),
                cpu_model: "max".into(),
                kernel_blake3: Digest::of(b"kernel"),
            },
            vm: VmShape { vcpus: 1, memory_bytes: 1 << 30, kernel_cmdline: "quiet".into() },
            base_disk: FileRef {
                file_name: "base.img".into(),
                blake3: Digest::of(b"base"),
                len: 4,
            },
            ram: (&self.ram).into(),
            device: (&self.device).into(),
            disk: (&self.disk).into(),
            labels: BTreeMap::new(),
        }
    }

    pub fn commit(&self, store: &Store, name: &str) -> Result<Manifest> {
        store.commit(self.snapshot(name), &mut |_| {}, &NEVER)
    }
}

/// Asserts that the seeds give back exactly the RAM of golden image `name`.
pub fn assert_ram(store: &Store, name: &str, seeds: &[u64]) {
    let reader = store.reader(&store.manifest(name).unwrap(), StreamKind::Ram).unwrap();
    assert_eq!(reader.chunk_count(), seeds.len());
    let mut chunk = vec![0; CHUNK_SIZE];
    for (i, seed) in seeds.iter().enumerate() {
        assert_eq!(reader.is_zero(i), *seed == 0, "chunk {i}");
        reader.read_chunk(i, &mut chunk).unwrap();
        let expected = if *seed == 0 { vec![0; CHUNK_SIZE] } else { noise(*seed) };
        assert!(chunk == expected, "chunk {i} of {name} has other bytes");
    }
}

/// Asserts that `verify` finds nothing wrong.
pub fn assert_good(store: &Store, name: &str) {
    let report = store.verify(name, &mut |_| {}, &NEVER).unwrap();
    assert!(report.is_ok(), "{:?}", report.bad);
}

/// Names of the files in the pack directory, sorted.
pub fn pack_files(dir: &Path) -> Vec<String> {
    let files = std::fs::read_dir(dir.join("packs")).unwrap();
    let mut names: Vec<_> = files.map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Asserts that the pack directory has the packs the metadata knows and nothing else.
pub fn assert_no_leftovers(store: &Store) {
    let files = pack_files(store.dir());
    assert!(files.iter().all(|f| f.ends_with(".pack")), "{files:?}");
    assert_eq!(files.len() as u64, store.usage().unwrap().packs, "{files:?}");
}

/// Returns the number of bytes of all files in the pack directory.
pub fn pack_bytes(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir.join("packs")).unwrap();
    files.map(|f| f.unwrap().metadata().unwrap().len()).sum()
}

/// Opens the database, as anyone could who may write it.
pub fn database(dir: &Path) -> Connection {
    Connection::open_with_flags(dir.join("db/store.sqlite"), OpenFlags::SQLITE_OPEN_READ_WRITE)
        .unwrap()
}

/// Reads a value from the database.
pub fn value(dir: &Path, table: &str, key: &str) -> Option<Vec<u8>> {
    let select = format!("SELECT value FROM {table} WHERE key = ?1");
    database(dir).query_row(&select, [key.as_bytes()], |row| row.get(0)).optional().unwrap()
}

/// Changes a value behind the store's back.
pub fn alter(dir: &Path, table: &str, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut value = value(dir, table, key).unwrap();
    change(&mut value);
    let update = format!("UPDATE {table} SET value = ?2 WHERE key = ?1");
    assert_eq!(database(dir).execute(&update, [key.as_bytes(), &value]).unwrap(), 1);
}

/// Copies the store as a crash of the host would leave it now.
pub fn copy(from: &Path, to: &Path) {
    for folder in ["db", "packs"] {
        std::fs::create_dir_all(to.join(folder)).unwrap();
        for entry in std::fs::read_dir(from.join(folder)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.join(folder).join(entry.file_name())).unwrap();
        }
    }
}
