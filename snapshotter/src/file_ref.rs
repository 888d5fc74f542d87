//! A reference to a file outside the store, by name, length and hash.

use crate::Digest;
use crate::extents::data_extents;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes hashed at a time: enough for blake3 to use every core, little enough to stay in the cache.
const BLOCK: usize = 4 << 20;

/// Identity of a file: what it was called, how long it is, the blake3 of all its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRef {
    /// Last component of its path.
    pub file_name: String,
    /// blake3 of its content, holes read as zeros.
    pub blake3: Digest,
    /// Length in bytes.
    pub len: u64,
}

/// Reason why a file could not be referred to, or is not the one referred to.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file could not be read.
    #[error("cannot read {}: {cause}", path.display())]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// Reason why it could not.
        cause: io::Error,
    },
    /// The path has no last component in UTF-8.
    #[error("{} has no file name in UTF-8; rename it", path.display())]
    Name {
        /// Path of the file.
        path: PathBuf,
    },
    /// The file's length is another one.
    #[error("{} has {found} bytes, the golden image needs {expected}; build the golden image again", path.display())]
    Length {
        /// Path of the file.
        path: PathBuf,
        /// Length in the reference.
        expected: u64,
        /// Length found.
        found: u64,
    },
    /// The file's content is another one.
    #[error("{} was changed: its blake3 is {found}, the golden image needs {expected}; build the golden image again", path.display())]
    Content {
        /// Path of the file.
        path: PathBuf,
        /// Hash in the reference.
        expected: Digest,
        /// Hash found.
        found: Digest,
    },
}

impl FileRef {
    /// Reads and hashes the file at `path`. Sparse files are fine; holes are not read.
    ///
    /// Reads rather than maps: a mapped file that shrinks or fails to read would kill the process
    /// with `SIGBUS`.
    ///
    /// # Errors
    /// [`FileError::Name`] when its name is not UTF-8, [`FileError::Io`].
    pub fn of(path: &Path) -> Result<Self, FileError> {
        let file_name = path
            .file_name()
            .and_then(|n| n.to_str())
            .ok_or_else(|| FileError::Name { path: path.to_owned() })?
            .to_owned();
        let hash = || hash_file(&File::open(path)?);
        let (blake3, len) =
            hash().map_err(|cause| FileError::Io { path: path.to_owned(), cause })?;
        Ok(Self { file_name, blake3, len })
    }

    /// Checks that the file at `path` has this length and content; its name is free.
    ///
    /// # Errors
    /// [`FileError::Length`], [`FileError::Content`], [`FileError::Io`].
    pub fn verify(&self, path: &Path) -> Result<(), FileError> {
        let file =
            File::open(path).map_err(|cause| FileError::Io { path: path.to_owned(), cause })?;
        self.verify_open(&file, path)
    }

    /// Checks that this open file has this length and content. Whatever becomes of its name, what
    /// was checked is what is read through `file` later. `path` is for messages.
    ///
    /// # Errors
    /// As [`FileRef::verify`].
    pub fn verify_open(&self, file: &File, path: &Path) -> Result<(), FileError> {
        let io = |cause| FileError::Io { path: path.to_owned(), cause };
        let found = file.metadata().map_err(io)?.len();
        if found != self.len {
            return Err(FileError::Length { path: path.to_owned(), expected: self.len, found });
        }
        let (found, _) = hash_file(file).map_err(io)?;
        if found != self.blake3 {
            return Err(FileError::Content { path: path.to_owned(), expected: self.blake3, found });
        }
        Ok(())
    }
}

/// Bytes of the next block when `rest` bytes are left.
fn block_of(rest: u64) -> usize {
    usize::try_from(rest).map_or(BLOCK, |rest| rest.min(BLOCK))
}

fn hash_file(file: &File) -> io::Result<(Digest, u64)> {
    static ZEROS: [u8; BLOCK] = [0; BLOCK];
    let len = file.metadata()?.len();
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BLOCK];
    let mut at = 0;
    let zeros_until = |hasher: &mut blake3::Hasher, from: u64, to: u64| {
        let mut rest = to - from;
        while rest > 0 {
            let n = block_of(rest);
            hasher.update_rayon(&ZEROS[..n]);
            rest -= n as u64;
        }
    };
    for extent in data_extents(file, len)? {
        zeros_until(&mut hasher, at, extent.start);
        at = extent.start;
        while at < extent.end {
            let block = &mut buffer[..block_of(extent.end - at)];
            file.read_exact_at(block, at)?;
            hasher.update_rayon(block);
            at += block.len() as u64;
        }
    }
    zeros_until(&mut hasher, at, len);
    Ok((hasher.finalize().into(), len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_file_hashes_like_its_bytes_and_changes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base.img");
        let file = File::create(&path).unwrap();
        file.set_len(9 << 20).unwrap();
        file.write_all_at(b"superblock", 5 << 20).unwrap();
        let reference = FileRef::of(&path).unwrap();
        assert_eq!(reference.file_name, "base.img");
        assert_eq!(reference.blake3, Digest::of(&std::fs::read(&path).unwrap()));
        reference.verify(&path).unwrap();

        file.write_all_at(b"S", 5 << 20).unwrap();
        assert!(matches!(reference.verify(&path), Err(FileError::Content { .. })));
        file.set_len(1).unwrap();
        let error = reference.verify(&path).unwrap_err();
        assert!(matches!(error, FileError::Length { found: 1, .. }), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(reference.verify(&path).unwrap_err().to_string().contains("base.img"));
        assert!(matches!(FileRef::of(Path::new("/")), Err(FileError::Name { .. })));
    }
}
