//! Errors of a store and of a chunk.

use crate::{ChunkId, FormatError, InvalidName, StreamKind};
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Result of a store operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Reason why a store operation failed. Unless said otherwise the store is as it was before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is not that of a golden image.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A file system call failed.
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        /// Operation that was tried.
        action: &'static str,
        /// File or directory it was tried on.
        path: PathBuf,
        /// Reason why it failed.
        cause: io::Error,
    },
    /// The file system is full.
    #[error(
        "disk full: cannot {action} {} ({available} bytes available); free space on its file system, \
         `mayfly golden rm NAME` deletes golden images; what was stored before is intact",
        path.display()
    )]
    DiskFull {
        /// Operation that was tried.
        action: &'static str,
        /// File or directory it was tried on.
        path: PathBuf,
        /// Bytes available on its file system just after the failure.
        available: u64,
    },
    /// Another process, or another [`Store`](crate::Store) of this one, has the store open for
    /// writing.
    #[error("another mayfly process is writing the store {}; wait for it or stop it", dir.display())]
    Locked {
        /// Path of the store.
        dir: PathBuf,
    },
    /// The store does not exist.
    #[error("there is no store in {}; `mayfly golden build` makes one", dir.display())]
    NoStore {
        /// Path at which it was looked for.
        dir: PathBuf,
    },
    /// The store was opened with [`Store::open_read_only`](crate::Store::open_read_only).
    #[error("the store {} is open read-only; open it for writing", dir.display())]
    ReadOnly {
        /// Path of the store.
        dir: PathBuf,
    },
    /// The store was laid out by another release.
    #[error(
        "the store {} has format version {found}, this release uses {supported}; use the release that wrote it, \
         or move it away and build the golden images again",
        dir.display()
    )]
    StoreVersion {
        /// Path of the store.
        dir: PathBuf,
        /// Format version of the store.
        found: u32,
        /// Format version that this program supports.
        supported: u32,
    },
    /// No golden image of that name.
    #[error("no golden image `{name}`; {}", known_names(known))]
    UnknownGolden {
        /// The name asked for.
        name: String,
        /// The names there are, sorted.
        known: Vec<String>,
    },
    /// The golden image was replaced or removed after its manifest was read.
    #[error(
        "golden image `{name}` was replaced or removed after its manifest was read; read the manifest again"
    )]
    Stale {
        /// The golden image.
        name: String,
    },
    /// Metadata of a golden image is damaged.
    #[error(
        "golden image `{golden}`: {cause}; remove it (`mayfly golden rm {golden}`) and build it again \
         (`mayfly golden build`)"
    )]
    DamagedGolden {
        /// The golden image.
        golden: String,
        /// Reason why it is not valid.
        cause: FormatError,
    },
    /// A golden image without a seal.
    #[error(
        "golden image `{golden}` has no seal: it was built before there were seals, or somebody removed it; build it again \
         (`mayfly golden build`)"
    )]
    Unsealed {
        /// The golden image.
        golden: String,
    },
    /// A golden image whose seal is not that of its manifest and working set.
    #[error(
        "golden image `{golden}` does not match its seal: it was altered, or another host built it; build it again \
         (`mayfly golden build`), or copy the key of the host that built it to {}",
        key.display()
    )]
    WrongSeal {
        /// The golden image.
        golden: String,
        /// The key it was checked with.
        key: PathBuf,
    },
    /// The key to check seals with is missing.
    #[error(
        "there is no key in {} to check golden images with: build them again (`mayfly golden build` makes one), or copy \
         the key of the host that built them",
        path.display()
    )]
    NoSealKey {
        /// Path at which it was looked for; empty when the store was given none.
        path: PathBuf,
    },
    /// The key cannot be used or made.
    #[error("the key {} cannot be used: {reason}; MAYFLY_SEAL_KEY names another place", path.display())]
    BadSealKey {
        /// The key file.
        path: PathBuf,
        /// Reason why it is not.
        reason: String,
    },
    /// Metadata shared by the golden images is damaged.
    #[error("the store {}: {cause}; move it away and build the golden images again", dir.display())]
    DamagedStore {
        /// Path of the store.
        dir: PathBuf,
        /// Reason why it is not.
        cause: FormatError,
    },
    /// A chunk cannot be read, or is not what was stored.
    #[error(transparent)]
    BadChunk(Box<BadChunk>),
    /// A chunk index beyond the end of a stream.
    #[error(
        "golden image `{golden}`: the {stream} stream has {chunks} chunks, there is no chunk {index}"
    )]
    NoSuchChunk {
        /// The golden image.
        golden: String,
        /// Name of the stream.
        stream: StreamKind,
        /// The index asked for.
        index: u64,
        /// Number of chunks in the stream.
        chunks: u64,
    },
    /// The caller's buffer is shorter than the chunk.
    #[error("a buffer of {have} bytes is too short for a chunk of {need} bytes")]
    ShortBuffer {
        /// Bytes of the chunk.
        need: usize,
        /// Bytes of the buffer.
        have: usize,
    },
    /// A working set names a chunk twice.
    #[error("golden image `{golden}`: chunk {index} is twice in the working set")]
    DuplicateInWorkingSet {
        /// The golden image.
        golden: String,
        /// Index that was asked for.
        index: u32,
    },
    /// A stream is longer than the format holds.
    #[error("{input} has {len} bytes, more than the {max} a stream can have")]
    TooLong {
        /// The input.
        input: String,
        /// Length of the input.
        len: u64,
        /// The greatest length.
        max: u64,
    },
    /// The caller cancelled the operation.
    #[error("cancelled; nothing was changed")]
    Cancelled,
    /// SQLite reported an error.
    #[error("cannot {action} the metadata of the store {}: {cause}", dir.display())]
    Database {
        /// Operation that was tried.
        action: &'static str,
        /// Path of the store.
        dir: PathBuf,
        /// SQLite's own words.
        cause: rusqlite::Error,
    },
}

fn known_names(known: &[String]) -> String {
    if known.is_empty() {
        "there is none yet, `mayfly golden build` makes one".to_owned()
    } else {
        format!("there is {}", known.join(", "))
    }
}

/// Chunk that cannot be given back as it was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadChunk {
    /// The golden image.
    pub golden: String,
    /// Name of the stream.
    pub stream: StreamKind,
    /// Index of the chunk in the stream.
    pub index: u64,
    /// Id of the chunk.
    pub id: ChunkId,
    /// File name of the pack it is in; `None` when the store has no location for it.
    pub pack: Option<String>,
    /// Offset of its record in the pack, in bytes.
    pub offset: u64,
    /// Damage of the chunk.
    pub damage: Damage,
}

impl fmt::Display for BadChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "golden image `{}`: {} chunk {} ({})",
            self.golden,
            self.stream,
            self.index,
            self.id.short()
        )?;
        if let Some(pack) = &self.pack {
            write!(f, " in {pack} at {}", self.offset)?;
        }
        write!(
            f,
            ": {}; `mayfly golden verify {}` lists all damage, `mayfly golden build` builds the image again",
            self.damage, self.golden
        )
    }
}

impl std::error::Error for BadChunk {}

/// Kind of damage to a chunk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// The metadata has no location for the id.
    #[error("the store has no location for this chunk")]
    NoLocation,
    /// The pack file is gone.
    #[error("the pack file is missing")]
    PackMissing,
    /// The pack file does not begin as a pack of that id.
    #[error("{0}")]
    PackHeader(FormatError),
    /// The pack file ends inside the record.
    #[error("the pack file is truncated: the record ends at byte {need}, the file at {have}")]
    Truncated {
        /// First byte behind the record.
        need: u64,
        /// Length of the file.
        have: u64,
    },
    /// The record's header is not the one that was written.
    #[error("the record header was altered: {0}")]
    RecordHeader(String),
    /// The stored bytes do not expand.
    #[error("the stored bytes do not decompress: {0}")]
    Decompress(String),
    /// The bytes are others than those that were stored.
    #[error("the content was altered: its blake3 is {found}")]
    Content {
        /// Hash of what is there.
        found: ChunkId,
    },
    /// The pack file cannot be read.
    #[error("the pack file cannot be read: {0}")]
    Io(String),
}
