//! The file of the metadata database: where it is, its tables, its statements, and what is checked
//! before it is used.

use crate::fsutil::{available_bytes, io_error, remove_file, sync_dir};
use crate::sqlite::{self, Access};
use crate::{Error, FormatError, Result};
use nix::unistd::AccessFlags;
use rusqlite::{Connection, MAIN_DB, OptionalExtension, params};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Version of the whole layout: tables, keys, values. Version 1 was a RocksDB database.
const STORE_VERSION: u32 = 2;
const FORMAT_VERSION_KEY: &str = "format_version";
/// The database, below `db/`. Its log and the index of that are beside it, with `-wal` and `-shm`
/// after the name.
const FILE: &str = "store.sqlite";
/// A database that is being made.
const UNFINISHED: &str = "store.sqlite.new";
/// Held by the one process that writes.
const LOCK: &str = "lock";
/// Every RocksDB database has this file.
const ROCKSDB_FILE: &str = "CURRENT";
/// What damage is told of.
const WHAT: &str = "the database db/store.sqlite";

/// A table of the database. All have a key and a value, both byte strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    Meta,
    Manifests,
    ChunkTables,
    WorkingSets,
    Chunks,
    Packs,
}

/// The statements of one table.
struct Statements {
    name: &'static str,
    create: &'static str,
    get: &'static str,
    all: &'static str,
    put: &'static str,
    delete: &'static str,
}

macro_rules! statements {
    ($name:literal) => {
        &Statements {
            name: $name,
            create: concat!(
                "CREATE TABLE ",
                $name,
                " (key BLOB NOT NULL PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID"
            ),
            get: concat!("SELECT value FROM ", $name, " WHERE key = ?1"),
            all: concat!("SELECT key, value FROM ", $name, " ORDER BY key"),
            put: concat!("INSERT OR REPLACE INTO ", $name, " (key, value) VALUES (?1, ?2)"),
            delete: concat!("DELETE FROM ", $name, " WHERE key = ?1"),
        }
    };
}

impl Table {
    const ALL: [Self; 6] = [
        Self::Meta,
        Self::Manifests,
        Self::ChunkTables,
        Self::WorkingSets,
        Self::Chunks,
        Self::Packs,
    ];

    const fn statements(self) -> &'static Statements {
        match self {
            Self::Meta => statements!("meta"),
            Self::Manifests => statements!("manifests"),
            Self::ChunkTables => statements!("tables"),
            Self::WorkingSets => statements!("working_sets"),
            Self::Chunks => statements!("chunks"),
            Self::Packs => statements!("packs"),
        }
    }
}

/// The folder of the database of the store in `dir`.
pub(crate) fn folder(dir: &Path) -> PathBuf {
    dir.join("db")
}

/// The file of the database of the store in `dir`.
pub(crate) fn database(dir: &Path) -> PathBuf {
    folder(dir).join(FILE)
}

/// The lock file of whoever writes the store in `dir`.
pub(crate) fn lock_path(dir: &Path) -> PathBuf {
    folder(dir).join(LOCK)
}

/// Bytes of the database, without its log; 0 when there is none.
pub(crate) fn database_bytes(dir: &Path) -> u64 {
    fs::metadata(folder(dir).join(FILE)).map_or(0, |m| m.len())
}

/// Makes the database unless it is there: under another name first, so that nobody ever sees a part
/// of it. Only right while the lock is held.
pub(crate) fn create_missing(dir: &Path) -> Result<()> {
    let (path, unfinished) = (folder(dir).join(FILE), folder(dir).join(UNFINISHED));
    refuse_older(dir)?;
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    remove_file(&unfinished)?;
    // The log of a database that somebody removed must not be taken for that of the new one.
    for file in [&path, &unfinished] {
        for suffix in ["-journal", "-wal", "-shm"] {
            let mut name = file.clone().into_os_string();
            name.push(suffix);
            remove_file(Path::new(&name))?;
        }
    }
    File::create_new(&unfinished).map_err(|e| io_error("create", &unfinished, e))?;
    let connection = sqlite::open(&unfinished, Access::Write).map_err(|e| open_error(dir, e))?;
    let session = Session { connection: &connection, dir };
    session.run("create", || {
        let transaction = connection.unchecked_transaction()?;
        for table in Table::ALL {
            transaction.execute(table.statements().create, [])?;
        }
        let version = STORE_VERSION.to_le_bytes();
        let put = Table::Meta.statements().put;
        transaction.execute(put, params![FORMAT_VERSION_KEY.as_bytes(), version.as_slice()])?;
        transaction.commit()?;
        connection.pragma_update(None, "journal_mode", "WAL")
    })?;
    connection.close().map_err(|(_, e)| open_error(dir, e))?;
    fs::rename(&unfinished, &path).map_err(|e| io_error("create", &path, e))?;
    sync_dir(&folder(dir))
}

/// Opens the database for writing, and checks all of it: what is damaged must not be written to,
/// and says nothing about which packs are needed.
pub(crate) fn open_writable(dir: &Path) -> Result<Connection> {
    let connection = open(dir, Access::Write)?;
    let session = Session { connection: &connection, dir };
    session.run("open", || {
        connection.execute_batch(
            // One commit is one fsync of the log. 1000 pages (4 MB) of log are written back to the
            // database.
            "PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 1000; PRAGMA journal_size_limit = 4194304; \
             PRAGMA cache_size = -8192",
        )
    })?;
    session.check()?;
    if session.run("check", || connection.is_readonly(MAIN_DB))? {
        return Err(session.damaged("its header does not let this release write it".to_owned()));
    }
    let found: String = session
        .run("check", || connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)))?;
    if found == "ok" { Ok(connection) } else { Err(session.damaged(found)) }
}

/// Opens the database for reading, in a transaction that shows the present state as long as the
/// connection is open.
pub(crate) fn open_view(dir: &Path) -> Result<Connection> {
    let connection = open(dir, Access::Read)?;
    let session = Session { connection: &connection, dir };
    session.run("open", || connection.execute_batch("BEGIN"))?;
    session.check()?;
    Ok(connection)
}

/// Opens the database to look whether it changes, in no transaction.
pub(crate) fn open_to_watch(dir: &Path) -> Result<Connection> {
    let connection = open(dir, Access::Read)?;
    let session = Session { connection: &connection, dir };
    session.run("open", || connection.busy_timeout(std::time::Duration::ZERO))?;
    session.check()?;
    Ok(connection)
}

fn open(dir: &Path, access: Access) -> Result<Connection> {
    let path = folder(dir).join(FILE);
    match path.metadata() {
        Ok(metadata) if !metadata.is_file() => {
            Err(damaged(dir, "it is no regular file".to_owned()))
        }
        // SQLite would take it for a new one.
        Ok(metadata) if metadata.len() == 0 => Err(damaged(dir, "it is empty".to_owned())),
        Ok(_) => {
            if access == Access::Write {
                // SQLite would open it for reading instead.
                nix::unistd::access(&path, AccessFlags::W_OK)
                    .map_err(|e| io_error("write", &path, e.into()))?;
            }
            sqlite::open(&path, access).map_err(|e| open_error(dir, e))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            refuse_older(dir)?;
            Err(Error::NoStore { dir: dir.to_owned() })
        }
        Err(error) => Err(io_error("open", &path, error)),
    }
}

fn refuse_older(dir: &Path) -> Result<()> {
    let folder = folder(dir);
    if folder.join(ROCKSDB_FILE).exists() && !folder.join(FILE).exists() {
        return Err(Error::StoreVersion {
            dir: dir.to_owned(),
            found: 1,
            supported: STORE_VERSION,
        });
    }
    Ok(())
}

/// An open database in use, by one thread.
pub(crate) struct Session<'a> {
    pub connection: &'a Connection,
    /// Directory of the store.
    pub dir: &'a Path,
}

impl Session<'_> {
    /// Runs statements; `action` is what they are for.
    pub fn run<T>(
        &self,
        action: &'static str,
        statements: impl FnOnce() -> rusqlite::Result<T>,
    ) -> Result<T> {
        statements().map_err(|cause| {
            if sqlite::is_disk_full(self.connection, &cause) {
                Error::DiskFull {
                    action,
                    path: folder(self.dir),
                    available: available_bytes(self.dir),
                }
            } else if sqlite::is_damage(&cause) {
                self.damaged(cause.to_string())
            } else {
                Error::Database { action, dir: self.dir.to_owned(), cause }
            }
        })
    }

    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.run("read", || {
            let mut statement = self.connection.prepare_cached(table.statements().get)?;
            statement.query_row([key], |row| row.get(0)).optional()
        })
    }

    /// Visits all entries in the order of their keys.
    pub fn for_each(
        &self,
        table: Table,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.run("read", || {
            let mut statement = self.connection.prepare_cached(table.statements().all)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let [key, value] = [row.get_ref(0)?, row.get_ref(1)?].map(|value| value.as_blob());
                if let Err(error) = visit(key?, value?) {
                    return Ok(Err(error));
                }
            }
            Ok(Ok(()))
        })?
    }

    pub fn put(&self, table: Table, key: &[u8], value: &[u8]) -> rusqlite::Result<()> {
        self.connection.prepare_cached(table.statements().put)?.execute([key, value]).map(drop)
    }

    pub fn delete(&self, table: Table, key: &[u8]) -> rusqlite::Result<()> {
        self.connection.prepare_cached(table.statements().delete)?.execute([key]).map(drop)
    }

    fn damaged(&self, reason: String) -> Error {
        damaged(self.dir, reason)
    }

    /// Whether this is a store of ours, of our version, and not more than that.
    fn check(&self) -> Result<()> {
        let mode: String = self.run("open", || {
            self.connection.query_one("PRAGMA journal_mode", [], |row| row.get(0))
        })?;
        let found = self.run("open", || {
            let mut statement =
                self.connection.prepare("SELECT name, sql FROM sqlite_schema ORDER BY name")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            // One more than there should be is enough to tell.
            rows.take(Table::ALL.len() + 1)
                .collect::<rusqlite::Result<Vec<(String, Option<String>)>>>()
        })?;
        let foreign = || Err(self.damaged("it is not the database of a store".to_owned()));
        let has = |table: Table| {
            let Statements { name, create, .. } = table.statements();
            found.iter().any(|(n, sql)| n == name && sql.as_deref() == Some(create))
        };
        // This table stays as it is in all versions.
        if !has(Table::Meta) {
            return foreign();
        }
        let version = self.get(Table::Meta, FORMAT_VERSION_KEY.as_bytes())?.unwrap_or_default();
        let version = version.as_slice().try_into().map_or(0, u32::from_le_bytes);
        if version != STORE_VERSION {
            return Err(Error::StoreVersion {
                dir: self.dir.to_owned(),
                found: version,
                supported: STORE_VERSION,
            });
        }
        if mode != "wal" || found.len() != Table::ALL.len() || !Table::ALL.into_iter().all(has) {
            return foreign();
        }
        Ok(())
    }
}

fn damaged(dir: &Path, reason: String) -> Error {
    Error::DamagedStore { dir: dir.to_owned(), cause: FormatError::Content { what: WHAT, reason } }
}

fn open_error(dir: &Path, cause: rusqlite::Error) -> Error {
    if sqlite::is_damage(&cause) {
        damaged(dir, cause.to_string())
    } else {
        Error::Database { action: "open", dir: dir.to_owned(), cause }
    }
}
