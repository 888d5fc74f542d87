//! The journal of live sessions: written before a session is handed out, removed when nothing of it is left. What is in it
//! when a daemon starts is what a dead one left behind.
//!
//! Also the lock that lets one daemon run at a time: RocksDB holds it as long as the process lives, however it ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rocksdb::{DB, DBCompressionType, IteratorMode, LogLevel, Options};
use serde::{Deserialize, Serialize};

use super::tenant::TenantName;

/// What can go wrong with the journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another daemon holds it.
    #[error("another mayfly daemon runs already, it holds the journal {dir}: use that one, or stop it first")]
    Locked {
        /// The journal.
        dir: PathBuf,
    },
    /// The database failed.
    #[error("cannot {action} the journal of live sessions {dir}: {reason}")]
    Database {
        /// What was attempted.
        action: &'static str,
        /// The journal.
        dir: PathBuf,
        /// The database's words.
        reason: String,
    },
}

/// What is known of a live session without its daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Session id.
    pub id: String,
    /// Golden image.
    pub golden: String,
    /// Whose it is.
    pub tenant: TenantName,
    /// Its cgroup, below ours.
    pub cgroup: String,
    /// Its VMM: process id and start time, as [`crate::instance`] names processes. Absent when it ended meanwhile.
    pub vmm: Option<String>,
    /// Its Docker socket.
    pub docker_socket: PathBuf,
    /// When it was handed out, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Labels of its owner.
    pub metadata: BTreeMap<String, String>,
}

/// See the module.
pub struct Journal {
    dir: PathBuf,
    db: DB,
}

impl Journal {
    /// Opens the journal in `dir`, and creates it if it is not there.
    ///
    /// # Errors
    /// [`JournalError::Locked`] while another daemon has it, [`JournalError::Database`].
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        let failed = |reason: String| JournalError::Database { action: "open", dir: dir.to_owned(), reason };
        crate::layout::Layout::create(dir).map_err(|e| failed(e.to_string()))?;
        let db = DB::open(&options(), dir).map_err(|error| {
            // RocksDB's message when another process has the lock, and when this one has.
            let text: &str = error.as_ref();
            if text.contains("While lock file") || text.contains("lock hold by current process") {
                JournalError::Locked { dir: dir.to_owned() }
            } else {
                failed(text.to_owned())
            }
        })?;
        Ok(Self { dir: dir.to_owned(), db })
    }

    /// Writes a session down. Survives the death of this process, not a crash of the host, after which no session lives.
    ///
    /// # Errors
    /// [`JournalError::Database`].
    pub fn put(&self, record: &Record) -> Result<(), JournalError> {
        let failed = |reason: String| self.error("write", reason);
        let bytes = serde_json::to_vec(record).map_err(|e| failed(e.to_string()))?;
        self.db.put(&record.id, bytes).map_err(|e| failed(e.into_string()))
    }

    /// Strikes a session out.
    ///
    /// # Errors
    /// [`JournalError::Database`].
    pub fn remove(&self, id: &str) -> Result<(), JournalError> {
        self.db.delete(id).map_err(|e| self.error("write", e.into_string()))
    }

    /// All sessions that are written down. Entries that cannot be read are removed, and told in the log.
    ///
    /// # Errors
    /// [`JournalError::Database`].
    pub fn records(&self) -> Result<Vec<Record>, JournalError> {
        let mut records = Vec::new();
        for entry in self.db.iterator(IteratorMode::Start) {
            let (key, value) = entry.map_err(|e| self.error("read", e.into_string()))?;
            match serde_json::from_slice::<Record>(&value) {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::warn!(key = %String::from_utf8_lossy(&key), %error, "an entry of the journal makes no sense");
                    self.db.delete(key).map_err(|e| self.error("write", e.into_string()))?;
                }
            }
        }
        Ok(records)
    }

    fn error(&self, action: &'static str, reason: String) -> JournalError {
        JournalError::Database { action, dir: self.dir.clone(), reason }
    }
}

/// A few entries that come and go: small buffers, one background job, no compression.
fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_write_buffer_size(1 << 20);
    options.set_max_total_wal_size(1 << 20);
    options.set_max_background_jobs(2);
    options.set_max_open_files(32);
    options.set_compression_type(DBCompressionType::None);
    options.set_stats_dump_period_sec(0);
    options.set_info_logger(rocksdb::InfoLogger::new_callback_logger(LogLevel::Warn, |level, text| match level {
        LogLevel::Error | LogLevel::Fatal => tracing::warn!(target: "mayfly_engine::rocksdb", "{}", text.trim()),
        _ => tracing::debug!(target: "mayfly_engine::rocksdb", "{}", text.trim()),
    }));
    options
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn record(id: &str) -> Record {
        Record {
            id: id.to_owned(),
            golden: "default".into(),
            tenant: TenantName::local(),
            cgroup: format!("999999999-1/{id}"),
            vmm: Some("999999999-1".into()),
            docker_socket: PathBuf::from(format!("/nonexistent/{id}.docker.sock")),
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
        journal.db.put("b", "{").unwrap();
        assert_eq!(journal.records().unwrap(), [record("a")]);
        assert_eq!(journal.db.get("b").unwrap(), None);
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
        let bytes: u64 = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes < 16 << 20, "{bytes}");
    }
}
