//! Files.

use mayfly_protocol::{DirEntry, FileKind, Metadata, WatchEvent, WatchKind};
use serde::{Deserialize, Serialize};

use crate::Blob;

/// Type of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Device, socket or pipe.
    Other,
}

/// A path, without following a last symbolic link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileStat {
    /// Type of the path.
    pub kind: Kind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits, as a number (decimal in JSON): 0o644 is 420.
    pub mode: u32,
    /// User id of the owner.
    pub uid: u32,
    /// Id of the group.
    pub gid: u32,
    /// Last modification in nanoseconds since the Unix epoch.
    pub mtime_ns: i64,
    /// Target of a symbolic link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Blob>,
}

/// Entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Entry {
    /// Name in its directory.
    pub name: Blob,
    /// Type of the entry.
    pub kind: Kind,
}

/// Contents of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Listing {
    /// Entries by name, without `.` and `..`.
    pub entries: Vec<Entry>,
}

/// Result of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Written {
    /// Number of bytes written.
    pub bytes: u64,
}

impl From<FileKind> for Kind {
    fn from(kind: FileKind) -> Self {
        match kind {
            FileKind::File => Self::File,
            FileKind::Directory => Self::Directory,
            FileKind::Symlink => Self::Symlink,
            FileKind::Other => Self::Other,
        }
    }
}

impl From<Metadata> for FileStat {
    fn from(metadata: Metadata) -> Self {
        Self {
            kind: metadata.kind.into(),
            size: metadata.size,
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
            mtime_ns: metadata.mtime_ns,
            target: metadata.target.map(Blob::from),
        }
    }
}

impl From<DirEntry> for Entry {
    fn from(entry: DirEntry) -> Self {
        Self { name: entry.name.into(), kind: entry.kind.into() }
    }
}

/// Kind of change to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// The path appeared, or was moved here from outside.
    Created,
    /// The path's content, mode, owner or times changed.
    Modified,
    /// The path is gone, or was moved outside. With an empty path: the watched path itself, and
    /// nothing follows.
    Removed,
    /// The path was moved here from another one below the watched one.
    Renamed,
    /// Events were lost: look at everything again.
    Overflow,
}

/// A line of a watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Change {
    /// First: the watch is in place.
    Watching,
    /// Change of a path below the watched one, or of that one itself.
    Change {
        /// Kind of the change.
        kind: ChangeKind,
        /// Path that changed, relative to the watched one; empty for the watched one itself.
        path: Blob,
        /// The old path of a rename.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<Blob>,
    },
    /// Sign of life.
    Heartbeat,
    /// Last: the watch was lost.
    Error {
        /// Word that programs may rely on, as [`ErrorBody::code`](crate::ErrorBody::code).
        code: String,
        /// Message that says what was tried, why it failed and what to do next.
        message: String,
    },
}

impl From<WatchEvent> for Change {
    fn from(event: WatchEvent) -> Self {
        let kind = match event.kind {
            WatchKind::Created => ChangeKind::Created,
            WatchKind::Modified => ChangeKind::Modified,
            WatchKind::Removed => ChangeKind::Removed,
            WatchKind::Renamed => ChangeKind::Renamed,
            WatchKind::Overflow => ChangeKind::Overflow,
        };
        Self::Change { kind, path: event.path.into(), from: event.from.map(Blob::from) }
    }
}
