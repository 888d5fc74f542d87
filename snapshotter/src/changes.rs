//! Whether a store has changed, cheap enough to ask before each use.

use crate::{Error, Result, schema};
use nix::sys::stat::{FileStat, stat};
use rusqlite::Connection;
use std::path::{Path, PathBuf};

/// State of a store at one moment, to be compared with others of the same [`Changes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(Option<(u64, i64)>);

/// Tells the states of one store apart, whoever changes it, in whichever process.
///
/// It keeps the database open, in no transaction: a writer is not kept from anything, but for
/// removing the log when it closes the database.
#[derive(Debug)]
pub struct Changes {
    dir: PathBuf,
    /// How often the database was opened: what SQLite tells is of one connection.
    opened: u64,
    database: Option<Database>,
}

#[derive(Debug)]
struct Database {
    connection: Connection,
    /// Device and number of its file. Open, so that no other file gets the number.
    file: (u64, u64),
}

impl Changes {
    /// Watches the store in `dir`, which need not exist.
    pub fn of(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), opened: 0, database: None }
    }

    /// Returns the present version. Equal to an earlier one if and only if nothing was committed
    /// between the two, and the database is still the same file. Takes some microseconds, and does
    /// not wait for anybody.
    ///
    /// # Errors
    /// Those of [`Store::open_read_only`](crate::Store::open_read_only), and [`Error::Database`]
    /// while another process repairs the log. The next version is then another one. No store at all
    /// is no error.
    pub fn version(&mut self) -> Result<Version> {
        let version = self.look();
        if version.is_err() {
            self.database = None;
        }
        match version {
            Err(Error::NoStore { .. }) => Ok(Version(None)),
            other => other,
        }
    }

    fn look(&mut self) -> Result<Version> {
        let now = file_at(&schema::database(&self.dir));
        let database = if let Some(open) = self.database.take().filter(|it| Some(it.file) == now) {
            self.database.insert(open)
        } else {
            self.opened += 1;
            let connection = schema::open_to_watch(&self.dir)?;
            let file = now.ok_or_else(|| Error::NoStore { dir: self.dir.clone() })?;
            self.database.insert(Database { connection, file })
        };
        let session = schema::Session { connection: &database.connection, dir: &self.dir };
        // <https://sqlite.org/pragma.html#pragma_data_version>
        let version = session.run("look at", || {
            database.connection.query_row("PRAGMA data_version", [], |row| row.get(0))
        })?;
        Ok(Version(Some((self.opened, version))))
    }
}

fn file_at(path: &Path) -> Option<(u64, u64)> {
    let FileStat { st_dev, st_ino, .. } = stat(path).ok()?;
    Some((st_dev, st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;
    use crate::db::{Batch, Db};
    use crate::schema::Table;

    fn commit(db: &Db, value: &[u8]) {
        let mut batch = Batch::default();
        batch.put(Table::Meta, "k", value);
        db.write(&batch).unwrap();
    }

    #[test]
    fn every_commit_is_a_change_and_reading_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut changes = Changes::of(dir.path());
        let none = changes.version().unwrap();
        assert_eq!(changes.version().unwrap(), none);
        let db = Db::open(dir.path()).unwrap();
        let mut last = changes.version().unwrap();
        assert_ne!(last, none);
        for round in 0..50 {
            Store::open_read_only(dir.path()).unwrap().entries().unwrap();
            assert_eq!(changes.version().unwrap(), last);
            // Within one tick of the clock that file times are from, and of the same length.
            commit(&db, &[round]);
            let now = changes.version().unwrap();
            assert_ne!(now, last);
            last = now;
        }
        drop(db);
        assert_eq!(changes.version().unwrap(), last, "to close it changes nothing");
    }

    #[test]
    fn a_store_that_was_made_anew_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut changes = Changes::of(dir.path());
        let mut seen = vec![changes.version().unwrap()];
        for _ in 0..3 {
            drop(Db::open(dir.path()).unwrap());
            let made = changes.version().unwrap();
            assert!(!seen.contains(&made));
            seen.push(made);
            std::fs::remove_dir_all(schema::folder(dir.path())).unwrap();
            assert_eq!(changes.version().unwrap(), seen[0], "there is none");
        }
    }

    #[test]
    fn a_damaged_store_is_an_error_each_time() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(schema::folder(dir.path())).unwrap();
        std::fs::write(schema::database(dir.path()), "nothing").unwrap();
        let mut changes = Changes::of(dir.path());
        for _ in 0..2 {
            assert!(matches!(changes.version(), Err(Error::DamagedStore { .. })));
        }
    }
}
