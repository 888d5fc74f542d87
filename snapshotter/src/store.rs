//! The store: opening it, and asking what is in it.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::db::Db;
use crate::fsutil::{io_error, remove_file, sync_dir};
use crate::pack::{TEMP_PREFIX, pack_file_name, parse_pack_file_name};
use crate::reserve;
use crate::{Error, GoldenName, Manifest, Result, SealKey};

/// A directory of golden images. `Send + Sync`; writing operations wait for each other.
pub struct Store {
    pub(crate) dir: PathBuf,
    pub(crate) packs: PathBuf,
    pub(crate) db: Db,
    pub(crate) seal_key: Option<SealKey>,
    pub(crate) next_pack: AtomicU64,
    /// Held by the one writing operation at a time.
    writer: Mutex<()>,
    /// Held shared while locations are looked up and their packs opened, exclusively while metadata
    /// changes and dead packs go. Within one process a reader can thus always open what it looked
    /// up.
    pub(crate) view: RwLock<()>,
}

/// Disk space that a store takes, without the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Pack files.
    pub packs: u64,
    /// Bytes in them.
    pub pack_bytes: u64,
    /// Bytes in them that golden images use.
    pub live_bytes: u64,
    /// Chunks that golden images use.
    pub live_chunks: u64,
}

impl Store {
    /// Opens the store in `dir` for writing, and creates it if it is not there. Deletes the packs
    /// that a crash left without anyone referring to them.
    ///
    /// # Errors
    /// [`Error::Locked`] while another process or another `Store` has it open for writing;
    /// [`Error::StoreVersion`]; [`Error::DiskFull`], [`Error::Io`] and [`Error::Database`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let packs = dir.join("packs");
        fs::create_dir_all(&packs).map_err(|e| io_error("create", &packs, e))?;
        let db = match Db::open(dir) {
            Err(Error::DiskFull { .. }) if reserve::release(dir) => Db::open(dir)?,
            other => other?,
        };
        sync_dir(dir)?;
        let greatest = reap(&db, &packs)?;
        let next_pack = AtomicU64::new(db.next_pack()?.max(greatest + 1));
        reserve::ensure(dir);
        Ok(Self::opened(dir, packs, db, next_pack))
    }

    /// Opens the store in `dir` for reading, without a lock: any number of processes can, beside a
    /// writer. It shows the state at this moment; [`Store::refresh`] moves it to the present.
    ///
    /// # Errors
    /// [`Error::NoStore`] when there is none; [`Error::StoreVersion`]; [`Error::Database`] when it
    /// cannot be opened after some retries.
    pub fn open_read_only(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let db = Db::open_read_only(dir)?;
        let next_pack = AtomicU64::new(u64::MAX);
        let packs = dir.join("packs");
        Ok(Self::opened(dir, packs, db, next_pack))
    }

    fn opened(dir: &Path, packs: PathBuf, db: Db, next_pack: AtomicU64) -> Self {
        let (writer, view) = (Mutex::new(()), RwLock::new(()));
        Self { dir: dir.to_owned(), packs, db, seal_key: None, next_pack, writer, view }
    }

    /// Makes a store opened read-only show the present state. One open for writing always does.
    ///
    /// # Errors
    /// The database cannot be read: [`Error::Database`], [`Error::DamagedStore`].
    pub fn refresh(&self) -> Result<()> {
        self.db.refresh()
    }

    /// Returns the directory of the store.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Lists all golden images, sorted by name.
    ///
    /// # Errors
    /// [`Error::DamagedGolden`] when one manifest is damaged; [`Store::entries`] gives the others
    /// still.
    pub fn list(&self) -> Result<Vec<Manifest>> {
        self.entries()?.into_iter().map(|(_, manifest)| manifest).collect()
    }

    /// Returns the names of all golden images, sorted, each with its manifest or what is wrong with
    /// it.
    ///
    /// # Errors
    /// As [`Store::refresh`].
    pub fn entries(&self) -> Result<Vec<(String, Result<Manifest>)>> {
        let _view = self.view_shared();
        let names = self.db.names()?;
        Ok(names.into_iter().map(|name| (name.clone(), self.db.manifest(&name))).collect())
    }

    /// Returns the manifest of golden image `name`.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::UnknownGolden`] (lists the names there are),
    /// [`Error::DamagedGolden`].
    pub fn manifest(&self, name: &str) -> Result<Manifest> {
        let _view = self.view_shared();
        self.db.manifest(&GoldenName::new(name)?)
    }

    /// Returns the recorded working set of golden image `name`; empty when none was recorded.
    ///
    /// # Errors
    /// As [`Store::manifest`].
    pub fn working_set(&self, name: &str) -> Result<Vec<u32>> {
        let _view = self.view_shared();
        let name = GoldenName::new(name)?;
        self.db.manifest(&name)?;
        Ok(self.db.working_set(&name)?.0)
    }

    /// Returns how much the packs take on disk.
    ///
    /// # Errors
    /// As [`Store::refresh`].
    pub fn usage(&self) -> Result<Usage> {
        let _view = self.view_shared();
        Ok(self.db.packs()?.into_iter().fold(Usage::default(), |u, (_, p)| Usage {
            packs: u.packs + 1,
            pack_bytes: u.pack_bytes + p.file_len,
            live_bytes: u.live_bytes + p.live_bytes,
            live_chunks: u.live_chunks + p.live_chunks,
        }))
    }

    /// Begins a writing operation.
    pub(crate) fn writer(&self) -> Result<MutexGuard<'_, ()>> {
        if self.db.is_read_only() {
            return Err(Error::ReadOnly { dir: self.dir.clone() });
        }
        Ok(self.writer.lock())
    }

    pub(crate) fn view_shared(&self) -> impl Drop + '_ {
        self.view.read()
    }

    pub(crate) fn view_exclusive(&self) -> impl Drop + '_ {
        self.view.write()
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("dir", &self.dir)
            .field("read_only", &self.db.is_read_only())
            .finish()
    }
}

/// Deletes unfinished packs and packs unknown to the database; leaves files that are not ours.
/// Returns the greatest pack id met. Only right while the database lock is held.
fn reap(db: &Db, packs: &Path) -> Result<u64> {
    let known: HashSet<u64> = db.packs()?.into_iter().map(|(id, _)| id).collect();
    let mut greatest = 0;
    for entry in fs::read_dir(packs).map_err(|e| io_error("list", packs, e))? {
        let entry = entry.map_err(|e| io_error("list", packs, e))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let pack = parse_pack_file_name(name);
        greatest = greatest.max(pack.unwrap_or(0));
        if name.starts_with(TEMP_PREFIX) || pack.is_some_and(|id| !known.contains(&id)) {
            let bytes = remove_file(&entry.path())?;
            tracing::info!(file = name, bytes, "deleted what an interrupted operation left");
        }
    }
    for id in known.iter().filter(|id| !packs.join(pack_file_name(**id)).exists()) {
        tracing::warn!(
            pack = pack_file_name(*id),
            "a pack is missing; `mayfly golden verify` tells what it hits"
        );
    }
    Ok(greatest)
}
