//! A file of a cache entry.

use std::fs::{self, File};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::artifacts::ArtifactFile;
use crate::error::{Error, IoContext as _};
use crate::seal::Seal;

/// What its record says of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EntryFile {
    name: String,
    len: u64,
    blake3: String,
}

impl EntryFile {
    /// Describes the existing file `name` in `dir` and brings it to disk.
    pub fn seal(dir: &Path, name: &str, seal: &dyn Seal) -> Result<Self, Error> {
        let path = dir.join(name);
        let file = File::open(&path).context("open", &path)?;
        file.sync_all().context("write", &path)?;
        let len = file.metadata().context("look at", &path)?.len();
        let blake3 = seal.hash(&path).context("read", &path)?.to_hex().to_string();
        Ok(Self { name: name.to_owned(), len, blake3 })
    }

    /// The file in `dir`, when it is there with the length it was written with.
    pub fn find(&self, dir: &Path) -> Option<ArtifactFile> {
        let plain = !self.name.contains('/') && self.name != "..";
        let path = dir.join(&self.name);
        let blake3 = blake3::Hash::from_hex(&self.blake3).ok()?;
        (plain && fs::metadata(&path).ok()?.len() == self.len).then_some(ArtifactFile {
            path,
            len: self.len,
            blake3,
        })
    }
}
