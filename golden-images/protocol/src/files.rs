//! Files of the guest: metadata, directory entries and streamed contents.

use crate::{ByteString, GuestError};
use serde::{Deserialize, Serialize};

/// Extended attributes that one path may have in an answer, and that one write may set.
pub const MAX_XATTRS: usize = 64;

/// Bytes of the names and values of those attributes together.
pub const MAX_XATTR_BYTES: usize = 64 * 1024;

/// A path of a file request, and for whom it is used.
///
/// ```
/// use mayfly_protocol::FilePath;
/// let of_root: FilePath = "/etc/hostname".into();
/// assert_eq!(of_root.user, None);
/// let of_ann = FilePath::of_user("~/notes", "ann");
/// assert_eq!(of_ann.user.as_deref(), Some("ann"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePath {
    /// The path. Without a user it is absolute; with one, a relative path, `~` and `~/x` start from
    /// the user's home.
    pub path: ByteString,
    /// Who does it, as [`crate::ExecRequest::user`]: with that user's rights, and what is made is
    /// theirs. Root when absent.
    pub user: Option<String>,
    /// Whether root does it for the user: no right is missing, and what is made is the user's.
    pub as_root: bool,
}

impl FilePath {
    /// A path of `user`, with that user's rights.
    pub fn of_user(path: impl Into<ByteString>, user: impl Into<String>) -> Self {
        Self { path: path.into(), user: Some(user.into()), as_root: false }
    }

    /// The same path, with the rights of root.
    #[must_use]
    pub fn as_root(self) -> Self {
        Self { as_root: true, ..self }
    }
}

impl<T: Into<ByteString>> From<T> for FilePath {
    fn from(path: T) -> Self {
        Self { path: path.into(), user: None, as_root: false }
    }
}

/// How a file is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteOptions {
    /// Permission bits that the file gets, at most 0o7777, not cut by a umask. When absent, a file
    /// that is there keeps its own, and a new one gets 0o644.
    pub mode: Option<u32>,
    /// Whether the file that is there is emptied and written, so that it stays the same inode with
    /// its owner, hard links and attributes, through symbolic links. Otherwise the content is
    /// written beside it, and takes its name and owner as a whole or not at all.
    pub in_place: bool,
    /// Whether missing directories above it are made (0o755, the user's).
    pub parents: bool,
    /// Extended attributes to set once the content is there.
    pub xattrs: Option<XattrSet>,
}

/// Extended attributes that replace all of a prefix. At most [`MAX_XATTRS`] of
/// [`MAX_XATTR_BYTES`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XattrSet {
    /// Begins with `user.` (xattr(7)). Attributes with this prefix that are not in the set are
    /// removed.
    pub prefix: ByteString,
    /// The attributes, whose names begin with the prefix.
    pub attributes: Vec<Xattr>,
}

/// An extended attribute, see xattr(7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xattr {
    /// Full name, such as `user.mime_type`.
    pub name: ByteString,
    /// Value.
    pub value: ByteString,
}

/// Result of a write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Number of bytes written.
    pub bytes: u64,
    /// The file's absolute path.
    pub path: ByteString,
}

/// What a description of a path has beside inode(7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatOptions {
    /// Whether to tell what is behind a last symbolic link ([`Metadata::followed`]).
    pub follow: bool,
    /// Whether to tell the `user.` attributes ([`Metadata::xattrs`]).
    pub xattrs: bool,
}

/// What a list of a directory has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListOptions {
    /// Levels of directories: 1 is the directory's own entries. Symbolic links are not followed.
    pub depth: u32,
    /// What to tell of each entry ([`DirEntry::metadata`]); nothing when absent.
    pub stat: Option<StatOptions>,
}

impl Default for ListOptions {
    fn default() -> Self {
        Self { depth: 1, stat: None }
    }
}

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
    /// The absolute path, with the user's home in its place.
    pub path: ByteString,
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
    /// Name of the owner in the guest's passwd(5), if it has one. Never told of a file that is
    /// read.
    pub owner: Option<String>,
    /// Name of the group in the guest's group(5), as `owner`.
    pub group: Option<String>,
    /// Last modification in nanoseconds since the Unix epoch.
    pub mtime_ns: i64,
    /// Target of a symbolic link, as it is written in it.
    pub target: Option<ByteString>,
    /// What a symbolic link leads to, if that was asked for and is there.
    pub followed: Option<Followed>,
    /// The `user.` attributes, if they were asked for.
    pub xattrs: Option<Xattrs>,
}

impl Metadata {
    /// Creates the description of a path of which nothing but its type is known.
    pub fn new(path: impl Into<ByteString>, kind: FileKind) -> Self {
        Self {
            path: path.into(),
            kind,
            size: 0,
            mode: 0,
            uid: 0,
            gid: 0,
            owner: None,
            group: None,
            mtime_ns: 0,
            target: None,
            followed: None,
            xattrs: None,
        }
    }
}

/// What is behind a symbolic link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// Its absolute path, without any link in it.
    pub path: ByteString,
    /// Its type.
    pub kind: FileKind,
    /// Its size in bytes.
    pub size: u64,
    /// Its permission bits, at most 0o7777.
    pub mode: u32,
}

/// The `user.` attributes of a path, in the order of their names. Those that the user may not read
/// are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xattrs {
    /// The attributes, at most [`MAX_XATTRS`] of [`MAX_XATTR_BYTES`].
    pub attributes: Vec<Xattr>,
    /// Whether there are more.
    pub more: bool,
}

/// Entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Path relative to the directory that is listed: the name alone on the first level.
    pub name: ByteString,
    /// Type of the entry.
    pub kind: FileKind,
    /// Whether it is a directory whose entries were to follow, and which the user may not read.
    pub unreadable: bool,
    /// What was asked of each entry.
    pub metadata: Option<Box<Metadata>>,
}

impl DirEntry {
    /// Creates an entry of which nothing but its type is told.
    pub fn new(name: impl Into<ByteString>, kind: FileKind) -> Self {
        Self { name: name.into(), kind, unreadable: false, metadata: None }
    }
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
