//! Files of the guest: metadata, directory entries and streamed contents.

use crate::{ByteString, GuestError};
use serde::{Deserialize, Serialize};

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe.
    Other,
}

/// inode(7) of a path, without following a last symbolic link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// What it is.
    pub kind: FileKind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification in nanoseconds since the Unix epoch.
    pub mtime_ns: i64,
    /// Where a symbolic link points.
    pub target: Option<ByteString>,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Name in its directory.
    pub name: ByteString,
    /// What it is.
    pub kind: FileKind,
}

/// A piece of a file, in either direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileChunk {
    /// Bytes, at most [`crate::MAX_CHUNK`].
    Data(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The whole file was sent.
    End,
    /// It ends here because of this.
    Failed(GuestError),
}
