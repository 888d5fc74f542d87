//! The metadata database: RocksDB column families, their keys and values.
//!
//! ```text
//! meta          "format_version" -> u32 LE, "next_pack" -> u64 LE (no pack id below it is ever given out again),
//!               "seal/NAME" -> seal, 32 bytes
//! manifests     NAME -> manifest envelope
//! tables        NAME/STREAM -> chunk table envelope
//! working_sets  NAME -> working set envelope
//! chunks        chunk id -> ChunkEntry (postcard)
//! packs         pack id u64 BE -> PackEntry (postcard)
//! ```

use crate::fsutil::{available_bytes, io_error};
use crate::pack::Location;
use crate::table::WorkingSet;
use crate::{ChunkId, ChunkTable, Error, FormatError, GoldenName, Manifest, Result, StreamKind};
use rocksdb::{ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, IteratorMode, LogLevel, Options};
use rocksdb::{WriteBatch, WriteOptions};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::sleep;
use std::time::Duration;

/// Version of the whole layout: column families, keys, values.
const STORE_VERSION: u32 = 1;
const FORMAT_VERSION_KEY: &str = "format_version";
const NEXT_PACK_KEY: &str = "next_pack";

/// A column family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cf {
    Meta,
    Manifests,
    Tables,
    WorkingSets,
    Chunks,
    Packs,
}

impl Cf {
    const ALL: [Self; 6] = [Self::Meta, Self::Manifests, Self::Tables, Self::WorkingSets, Self::Chunks, Self::Packs];

    const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Manifests => "manifests",
            Self::Tables => "tables",
            Self::WorkingSets => "working_sets",
            Self::Chunks => "chunks",
            Self::Packs => "packs",
        }
    }
}

/// A stored chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChunkEntry {
    pub location: Location,
    /// Number of golden images that use it, however often each does. Never 0 in the database.
    pub references: u64,
}

/// A pack file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PackEntry {
    /// Length of the file.
    pub file_len: u64,
    /// Records in it.
    pub chunks: u64,
    /// Records in it that the chunks column family points to. Never 0 in the database.
    pub live_chunks: u64,
    /// Bytes of those, headers included.
    pub live_bytes: u64,
}

/// What the seal of a golden image covers, decoded and as it is stored, and the seal.
pub(crate) struct GoldenRecord {
    pub manifest: Manifest,
    pub working_set: WorkingSet,
    pub encoded_manifest: Vec<u8>,
    /// Empty when none was recorded.
    pub encoded_working_set: Vec<u8>,
    pub seal: Option<Vec<u8>>,
}

/// The open database.
pub(crate) struct Db {
    /// Directory of the store.
    dir: PathBuf,
    read_only: bool,
    handle: RwLock<Arc<DB>>,
}

impl Db {
    /// Opens for writing, creating what is missing.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = db_path(dir);
        std::fs::create_dir_all(&path).map_err(|e| io_error("create", &path, e))?;
        let db = DB::open_cf_descriptors(&options(), &path, descriptors()).map_err(|e| {
            // RocksDB's message when another process has the lock, and when this one has.
            let text: &str = e.as_ref();
            if text.contains("While lock file") || text.contains("lock hold by current process") {
                Error::Locked { dir: dir.to_owned() }
            } else {
                db_error("open", dir, e)
            }
        })?;
        let db = Self { dir: dir.to_owned(), read_only: false, handle: RwLock::new(Arc::new(db)) };
        if !db.check_version()? {
            let mut batch = WriteBatch::default();
            db.put(&mut batch, Cf::Meta, FORMAT_VERSION_KEY, &STORE_VERSION.to_le_bytes());
            db.write(batch)?;
        }
        Ok(db)
    }

    /// Opens a fixed view of the present state, beside any writer.
    pub fn open_read_only(dir: &Path) -> Result<Self> {
        let handle = open_view(dir)?;
        let db = Self { dir: dir.to_owned(), read_only: true, handle: RwLock::new(Arc::new(handle)) };
        db.check_version()?;
        Ok(db)
    }

    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Makes a read-only database show the present state. A writable one always does.
    pub fn refresh(&self) -> Result<()> {
        if self.read_only {
            let fresh = Arc::new(open_view(&self.dir)?);
            *self.handle.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
        Ok(())
    }

    fn check_version(&self) -> Result<bool> {
        let Some(bytes) = self.get(Cf::Meta, FORMAT_VERSION_KEY)? else {
            return Ok(false);
        };
        let found = bytes.as_slice().try_into().map_or(0, u32::from_le_bytes);
        if found == STORE_VERSION {
            Ok(true)
        } else {
            Err(Error::StoreVersion { dir: self.dir.clone(), found, supported: STORE_VERSION })
        }
    }

    fn db(&self) -> Arc<DB> {
        self.handle.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn get(&self, cf: Cf, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>> {
        let db = self.db();
        db.get_cf(column(&db, cf), key).map_err(|e| db_error("read", &self.dir, e))
    }

    fn for_each(&self, cf: Cf, mut visit: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        let db = self.db();
        for item in db.iterator_cf(column(&db, cf), IteratorMode::Start) {
            let (key, value) = item.map_err(|e| db_error("read", &self.dir, e))?;
            visit(&key, &value)?;
        }
        Ok(())
    }

    pub fn put(&self, batch: &mut WriteBatch, cf: Cf, key: impl AsRef<[u8]>, value: &[u8]) {
        batch.put_cf(column(&self.db(), cf), key, value);
    }

    pub fn delete(&self, batch: &mut WriteBatch, cf: Cf, key: impl AsRef<[u8]>) {
        batch.delete_cf(column(&self.db(), cf), key);
    }

    pub fn put_chunk(&self, batch: &mut WriteBatch, id: &ChunkId, entry: &ChunkEntry) {
        self.put(batch, Cf::Chunks, id.as_bytes(), &to_bytes(entry));
    }

    pub fn put_pack(&self, batch: &mut WriteBatch, id: u64, entry: &PackEntry) {
        self.put(batch, Cf::Packs, id.to_be_bytes(), &to_bytes(entry));
    }

    pub fn put_next_pack(&self, batch: &mut WriteBatch, next: u64) {
        self.put(batch, Cf::Meta, NEXT_PACK_KEY, &next.to_le_bytes());
    }

    /// Writes a batch and waits until it is on stable storage.
    pub fn write(&self, batch: WriteBatch) -> Result<()> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db().write_opt(batch, &options).map_err(|e| db_error("write", &self.dir, e))
    }

    /// The least pack id never given out.
    pub fn next_pack(&self) -> Result<u64> {
        let bytes = self.get(Cf::Meta, NEXT_PACK_KEY)?;
        Ok(bytes.and_then(|b| b.as_slice().try_into().ok()).map_or(1, u64::from_le_bytes))
    }

    pub fn chunk(&self, id: &ChunkId) -> Result<Option<ChunkEntry>> {
        self.get(Cf::Chunks, id.as_bytes())?.map(|b| self.parse("a chunk entry", &b)).transpose()
    }

    pub fn for_each_chunk(&self, mut visit: impl FnMut(ChunkId, ChunkEntry) -> Result<()>) -> Result<()> {
        self.for_each(Cf::Chunks, |key, value| {
            let key = key.try_into().map_err(|_| self.damaged("a chunk key", "its length"))?;
            visit(ChunkId::from_bytes(key), self.parse("a chunk entry", value)?)
        })
    }

    pub fn pack(&self, id: u64) -> Result<Option<PackEntry>> {
        self.get(Cf::Packs, id.to_be_bytes())?.map(|b| self.parse("a pack entry", &b)).transpose()
    }

    pub fn packs(&self) -> Result<Vec<(u64, PackEntry)>> {
        let mut packs = Vec::new();
        self.for_each(Cf::Packs, |key, value| {
            let key = key.try_into().map_err(|_| self.damaged("a pack key", "its length"))?;
            packs.push((u64::from_be_bytes(key), self.parse("a pack entry", value)?));
            Ok(())
        })?;
        Ok(packs)
    }

    /// Names of the golden images, sorted; also of those whose manifest is damaged.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        self.for_each(Cf::Manifests, |key, _| {
            names.push(String::from_utf8_lossy(key).into_owned());
            Ok(())
        })?;
        Ok(names)
    }

    pub fn manifest(&self, name: &str) -> Result<Manifest> {
        match self.get(Cf::Manifests, name)? {
            Some(bytes) => decode_manifest(name, &bytes),
            None => Err(Error::UnknownGolden { name: name.to_owned(), known: self.names()? }),
        }
    }

    /// What the seal of a golden image covers, and the seal, all of one state of a read-only database.
    pub fn golden(&self, name: &str) -> Result<GoldenRecord> {
        let db = self.db();
        let get = |cf, key: &str| db.get_cf(column(&db, cf), key).map_err(|e| db_error("read", &self.dir, e));
        let Some(encoded_manifest) = get(Cf::Manifests, name)? else {
            return Err(Error::UnknownGolden { name: name.to_owned(), known: self.names()? });
        };
        let encoded_working_set = get(Cf::WorkingSets, name)?;
        Ok(GoldenRecord {
            manifest: decode_manifest(name, &encoded_manifest)?,
            working_set: decode_working_set(name, encoded_working_set.as_deref())?,
            encoded_manifest,
            encoded_working_set: encoded_working_set.unwrap_or_default(),
            seal: get(Cf::Meta, &seal_key(name))?,
        })
    }

    /// The encoded chunk table of a stream, if there is one.
    pub fn table_bytes(&self, name: &str, kind: StreamKind) -> Result<Option<Vec<u8>>> {
        self.get(Cf::Tables, table_key(name, kind))
    }

    /// All chunk tables of a golden image; `Err` inside for the first that is missing or damaged.
    pub fn tables(&self, name: &str) -> Result<Result<Vec<ChunkTable>, FormatError>> {
        let mut tables = Vec::new();
        for kind in StreamKind::ALL {
            let missing = FormatError::Truncated { what: "a chunk table", need: 1, have: 0 };
            match self.table_bytes(name, kind)?.ok_or(missing).and_then(|b| ChunkTable::decode(&b)) {
                Ok(table) => tables.push(table),
                Err(e) => return Ok(Err(e)),
            }
        }
        Ok(Ok(tables))
    }

    pub fn working_set(&self, name: &str) -> Result<WorkingSet> {
        decode_working_set(name, self.get(Cf::WorkingSets, name)?.as_deref())
    }

    pub fn damaged(&self, what: &'static str, reason: impl Into<String>) -> Error {
        Error::DamagedStore { dir: self.dir.clone(), source: FormatError::Content { what, reason: reason.into() } }
    }

    fn parse<T: DeserializeOwned>(&self, what: &'static str, bytes: &[u8]) -> Result<T> {
        postcard::from_bytes(bytes).map_err(|e| self.damaged(what, e.to_string()))
    }
}

/// Key of a chunk table. Names have no `/`.
pub(crate) fn table_key(name: &str, kind: StreamKind) -> String {
    format!("{name}/{kind}")
}

/// Key of the seal of a golden image.
pub(crate) fn seal_key(name: &str) -> String {
    format!("seal/{name}")
}

fn decode_manifest(name: &str, bytes: &[u8]) -> Result<Manifest> {
    Manifest::decode(bytes)
        .and_then(|m| if *m.name == *name { Ok(m) } else { Err(another_name(&m.name)) })
        .map_err(|source| Error::DamagedGolden { golden: name.to_owned(), source })
}

fn decode_working_set(name: &str, bytes: Option<&[u8]>) -> Result<WorkingSet> {
    let decoded = bytes.map_or(Ok(WorkingSet::default()), WorkingSet::decode);
    decoded.map_err(|source| Error::DamagedGolden { golden: name.to_owned(), source })
}

fn another_name(name: &GoldenName) -> FormatError {
    FormatError::Content { what: "the manifest", reason: format!("it is that of `{name}`") }
}

fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("entries are plain integers")
}

fn column(db: &DB, cf: Cf) -> &ColumnFamily {
    db.cf_handle(cf.name()).expect("every column family was opened with the database")
}

fn db_path(dir: &Path) -> PathBuf {
    dir.join("db")
}

fn db_error(action: &'static str, dir: &Path, source: rocksdb::Error) -> Error {
    let text: &str = source.as_ref();
    // RocksDB passes on strerror(ENOSPC) and strerror(EDQUOT).
    if text.contains("No space left on device") || text.contains("Disk quota exceeded") {
        Error::DiskFull { action, path: db_path(dir), available: available_bytes(dir) }
    } else {
        Error::Database { action, dir: dir.to_owned(), source }
    }
}

/// Opens a read-only view. A writer may delete files that compaction or a flush replaced between our reading which
/// files there are and our opening them; the next try then reads the new list.
fn open_view(dir: &Path) -> Result<DB> {
    let path = db_path(dir);
    if !path.join("CURRENT").exists() {
        return Err(Error::NoStore { dir: dir.to_owned() });
    }
    let mut tries = 0;
    loop {
        match DB::open_cf_descriptors_read_only(&options(), &path, descriptors(), false) {
            Ok(db) => return Ok(db),
            Err(e) if tries == 7 => return Err(db_error("open", dir, e)),
            Err(error) => {
                tracing::debug!(%error, tries, "opening the store beside its writer again")
            }
        }
        sleep(Duration::from_millis(5 << tries));
        tries += 1;
    }
}

fn descriptors() -> impl Iterator<Item = ColumnFamilyDescriptor> {
    Cf::ALL.into_iter().map(|cf| {
        let mut options = Options::default();
        options.set_write_buffer_size(4 << 20);
        options.set_compression_type(DBCompressionType::None);
        ColumnFamilyDescriptor::new(cf.name(), options)
    })
}

fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // All files open from the start: a read-only view then survives the writer deleting them.
    options.set_max_open_files(-1);
    options.set_max_background_jobs(2);
    options.set_max_total_wal_size(16 << 20);
    // One batch touches several column families; they have to reach their files together.
    options.set_atomic_flush(true);
    options.set_stats_dump_period_sec(0);
    // RocksDB's messages go to our log. Its own LOG file would be rotated by every reader under the writer's feet.
    options.set_info_logger(rocksdb::InfoLogger::new_callback_logger(LogLevel::Warn, |level, text| match level {
        LogLevel::Error | LogLevel::Fatal => {
            tracing::warn!(target: "mayfly_snapshotter::rocksdb", "{}", text.trim())
        }
        _ => tracing::debug!(target: "mayfly_snapshotter::rocksdb", "{}", text.trim()),
    }));
    options
}
