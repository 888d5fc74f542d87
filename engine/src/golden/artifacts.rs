//! Boot artifacts: used only as this host built them.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use mayfly_golden_images::{ArtifactFile, Seal};
use mayfly_host::facts::Facts;
use mayfly_host::layout::Layout;
use mayfly_snapshotter::{Digest, FileError, FileRef, SealKey};

use super::disk::VerifiedFile;
use super::error::GoldenError;

/// The host's seal over boot artifacts. A file that was checked is not read again before the host
/// reboots, unless it has changed.
#[derive(Debug, Clone)]
pub struct ArtifactSeal {
    key: SealKey,
    facts: Facts,
}

impl ArtifactSeal {
    /// With the key of `layout`, which is made when there is none.
    ///
    /// # Errors
    /// [`GoldenError::Store`] when there is a key that cannot be used.
    pub fn of(layout: &Layout) -> Result<Arc<Self>, GoldenError> {
        let key = SealKey::load_or_create(layout.seal_key())?;
        Ok(Arc::new(Self { key, facts: Facts::new(layout) }))
    }

    /// A seal with this key, that remembers in `facts` what it has checked.
    pub fn new(key: SealKey, facts: Facts) -> Self {
        Self { key, facts }
    }

    /// Opens a file for a VMM, on the very descriptor that was checked.
    ///
    /// # Errors
    /// [`GoldenError`] when it is not what it was when it was written.
    pub(super) fn open(&self, file: &ArtifactFile) -> Result<OwnedFd, GoldenError> {
        VerifiedFile::open(&self.facts, &self.key, &file.path, &reference(file))?.open_for_vmm()
    }
}

/// The file, as the manifest of a golden refers to it.
pub(super) fn reference(file: &ArtifactFile) -> FileRef {
    let name = file.path.file_name().unwrap_or_default().to_string_lossy();
    FileRef { file_name: name.into_owned(), blake3: Digest::from(file.blake3), len: file.len }
}

impl Seal for ArtifactSeal {
    fn note(&self, text: &str) -> blake3::Hash {
        blake3::Hash::from_bytes(*self.key.note(text).as_bytes())
    }

    fn hash(&self, path: &Path) -> io::Result<blake3::Hash> {
        let reference = FileRef::of(path).map_err(io::Error::other)?;
        Ok(blake3::Hash::from_bytes(*reference.blake3.as_bytes()))
    }

    fn check(&self, file: &ArtifactFile) -> Result<(), String> {
        self.open(file).map(drop).map_err(|error| match error {
            // Its own words tell to build again, which is what is done.
            GoldenError::File(FileError::Content { .. } | FileError::Length { .. }) => {
                format!("{} was changed", file.path.display())
            }
            other => other.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_file_is_opened_as_it_was_sealed_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("initramfs.cpio");
        std::fs::write(&path, "good content").unwrap();
        let facts = Facts::new(&Layout::new("/nonexistent", dir.path().join("run")));
        let key = SealKey::load_or_create(&dir.path().join("seal.key")).unwrap();
        let seal = ArtifactSeal::new(key, facts);
        let file = ArtifactFile { blake3: seal.hash(&path).unwrap(), len: 12, path };
        seal.check(&file).unwrap();
        seal.open(&file).unwrap();
        let writer = std::fs::File::options().write(true).open(&file.path).unwrap();
        let before = writer.metadata().unwrap().modified().unwrap();
        writer.write_all_at(b"evil", 0).unwrap();
        writer.set_modified(before).unwrap();
        let why = seal.check(&file).unwrap_err();
        assert!(why.contains("initramfs.cpio was changed"), "{why}");
        seal.open(&file).unwrap_err();
        writer.write_all_at(b"good", 0).unwrap();
        seal.open(&file).unwrap();
    }
}
