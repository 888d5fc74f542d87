//! Directories made, and paths removed and renamed.

use super::Place;
use crate::wire::{invalid, reply};
use mayfly_protocol::{ByteString, GuestError, Reply};
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Makes a directory as mkdir(2) does, with parents if asked for; whether it was made.
pub fn mkdir(place: &Place, mode: u32, parents: bool) -> Reply<bool> {
    if mode > 0o7777 {
        return Err(invalid(format!("directory mode {mode:o} is beyond 7777")));
    }
    let path = place.as_path();
    if parents {
        place.make_parents(path)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if parents && error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {
            return Ok(false);
        }
        made => reply(format_args!("make directory {}", place.path), made)?,
    }
    // The umask has no say in a mode that was asked for.
    let mode = Permissions::from_mode(mode);
    let set = match place.rights() {
        // A link in its place leads to nothing that the user could not change anyway.
        Some(_) => std::fs::set_permissions(path, mode),
        None => place.take_over(path).and_then(|made| made.set_permissions(mode)),
    };
    reply(format_args!("set owner and mode of {}", place.path), set)?;
    Ok(true)
}

/// Removes a path: unlink(2), rmdir(2), or all of a directory. A symbolic link is removed, never
/// followed.
pub fn remove(place: &Place, recursive: bool, force: bool) -> Reply<()> {
    let (path, target) = (&place.path, place.as_path());
    let removed = remove_path(target, recursive);
    match removed {
        // What rm(1) takes for nothing.
        Err(error)
            if force
                && matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
        {
            Ok(())
        }
        removed => reply(format_args!("remove {path}"), removed),
    }
}

fn remove_path(target: &Path, recursive: bool) -> io::Result<()> {
    let is_directory = std::fs::symlink_metadata(target)?.is_dir();
    match (is_directory, recursive) {
        // As rmdir(2) refuses it, before anything in it is gone.
        (true, true) if target.canonicalize()?.parent().is_none() => {
            Err(io::Error::from_raw_os_error(libc::EBUSY))
        }
        (true, true) => std::fs::remove_dir_all(target),
        (true, false) => std::fs::remove_dir(target),
        (false, _) => std::fs::remove_file(target),
    }
}

/// Renames a path, as rename(2) does.
pub fn rename(from: &Place, to: &ByteString, parents: bool) -> Reply<()> {
    let to = from.sibling(to)?;
    if parents {
        // Nothing is made for what is not there.
        reply(format_args!("rename {}", from.path), std::fs::symlink_metadata(from.as_path()))?;
        to.make_parents(to.as_path())?;
    }
    std::fs::rename(from.as_path(), to.as_path()).map_err(|error| {
        GuestError::io(format_args!("rename {} to {}", from.path, to.path), &error)
    })
}
