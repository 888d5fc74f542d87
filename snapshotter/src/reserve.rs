//! A few megabytes set aside, so that a golden image can be removed when the disk is full.
//!
//! Removing writes before it frees: RocksDB starts a log when it opens and appends to it. Without this file the advice
//! to free space with `mayfly golden rm` could not be followed.

use nix::fcntl::posix_fallocate;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// Enough for RocksDB to open (logs, one memtable written out) and for a large removal.
const RESERVE_BYTES: i64 = 16 << 20;

fn path(dir: &Path) -> PathBuf {
    dir.join("reserve")
}

/// Gives the reserved space back to the file system; says whether there was any.
pub(crate) fn release(dir: &Path) -> bool {
    fs::remove_file(path(dir)).is_ok()
}

/// Sets the space aside, unless it is already or there is too little.
pub(crate) fn ensure(dir: &Path) {
    let path = path(dir);
    let attempt = || -> io::Result<()> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
        if file.metadata()?.len() != RESERVE_BYTES as u64 {
            posix_fallocate(&file, 0, RESERVE_BYTES)?;
        }
        Ok(())
    };
    if let Err(error) = attempt() {
        tracing::debug!(%error, "no space could be set aside for removing on a full disk");
        // A shorter file would only be in the way.
        let _ = fs::remove_file(&path);
    }
}
