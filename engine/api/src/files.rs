//! Files.

use mayfly_protocol::{DirEntry, FileKind, Followed, Metadata, WatchEvent, WatchKind, Xattr};
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
    /// Absolute path.
    #[serde(default)]
    pub path: Blob,
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
    /// Name of the owner, if the guest has one for the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Name of the group, if the guest has one for the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Last modification in nanoseconds since the Unix epoch.
    pub mtime_ns: i64,
    /// Target of a symbolic link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Blob>,
    /// What a symbolic link leads to, if that was asked for and is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub followed: Option<LinkEnd>,
    /// The extended attributes of users (`user.*`) by name, if they were asked for: at most 64 of
    /// 64 KiB together, without those that the user may not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xattrs: Option<Vec<Attribute>>,
    /// Whether there are more of them than are told.
    #[serde(default, skip_serializing_if = "is_false")]
    pub more_xattrs: bool,
}

/// What is behind a symbolic link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LinkEnd {
    /// Absolute path, without any link in it.
    pub path: Blob,
    /// Type of the path.
    pub kind: Kind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits, as a number.
    pub mode: u32,
}

/// An extended attribute, see xattr(7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Attribute {
    /// Full name, such as `user.mime_type`.
    pub name: Blob,
    /// Value.
    pub value: Blob,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Entry {
    /// Path relative to the directory that is listed: the name alone on the first level.
    pub name: Blob,
    /// Type of the entry.
    pub kind: Kind,
    /// Whether it is a directory whose entries were to follow, and which the user may not read.
    #[serde(default, skip_serializing_if = "is_false")]
    pub unreadable: bool,
    /// The entry itself, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stat: Option<Box<FileStat>>,
}

/// Contents of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Listing {
    /// Entries by name, without `.` and `..`.
    pub entries: Vec<Entry>,
}

/// Result of a write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Written {
    /// Number of bytes written.
    pub bytes: u64,
    /// Absolute path of the file, where one was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Blob>,
}

/// Result of making a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Made {
    /// Whether it was made now; it was there already otherwise.
    pub made: bool,
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
            path: metadata.path.into(),
            kind: metadata.kind.into(),
            size: metadata.size,
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
            owner: metadata.owner,
            group: metadata.group,
            mtime_ns: metadata.mtime_ns,
            target: metadata.target.map(Blob::from),
            followed: metadata.followed.map(LinkEnd::from),
            more_xattrs: metadata.xattrs.as_ref().is_some_and(|xattrs| xattrs.more),
            xattrs: metadata
                .xattrs
                .map(|xattrs| xattrs.attributes.into_iter().map(Attribute::from).collect()),
        }
    }
}

impl From<Followed> for LinkEnd {
    fn from(followed: Followed) -> Self {
        Self {
            path: followed.path.into(),
            kind: followed.kind.into(),
            size: followed.size,
            mode: followed.mode,
        }
    }
}

impl From<Xattr> for Attribute {
    fn from(xattr: Xattr) -> Self {
        Self { name: xattr.name.into(), value: xattr.value.into() }
    }
}

impl From<DirEntry> for Entry {
    fn from(entry: DirEntry) -> Self {
        Self {
            name: entry.name.into(),
            kind: entry.kind.into(),
            unreadable: entry.unreadable,
            stat: entry.metadata.map(|metadata| Box::new((*metadata).into())),
        }
    }
}

/// Kind of change to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// The path appeared, or was moved here from outside.
    Created,
    /// The path's content changed.
    Modified,
    /// The path was closed by one who had it open for writing: what was written is complete.
    Closed,
    /// The path's mode, owner, times, extended attributes or number of links changed.
    Attributes,
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
        /// Type of the path, where it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        entry: Option<Kind>,
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
            WatchKind::Closed => ChangeKind::Closed,
            WatchKind::Attributes => ChangeKind::Attributes,
            WatchKind::Removed => ChangeKind::Removed,
            WatchKind::Renamed => ChangeKind::Renamed,
            WatchKind::Overflow => ChangeKind::Overflow,
        };
        Self::Change {
            kind,
            path: event.path.into(),
            from: event.from.map(Blob::from),
            entry: event.entry.map(Kind::from),
        }
    }
}
