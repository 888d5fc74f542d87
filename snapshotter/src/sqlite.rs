//! SQLite databases of Mayfly, opened for a file that somebody may have altered, with every wait
//! bounded.
//!
//! What is set here follows <https://sqlite.org/security.html>, "Untrusted SQLite Database Files".

use nix::errno::Errno;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, Error, ErrorCode, OpenFlags, ffi};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::time::Duration;

/// How long a statement waits for another process: one that closes the database or repairs its log.
/// Neither takes long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Prepared statements kept for each connection.
const STATEMENTS: usize = 32;

/// Purpose for which a database is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading. Changes no table; may still create the `-wal` and `-shm` files that readers and
    /// writer share.
    Read,
    /// Reading and writing.
    Write,
}

/// Opens the database in the file `path`, which must exist.
///
/// Triggers and views are off, functions in its schema are not trusted, pages are checked before
/// they are used, and the file is never mapped into memory. The log is left for the writer: a
/// reader neither writes it back nor deletes it.
///
/// # Errors
/// Whatever SQLite says. It has hardly read anything by then: damage may also be told by a later
/// statement.
pub fn open(path: &Path, access: Access) -> rusqlite::Result<Connection> {
    // An absolute path is never taken for a URI (a name that begins with "file:").
    let path = std::path::absolute(path).map_err(|_| Error::InvalidPath(path.to_owned()))?;
    let flags = match access {
        Access::Read => OpenFlags::SQLITE_OPEN_READ_ONLY,
        Access::Write => OpenFlags::SQLITE_OPEN_READ_WRITE,
    };
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    for (option, value) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false),
        (DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, access == Access::Read),
    ] {
        connection.set_db_config(option, value)?;
    }
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.execute_batch(
        "PRAGMA cell_size_check = ON; PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY;",
    )?;
    Ok(connection)
}

/// Returns whether an error says that a database file, or what it holds, is not what was written.
/// Of statements that are known to be right, that is: what SQLite finds wrong with such a statement
/// is the schema.
pub fn is_damage(error: &Error) -> bool {
    match error {
        // A value of another type than its column has.
        Error::InvalidColumnType(..) | Error::FromSqlConversionFailure(..) => true,
        _ => error.sqlite_error().is_some_and(|error| {
            matches!(error.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
                || matches!(
                    error.extended_code,
                    ffi::SQLITE_ERROR | ffi::SQLITE_IOERR_SHORT_READ | ffi::SQLITE_IOERR_CORRUPTFS
                )
        }),
    }
}

/// Returns whether `error`, the last one of `connection`, says that the file system or the quota on
/// it is full.
pub fn is_disk_full(connection: &Connection, error: &Error) -> bool {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => true,
        // SQLite calls only ENOSPC of write(2) a full disk. The rest are I/O errors that leave
        // errno behind.
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => {
            // SAFETY: the handle is that of an open connection, which `connection` keeps open and
            // which no other thread uses meanwhile (`Connection` is not `Sync`).
            let errno = unsafe { ffi::sqlite3_system_errno(connection.handle()) };
            matches!(Errno::from_raw(errno), Errno::ENOSPC | Errno::EDQUOT)
        }
        _ => false,
    }
}

/// Writes the log back and gives its space to the file system, unless a reader needs it: then it is
/// left to a later time.
pub fn shorten_log(connection: &Connection) {
    let attempt = || {
        connection.busy_timeout(Duration::ZERO)?;
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    };
    if let Err(error) = attempt().and(connection.busy_timeout(BUSY_TIMEOUT)) {
        tracing::debug!(%error, "the log of a database was not shortened");
    }
}

/// The lock of the one writer of a database: flock(2) on a file of its own. SQLite's own locks last
/// for a transaction.
#[derive(Debug)]
pub struct WriterLock(File);

impl WriterLock {
    /// Takes the lock without waiting; `None` when another process, or another place in this one,
    /// has it.
    ///
    /// # Errors
    /// The file cannot be made or locked.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Drop for WriterLock {
    fn drop(&mut self) {
        // Closing alone is not enough: a child between fork and exec still has a copy of the
        // descriptor.
        let _ = self.0.unlock();
    }
}
