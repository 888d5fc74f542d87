//! What lets only this host's own boot artifacts be booted.

use std::fmt::{self, Debug};
use std::fs::File;
use std::io;
use std::path::Path;

use crate::artifacts::ArtifactFile;

/// Hashes files, and makes notes about them that nobody else can make, since the cache may be
/// written by others.
pub trait Seal: Debug + Send + Sync {
    /// A hash of `text` that takes a secret key.
    fn note(&self, text: &str) -> blake3::Hash;

    /// blake3 of all bytes of the file at `path`, holes read as zeros.
    ///
    /// # Errors
    /// The file cannot be read.
    fn hash(&self, path: &Path) -> io::Result<blake3::Hash>;

    /// Whether a file has the content that it was written with. It may be remembered that it has,
    /// as long as the file cannot have changed since.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    fn check(&self, file: &ArtifactFile) -> Result<(), String>;
}

/// A seal with a key of its holder's, that remembers nothing of what it has checked.
pub struct KeyedSeal(pub [u8; 32]);

impl Debug for KeyedSeal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedSeal").finish_non_exhaustive()
    }
}

impl Seal for KeyedSeal {
    fn note(&self, text: &str) -> blake3::Hash {
        blake3::keyed_hash(&self.0, text.as_bytes())
    }

    fn hash(&self, path: &Path) -> io::Result<blake3::Hash> {
        Ok(blake3::Hasher::new().update_reader(File::open(path)?)?.finalize())
    }

    fn check(&self, file: &ArtifactFile) -> Result<(), String> {
        match self.hash(&file.path) {
            Ok(found) if found == file.blake3 => Ok(()),
            Ok(_) => Err(format!("{} was changed", file.path.display())),
            Err(error) => Err(format!("cannot read {}: {error}", file.path.display())),
        }
    }
}
