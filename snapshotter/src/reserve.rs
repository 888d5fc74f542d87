//! A few megabytes set aside, so that a golden image can be removed when the disk is full.
//!
//! Removing writes before it frees: SQLite makes the index of its log when it opens, and a removal
//! appends each page that it changes to the log, at most all pages of the database. Without this
//! file the advice to free space with `mayfly golden rm` could not be followed.

use crate::schema;
use nix::fcntl::posix_fallocate;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// For the index of the log, the headers in the log, and compaction; the pages of the database come
/// on top.
const RESERVE_BYTES: u64 = 16 << 20;

fn path(dir: &Path) -> PathBuf {
    dir.join("reserve")
}

/// Gives the reserved space back to the file system; says whether there was any.
pub(crate) fn release(dir: &Path) -> bool {
    fs::remove_file(path(dir)).is_ok()
}

/// Sets the space aside, unless it is already, or there is too little.
pub(crate) fn ensure(dir: &Path) {
    let path = path(dir);
    let attempt = || -> io::Result<()> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
        let bytes = RESERVE_BYTES + schema::database_bytes(dir);
        if file.metadata()?.len() < bytes {
            posix_fallocate(&file, 0, i64::try_from(bytes).unwrap_or(i64::MAX))?;
        }
        Ok(())
    };
    if let Err(error) = attempt() {
        tracing::debug!(%error, "no space could be set aside for removing on a full disk");
        // A shorter file would only be in the way.
        let _ = fs::remove_file(&path);
    }
}
