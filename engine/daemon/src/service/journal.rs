//! The journal of live sessions: written before a session is handed out, removed when nothing of it
//! is left. What is in it when a daemon starts is what a dead one left behind.
//!
//! Also the lock that lets one daemon run at a time: it is held as long as the process lives,
//! however it ends.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use mayfly_api::TenantName;
use mayfly_snapshotter::sqlite::{self, Access, WriterLock};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use parking_lot::{Mutex, MutexGuard};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

/// Error of the journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The journal is held by another daemon.
    #[error(
        "another mayfly daemon runs already, it holds the journal {dir}: use that one, or stop it first"
    )]
    Locked {
        /// Folder of the journal.
        dir: PathBuf,
    },
    /// The journal's file is not what was written.
    #[error(
        "the journal of live sessions {} is damaged: {reason}; remove the folder {} and start the daemon again: what a dead \
         daemon left is then found by its folder and its cgroups alone",
        file.display(),
        file.parent().unwrap_or(file).display()
    )]
    Damaged {
        /// Path of the file.
        file: PathBuf,
        /// Description of what is wrong with it.
        reason: String,
    },
    /// The database failed.
    #[error("cannot {action} the journal of live sessions {dir}: {reason}")]
    Database {
        /// Operation that was attempted.
        action: &'static str,
        /// Folder of the journal.
        dir: PathBuf,
        /// The database's words.
        reason: String,
    },
}

/// Record of a live session, as far as it is known without its daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// Session id.
    pub id: String,
    /// Name of the golden image.
    pub golden: String,
    /// Tenant that the session belongs to.
    pub tenant: TenantName,
    /// Name of its cgroup, below ours.
    pub cgroup: String,
    /// Identity of its VMM: process id and start time, as [`mayfly_host::instance`] names
    /// processes. Absent when it ended meanwhile.
    pub vmm: Option<String>,
    /// Path of its Docker socket.
    pub docker_socket: PathBuf,
    /// Time at which it was handed out, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Labels of its owner.
    pub metadata: BTreeMap<String, String>,
}

/// The database, in the folder of the journal.
const FILE: &str = "journal.sqlite";
const LOCK: &str = "lock";
const CREATE: &str = "CREATE TABLE sessions (id TEXT NOT NULL PRIMARY KEY, record BLOB NOT NULL) STRICT, WITHOUT ROWID";
/// After so many sessions the log is written back, which waits for the disk: when a session ends,
/// and not while somebody waits for one.
const CHECKPOINT_SESSIONS: u32 = 512;

/// The journal of live sessions, in a database that one daemon has open.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    database: Mutex<Database>,
    /// Given back when the database is closed.
    _lock: WriterLock,
}

#[derive(Debug)]
struct Database {
    connection: Connection,
    /// Sessions removed since the log was written back.
    removed: u32,
}

impl Journal {
    /// Opens the journal in `dir`, and creates it if it is not there.
    ///
    /// # Errors
    /// [`JournalError::Locked`] while another daemon has it, [`JournalError::Damaged`],
    /// [`JournalError::Database`].
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        let failed =
            |reason: String| JournalError::Database { action: "open", dir: dir.to_owned(), reason };
        let io = |error: io::Error| failed(error.to_string());
        mayfly_host::layout::Layout::create(dir).map_err(|e| failed(e.to_string()))?;
        let locked = || JournalError::Locked { dir: dir.to_owned() };
        let lock = WriterLock::take(&dir.join(LOCK)).map_err(io)?.ok_or_else(locked)?;
        if !remove_older(dir).map_err(io)? {
            return Err(locked());
        }
        let file = dir.join(FILE);
        File::options().create(true).append(true).open(&file).map_err(io)?;
        let connection = open_database(&file).map_err(|e| error("open", dir, &e))?;
        Ok(Self {
            dir: dir.to_owned(),
            database: Mutex::new(Database { connection, removed: 0 }),
            _lock: lock,
        })
    }

    /// Writes a session down. Survives the death of this process, not a crash of the host, after
    /// which no session lives.
    ///
    /// # Errors
    /// [`JournalError::Damaged`], [`JournalError::Database`].
    pub fn put(&self, record: &JournalEntry) -> Result<(), JournalError> {
        let bytes = serde_json::to_vec(record).map_err(|e| JournalError::Database {
            action: "write",
            dir: self.dir.clone(),
            reason: e.to_string(),
        })?;
        self.write(
            "INSERT OR REPLACE INTO sessions (id, record) VALUES (?1, ?2)",
            params![record.id, bytes],
        )
    }

    /// Strikes a session out.
    ///
    /// # Errors
    /// [`JournalError::Damaged`], [`JournalError::Database`].
    pub fn remove(&self, id: &str) -> Result<(), JournalError> {
        self.write("DELETE FROM sessions WHERE id = ?1", params![id])?;
        let mut database = self.database();
        database.removed += 1;
        if database.removed >= CHECKPOINT_SESSIONS {
            database.removed = 0;
            let checkpoint =
                database.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
            checkpoint.map_err(|e| error("write", &self.dir, &e))?;
        }
        Ok(())
    }

    /// Reads all sessions that are written down. Entries that cannot be read are removed, and told
    /// in the log.
    ///
    /// # Errors
    /// [`JournalError::Damaged`], [`JournalError::Database`].
    pub fn records(&self) -> Result<Vec<JournalEntry>, JournalError> {
        let mut records = Vec::new();
        for (id, bytes) in self.entries().map_err(|e| error("read", &self.dir, &e))? {
            match serde_json::from_slice::<JournalEntry>(&bytes) {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::warn!(key = id, %error, "an entry of the journal makes no sense");
                    self.remove(&id)?;
                }
            }
        }
        Ok(records)
    }

    fn entries(&self) -> rusqlite::Result<Vec<(String, Vec<u8>)>> {
        let database = self.database();
        let mut statement =
            database.connection.prepare("SELECT id, record FROM sessions ORDER BY id")?;
        let entries = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        entries.collect()
    }

    fn write(&self, statement: &str, params: &[&dyn rusqlite::ToSql]) -> Result<(), JournalError> {
        let database = self.database();
        let done =
            database.connection.prepare_cached(statement).and_then(|mut s| s.execute(params));
        done.map(drop).map_err(|e| error("write", &self.dir, &e))
    }

    fn database(&self) -> MutexGuard<'_, Database> {
        self.database.lock()
    }
}

fn error(action: &'static str, dir: &Path, error: &rusqlite::Error) -> JournalError {
    let reason = error.to_string();
    if sqlite::is_damage(error) {
        JournalError::Damaged { file: dir.join(FILE), reason }
    } else {
        JournalError::Database { action, dir: dir.to_owned(), reason }
    }
}

/// Opens the database, makes its table when it is new, and checks all of it.
fn open_database(file: &Path) -> rusqlite::Result<Connection> {
    let connection = sqlite::open(file, Access::Write)?;
    // The log is synced only before it is written back: a crash of the host may lose the newest
    // entries, and damages nothing. 4000 pages (16 MB) of log are written back in any case.
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 4000; \
         PRAGMA journal_size_limit = 4194304;",
    )?;
    let schema = || -> rusqlite::Result<Vec<Option<String>>> {
        let mut statement = connection.prepare("SELECT sql FROM sqlite_schema LIMIT 2")?;
        let found = statement.query_map([], |row| row.get(0))?;
        found.collect()
    };
    let damaged = |reason: &str| {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        Err(rusqlite::Error::SqliteFailure(code, Some(reason.to_owned())))
    };
    match schema()?.as_slice() {
        [] => drop(connection.execute(CREATE, [])?),
        [Some(sql)] if sql == CREATE => {}
        _ => return damaged("it is not a journal of sessions"),
    }
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found == "ok" { Ok(connection) } else { damaged(&found) }
}

/// Removes the RocksDB database that earlier versions had as their journal: after an orderly stop
/// there is nothing in it. False while a daemon of such a version uses it.
fn remove_older(dir: &Path) -> io::Result<bool> {
    if !dir.join("CURRENT").exists() {
        return Ok(true);
    }
    let lock = File::options().create(true).append(true).open(dir.join("LOCK"))?;
    if !lock_whole(&lock)? {
        return Ok(false);
    }
    let is_rocksdb = |name: &str| {
        matches!(name, "IDENTITY" | "LOCK" | "LOG")
            || ["LOG.old.", "MANIFEST-", "OPTIONS-"].iter().any(|start| name.starts_with(start))
            || [".log", ".sst", ".dbtmp"].iter().any(|end| name.ends_with(end))
    };
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_rocksdb) {
            fs::remove_file(entry.path())?;
        }
    }
    // Last: while it is there, the rest is still to be removed.
    fs::remove_file(dir.join("CURRENT"))?;
    tracing::info!(journal = %dir.display(), "removed the journal of an earlier version");
    Ok(true)
}

/// Locks a file as RocksDB does: all of it, with fcntl(2), until it is closed. False when another
/// process has it.
#[expect(clippy::cast_possible_truncation, reason = "F_WRLCK is a small number")]
fn lock_whole(file: &File) -> io::Result<bool> {
    // SAFETY: flock is plain integers, for which zeros are valid.
    let mut whole: libc::flock = unsafe { std::mem::zeroed() };
    whole.l_type = libc::F_WRLCK as libc::c_short;
    match fcntl(file, FcntlArg::F_SETLK(&whole)) {
        Ok(_) => Ok(true),
        Err(Errno::EACCES | Errno::EAGAIN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read};

    pub fn record(id: &str) -> JournalEntry {
        JournalEntry {
            id: id.to_owned(),
            golden: "default".into(),
            tenant: TenantName::local(),
            cgroup: format!("999999999-1/{id}"),
            vmm: Some("999999999-1".into()),
            docker_socket: format!("/nonexistent/999999999-1/{id}.docker.sock").into(),
            created_unix_ms: 1,
            metadata: BTreeMap::from([("run".into(), "7".into())]),
        }
    }

    #[test]
    fn what_is_written_is_there_after_reopening_and_what_is_struck_out_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        for id in ["a", "b", "c"] {
            journal.put(&record(id)).unwrap();
        }
        journal.remove("b").unwrap();
        drop(journal);
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.records().unwrap(), [record("a"), record("c")]);
    }

    #[test]
    fn a_second_one_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = Journal::open(dir.path()).unwrap();
        let error = Journal::open(dir.path()).err().unwrap();
        assert!(matches!(error, JournalError::Locked { .. }), "{error}");
        assert!(error.to_string().contains("another mayfly daemon runs"), "{error}");
        drop(first);
        Journal::open(dir.path()).unwrap();
    }

    #[test]
    fn an_entry_that_makes_no_sense_does_not_stop_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.put(&record("a")).unwrap();
        journal.write("INSERT INTO sessions (id, record) VALUES ('b', ?1)", params![b"{"]).unwrap();
        assert_eq!(journal.entries().unwrap().len(), 2);
        assert_eq!(journal.records().unwrap(), [record("a")]);
        assert_eq!(journal.entries().unwrap().len(), 1);
    }

    #[test]
    fn thousands_of_sessions_leave_it_small() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        for n in 0..20_000 {
            let id = format!("{n:016x}");
            journal.put(&record(&id)).unwrap();
            journal.remove(&id).unwrap();
        }
        assert_eq!(journal.records().unwrap(), []);
        let bytes: u64 =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes < 16 << 20, "{bytes}");
    }

    #[test]
    fn damage_is_told_with_the_file_and_the_remedy() {
        for content in [&b"nothing"[..], &[7; 16384]] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(FILE), content).unwrap();
            let error = Journal::open(dir.path()).err().unwrap();
            assert!(matches!(error, JournalError::Damaged { .. }), "{error}");
            let text = error.to_string();
            for part in [dir.path().join(FILE).to_str().unwrap(), "remove the folder"] {
                assert!(text.contains(part), "{text}");
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let foreign = Connection::open(dir.path().join(FILE)).unwrap();
        foreign.execute("CREATE TABLE sessions (id, record)", []).unwrap();
        drop(foreign);
        assert!(matches!(Journal::open(dir.path()), Err(JournalError::Damaged { .. })));
    }

    #[test]
    fn the_journal_of_an_earlier_version_needs_no_care_and_its_daemon_is_seen() {
        const HELD: &str = "MAYFLY_TEST_HOLD_JOURNAL";
        if let Some(path) = std::env::var_os(HELD) {
            let file = File::options().append(true).open(path).unwrap();
            assert!(lock_whole(&file).unwrap());
            println!("held");
            io::stdin().read_to_end(&mut Vec::new()).unwrap();
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let old = [
            "CURRENT",
            "IDENTITY",
            "LOCK",
            "LOG",
            "LOG.old.17",
            "MANIFEST-000005",
            "OPTIONS-000007",
            "000004.log",
        ];
        for name in old {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::write(dir.path().join("notes"), "").unwrap();
        // As such a daemon would, in a process of its own: locks of fcntl(2) do not hold within a
        // process.
        let mut daemon = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("service::journal::tests::the_journal_of_an_earlier_version_needs_no_care_and_its_daemon_is_seen")
            .env(HELD, dir.path().join("LOCK"))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        assert!(
            BufReader::new(daemon.stdout.take().unwrap())
                .lines()
                .any(|line| line.unwrap() == "held")
        );
        let error = Journal::open(dir.path()).err().unwrap();
        assert!(matches!(error, JournalError::Locked { .. }), "{error}");
        daemon.kill().unwrap();
        daemon.wait().unwrap();

        let journal = Journal::open(dir.path()).unwrap();
        journal.put(&record("a")).unwrap();
        assert_eq!(journal.records().unwrap(), [record("a")]);
        for name in old {
            assert!(!dir.path().join(name).exists(), "{name}");
        }
        assert!(dir.path().join("notes").exists());
    }
}
