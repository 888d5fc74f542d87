//! Files of the guest.
//!
//! Everything that touches a file system is done in a thread ([`crate::threads`]), with the rights
//! of the user whom the request names ([`crate::rights`]).

mod change;
mod list;
mod names;
mod place;
mod read;
mod stat;
mod write;
mod xattrs;

pub use change::{mkdir, remove, rename};
pub use list::list;
pub use names::read_database;
pub use place::{Place, at};
pub use read::read;
pub use stat::stat;
pub use write::write;

use mayfly_protocol::{ByteString, FileKind, GuestError};
use std::fs::FileType;

/// The failure of work that needs another kind of file.
fn is_a_directory(path: &ByteString) -> GuestError {
    GuestError { errno: libc::EISDIR, message: format!("{path} is a directory") }
}

/// The kind of what lstat(2) tells.
pub fn kind_of(kind: FileType) -> FileKind {
    if kind.is_file() {
        FileKind::File
    } else if kind.is_dir() {
        FileKind::Directory
    } else if kind.is_symlink() {
        FileKind::Symlink
    } else {
        FileKind::Other
    }
}
