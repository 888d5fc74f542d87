//! A file of a cache entry.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext as _};

/// Name and length of it, so that a truncated file is noticed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EntryFile {
    name: String,
    len: u64,
}

impl EntryFile {
    /// Describes the existing file `name` in `dir` and brings it to disk.
    pub fn seal(dir: &Path, name: &str) -> Result<Self, Error> {
        let path = dir.join(name);
        let file = File::open(&path).context("open", &path)?;
        file.sync_all().context("write", &path)?;
        Ok(Self { name: name.to_owned(), len: file.metadata().context("look at", &path)?.len() })
    }

    /// Returns the path of the file in `dir`, when it is there with the length it was written with.
    pub fn check(&self, dir: &Path) -> Option<PathBuf> {
        let plain = !self.name.contains('/') && self.name != "..";
        let path = dir.join(&self.name);
        (plain && fs::metadata(&path).ok()?.len() == self.len).then_some(path)
    }
}
