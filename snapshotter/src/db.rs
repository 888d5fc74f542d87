//! The metadata database: what its tables hold, see [`Table`], and how it is read and written.
//!
//! ```text
//! meta          "format_version" -> u32 LE, "next_pack" -> u64 LE (no pack id below it is ever given out again),
//!               "opened" -> u64 LE (how often the store was opened for writing), "seal/NAME" -> seal, 32 bytes
//! manifests     NAME -> manifest envelope
//! tables        NAME/STREAM -> chunk table envelope
//! working_sets  NAME -> working set envelope
//! chunks        chunk id -> ChunkEntry (postcard), checksum
//! packs         pack id u64 BE -> PackEntry (postcard), checksum
//! ```
//!
//! SQLite has no checksums for what is in its tables. Envelopes have one of their own; entries end
//! with the first 8 bytes of the blake3 hash of key and entry.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::MutexGuard;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::fsutil::io_error;
use crate::pack::Location;
use crate::schema::{self, Session, Table};
use crate::sqlite::{self, WriterLock};
use crate::table::WorkingSet;
use crate::view::{self, Slot};
use crate::{ChunkId, ChunkTable, Error, FormatError, GoldenName, Manifest, Result, StreamKind};

const NEXT_PACK_KEY: &str = "next_pack";
const OPENED_KEY: &str = "opened";
/// Bytes of the checksum of an entry.
const SUM_LEN: usize = 8;

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
    /// Records in it that the chunks table points to. Never 0 in the database.
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

/// Changes to be made together, the last one of a key; kept in the order of the tables, so that
/// each page is written once.
#[derive(Default)]
pub(crate) struct Batch(BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>);

impl Batch {
    pub fn put(&mut self, table: Table, key: impl AsRef<[u8]>, value: &[u8]) {
        self.0.insert((table, key.as_ref().to_owned()), Some(value.to_owned()));
    }

    pub fn delete(&mut self, table: Table, key: impl AsRef<[u8]>) {
        self.0.insert((table, key.as_ref().to_owned()), None);
    }

    pub fn put_chunk(&mut self, id: &ChunkId, entry: &ChunkEntry) {
        self.put(Table::Chunks, id.as_bytes(), &to_bytes(id.as_bytes(), entry));
    }

    pub fn put_pack(&mut self, id: u64, entry: &PackEntry) {
        let key = id.to_be_bytes();
        self.put(Table::Packs, key, &to_bytes(&key, entry));
    }

    pub fn put_next_pack(&mut self, next: u64) {
        self.put(Table::Meta, NEXT_PACK_KEY, &next.to_le_bytes());
    }
}

/// The open database.
pub(crate) struct Db {
    /// Directory of the store.
    dir: PathBuf,
    connection: Arc<Slot>,
    /// `None` when read-only. Behind the connection, so that it is given back when that is closed.
    lock: Option<WriterLock>,
}

impl Db {
    /// Opens for writing, creating what is missing.
    pub fn open(dir: &Path) -> Result<Self> {
        let (folder, lock) = (schema::folder(dir), schema::lock_path(dir));
        std::fs::create_dir_all(&folder).map_err(|e| io_error("create", &folder, e))?;
        let lock = WriterLock::take(&lock).map_err(|e| io_error("lock", &lock, e))?;
        let lock = Some(lock.ok_or_else(|| Error::Locked { dir: dir.to_owned() })?);
        schema::create_missing(dir)?;
        let connection = Arc::new(Slot::new(Some(schema::open_writable(dir)?)));
        let db = Self { dir: dir.to_owned(), connection, lock };
        db.settle()?;
        Ok(db)
    }

    /// Overwrites what a writer that died may have left in the log.
    ///
    /// It may have written a whole commit to the log, and died before it told the index of the log.
    /// While readers keep the index, nobody sees that commit; once it is made anew, from the log,
    /// everybody does. By then the packs of the commit would be deleted, since the state without it
    /// does not know them. Any commit of ours overwrites it.
    fn settle(&self) -> Result<()> {
        let opened = self
            .get(Table::Meta, OPENED_KEY)?
            .and_then(|b| b.try_into().ok())
            .map_or(0, u64::from_le_bytes);
        let mut batch = Batch::default();
        batch.put(Table::Meta, OPENED_KEY, &opened.wrapping_add(1).to_le_bytes());
        self.write(&batch)
    }

    /// Opens a view of the present state, beside any writer.
    pub fn open_read_only(dir: &Path) -> Result<Self> {
        let db = Self { dir: dir.to_owned(), connection: Arc::default(), lock: None };
        db.refresh()?;
        Ok(db)
    }

    pub fn is_read_only(&self) -> bool {
        self.lock.is_none()
    }

    /// Makes a read-only database show the present state. A writable one always does.
    pub fn refresh(&self) -> Result<()> {
        if self.is_read_only() {
            self.renew(&mut self.lock())?;
        }
        Ok(())
    }

    fn renew<'a>(&self, slot: &'a mut Option<Connection>) -> Result<&'a Connection> {
        let fresh = slot.insert(schema::open_view(&self.dir)?);
        view::limit(&self.connection);
        Ok(fresh)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection.lock()
    }

    /// Uses the database; nobody else of this process does meanwhile.
    fn with<T>(&self, work: impl FnOnce(&Session<'_>) -> Result<T>) -> Result<T> {
        let mut slot = self.lock();
        let connection = match &*slot {
            Some(connection) => connection,
            // A view that was closed because of its age.
            None => self.renew(&mut slot)?,
        };
        work(&Session { connection, dir: &self.dir })
    }

    pub fn get(&self, table: Table, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>> {
        self.with(|session| session.get(table, key.as_ref()))
    }

    /// `visit` must not use the database.
    fn for_each(&self, table: Table, visit: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        self.with(|session| session.for_each(table, visit))
    }

    /// Makes all changes of a batch, or none, and waits until they are on stable storage.
    pub fn write(&self, batch: &Batch) -> Result<()> {
        self.with(|session| {
            let written = session.run("write", || {
                let connection = session.connection;
                let transaction =
                    Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
                for ((table, key), value) in &batch.0 {
                    match value {
                        Some(value) => session.put(*table, key, value)?,
                        None => session.delete(*table, key)?,
                    }
                }
                transaction.commit()
            });
            if written.is_err() {
                sqlite::shorten_log(session.connection);
            }
            written
        })
    }

    /// Returns the least pack id never given out.
    pub fn next_pack(&self) -> Result<u64> {
        let bytes = self.get(Table::Meta, NEXT_PACK_KEY)?;
        Ok(bytes.and_then(|b| b.as_slice().try_into().ok()).map_or(1, u64::from_le_bytes))
    }

    pub fn chunk(&self, id: &ChunkId) -> Result<Option<ChunkEntry>> {
        let bytes = self.get(Table::Chunks, id.as_bytes())?;
        bytes.map(|b| self.parse("a chunk entry", id.as_bytes(), &b)).transpose()
    }

    pub fn for_each_chunk(
        &self,
        mut visit: impl FnMut(ChunkId, ChunkEntry) -> Result<()>,
    ) -> Result<()> {
        self.for_each(Table::Chunks, |key, value| {
            let id = key.try_into().map_err(|_| self.damaged("a chunk key", "its length"))?;
            visit(ChunkId::from_bytes(id), self.parse("a chunk entry", key, value)?)
        })
    }

    pub fn pack(&self, id: u64) -> Result<Option<PackEntry>> {
        let key = id.to_be_bytes();
        self.get(Table::Packs, key)?.map(|b| self.parse("a pack entry", &key, &b)).transpose()
    }

    pub fn packs(&self) -> Result<Vec<(u64, PackEntry)>> {
        let mut packs = Vec::new();
        self.for_each(Table::Packs, |key, value| {
            let id = key.try_into().map_err(|_| self.damaged("a pack key", "its length"))?;
            packs.push((u64::from_be_bytes(id), self.parse("a pack entry", key, value)?));
            Ok(())
        })?;
        Ok(packs)
    }

    /// Names of the golden images, sorted; also of those whose manifest is damaged.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        self.for_each(Table::Manifests, |key, _| {
            names.push(String::from_utf8_lossy(key).into_owned());
            Ok(())
        })?;
        Ok(names)
    }

    pub fn manifest(&self, name: &str) -> Result<Manifest> {
        match self.get(Table::Manifests, name)? {
            Some(bytes) => decode_manifest(name, &bytes),
            None => Err(Error::UnknownGolden { name: name.to_owned(), known: self.names()? }),
        }
    }

    /// Reads what the seal of a golden image covers, and the seal, all of one state.
    pub fn golden(&self, name: &str) -> Result<GoldenRecord> {
        let (manifest, encoded_working_set, seal) = self.with(|session| {
            Ok((
                session.get(Table::Manifests, name.as_bytes())?,
                session.get(Table::WorkingSets, name.as_bytes())?,
                session.get(Table::Meta, seal_key(name).as_bytes())?,
            ))
        })?;
        let Some(encoded_manifest) = manifest else {
            return Err(Error::UnknownGolden { name: name.to_owned(), known: self.names()? });
        };
        Ok(GoldenRecord {
            manifest: decode_manifest(name, &encoded_manifest)?,
            working_set: decode_working_set(name, encoded_working_set.as_deref())?,
            encoded_manifest,
            encoded_working_set: encoded_working_set.unwrap_or_default(),
            seal,
        })
    }

    /// Reads the encoded chunk table of a stream, if there is one.
    pub fn table_bytes(&self, name: &str, kind: StreamKind) -> Result<Option<Vec<u8>>> {
        self.get(Table::ChunkTables, table_key(name, kind))
    }

    /// Reads all chunk tables of a golden image; `Err` inside for the first that is missing or
    /// damaged.
    pub fn tables(&self, name: &str) -> Result<Result<Vec<ChunkTable>, FormatError>> {
        let mut tables = Vec::new();
        for kind in StreamKind::ALL {
            let missing = FormatError::Truncated { what: "a chunk table", need: 1, have: 0 };
            match self.table_bytes(name, kind)?.ok_or(missing).and_then(|b| ChunkTable::decode(&b))
            {
                Ok(table) => tables.push(table),
                Err(e) => return Ok(Err(e)),
            }
        }
        Ok(Ok(tables))
    }

    pub fn working_set(&self, name: &str) -> Result<WorkingSet> {
        decode_working_set(name, self.get(Table::WorkingSets, name)?.as_deref())
    }

    pub fn damaged(&self, what: &'static str, reason: impl Into<String>) -> Error {
        Error::DamagedStore {
            dir: self.dir.clone(),
            cause: FormatError::Content { what, reason: reason.into() },
        }
    }

    fn parse<T: DeserializeOwned>(
        &self,
        what: &'static str,
        key: &[u8],
        bytes: &[u8],
    ) -> Result<T> {
        match bytes.split_last_chunk() {
            Some((entry, sum)) if *sum == entry_sum(key, entry) => {
                postcard::from_bytes(entry).map_err(|e| self.damaged(what, e.to_string()))
            }
            _ => Err(Error::DamagedStore {
                dir: self.dir.clone(),
                cause: FormatError::Checksum { what },
            }),
        }
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
        .map_err(|cause| Error::DamagedGolden { golden: name.to_owned(), cause })
}

fn decode_working_set(name: &str, bytes: Option<&[u8]>) -> Result<WorkingSet> {
    let decoded = bytes.map_or(Ok(WorkingSet::default()), WorkingSet::decode);
    decoded.map_err(|cause| Error::DamagedGolden { golden: name.to_owned(), cause })
}

fn another_name(name: &GoldenName) -> FormatError {
    FormatError::Content { what: "the manifest", reason: format!("it is that of `{name}`") }
}

fn to_bytes<T: Serialize>(key: &[u8], entry: &T) -> Vec<u8> {
    let mut bytes = postcard::to_stdvec(entry).expect("entries are plain integers");
    let sum = entry_sum(key, &bytes);
    bytes.extend_from_slice(&sum);
    bytes
}

fn entry_sum(key: &[u8], entry: &[u8]) -> [u8; SUM_LEN] {
    let hash = blake3::Hasher::new().update(key).update(entry).finalize();
    *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_that_was_closed_because_of_its_age_moves_to_the_present_when_it_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let (writer, view) =
            (Db::open(dir.path()).unwrap(), Db::open_read_only(dir.path()).unwrap());
        let put = |value: &[u8]| {
            let mut batch = Batch::default();
            batch.put(Table::Meta, "k", value);
            writer.write(&batch).unwrap();
        };
        put(b"1");
        assert_eq!(view.get(Table::Meta, "k").unwrap(), None);
        *view.lock() = None;
        assert_eq!(view.get(Table::Meta, "k").unwrap().unwrap(), b"1");
        // Fixed again.
        put(b"2");
        assert_eq!(view.get(Table::Meta, "k").unwrap().unwrap(), b"1");
    }

    #[test]
    fn a_batch_is_made_as_a_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(dir.path()).unwrap();
        let file = schema::folder(dir.path()).join("store.sqlite");
        Connection::open(&file).unwrap().execute_batch("ALTER TABLE packs RENAME TO gone").unwrap();
        let mut batch = Batch::default();
        batch.put(Table::Meta, "k", b"1");
        batch.put(Table::Packs, "p", b"1");
        assert!(matches!(db.write(&batch), Err(Error::DamagedStore { .. })));
        assert_eq!(db.get(Table::Meta, "k").unwrap(), None);
        let mut batch = Batch::default();
        batch.put(Table::Meta, "k", b"1");
        batch.delete(Table::Meta, "k");
        batch.put(Table::Meta, "k", b"2");
        db.write(&batch).unwrap();
        assert_eq!(db.get(Table::Meta, "k").unwrap().unwrap(), b"2");
    }
}
