//! Files of the guest: metadata, directory entries and streamed contents.

use crate::{ByteString, GuestError};
use serde::{Deserialize, Serialize};

/// Type of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// A device, socket or pipe.
    Other,
}

/// inode(7) of a path, without following a last symbolic link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Type of the path.
    pub kind: FileKind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    /// User id of the owner.
    pub uid: u32,
    /// Id of the group.
    pub gid: u32,
    /// Last modification in nanoseconds since the Unix epoch.
    pub mtime_ns: i64,
    /// Target of a symbolic link.
    pub target: Option<ByteString>,
}

/// Entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Name in its directory.
    pub name: ByteString,
    /// Type of the entry.
    pub kind: FileKind,
}

/// A piece of a file, in either direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileChunk {
    /// Bytes, at most [`crate::MAX_CHUNK`].
    Data(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The whole file was sent.
    End,
    /// Error at which the content ends.
    Failed(GuestError),
}
