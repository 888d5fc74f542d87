//! Files of cgroups.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use super::CgroupError;

/// Writes a value in one system call, as the kernel wants it. Never makes a file.
pub(super) fn try_write(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// As [`try_write`].
///
/// # Errors
/// [`CgroupError::Refused`].
pub(super) fn write(path: &Path, value: impl std::fmt::Display) -> Result<(), CgroupError> {
    let value = value.to_string();
    try_write(path, &value).map_err(|cause| refused(&value, path, cause))
}

/// As [`write()`], where the kernel has the file.
pub(super) fn write_if_there(
    path: &Path,
    value: impl std::fmt::Display,
) -> Result<bool, CgroupError> {
    let value = value.to_string();
    match try_write(path, &value) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(refused(&value, path, cause)),
    }
}

pub(super) fn refused(value: &str, path: &Path, cause: io::Error) -> CgroupError {
    CgroupError::Refused { tried: format!("write `{value}` to {}", path.display()), cause }
}

/// Reads a file of a cgroup.
///
/// # Errors
/// [`CgroupError::Unreadable`].
pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    std::fs::read_to_string(path)
        .map_err(|cause| CgroupError::Unreadable { path: path.to_owned(), cause })
}
