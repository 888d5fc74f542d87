//! Small file system helpers with typed errors.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Whether an I/O error means that the file system or the quota on it is full.
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Bytes an unprivileged process may still write on the file system of `path`; 0 when that cannot
/// be told.
pub(crate) fn available_bytes(path: &Path) -> u64 {
    let place = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    nix::sys::statvfs::statvfs(place).map_or(0, |s| s.blocks_available() * s.fragment_size())
}

/// Turns an I/O error at `path` into ours.
pub(crate) fn io_error(action: &'static str, path: &Path, cause: io::Error) -> Error {
    if is_disk_full(&cause) {
        Error::DiskFull { action, path: path.to_owned(), available: available_bytes(path) }
    } else {
        Error::Io { action, path: path.to_owned(), cause }
    }
}

/// Makes the names in a directory durable (fsync(2): the entry of a new file needs its own fsync).
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| io_error("sync the directory", dir, e))
}

/// Removes a file; one that is already gone is fine. Returns the bytes it had.
pub(crate) fn remove_file(path: &Path) -> Result<u64> {
    let len = fs::metadata(path).map_or(0, |m| m.len());
    match fs::remove_file(path) {
        Ok(()) => Ok(len),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(io_error("remove", path, e)),
    }
}
