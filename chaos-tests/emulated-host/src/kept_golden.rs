//! Disks with the golden image of an earlier run, so that a case can be tried again without
//! building it anew.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::case::INSTALL;
use crate::distribution::Platform;
use crate::error::{Error, IoContext as _};
use crate::payload::Programs;

/// Place of a golden's disk that was made by these very programs, with these very boot artifacts, on
/// this very image.
#[derive(Debug)]
pub struct KeptGolden {
    folder: PathBuf,
    platform: Platform,
    path: PathBuf,
}

impl KeptGolden {
    /// Creates the place below `hosts`, for an image with this key, and for goldens that are bound to
    /// `binding` (see [`Payload`](crate::payload::Payload)).
    ///
    /// # Errors
    /// A program cannot be read.
    pub fn new(
        hosts: &Path,
        platform: Platform,
        image: &str,
        programs: &Programs,
        binding: blake3::Hash,
    ) -> Result<Self, Error> {
        let mut digest = blake3::Hasher::new();
        digest.update(image.as_bytes()).update(INSTALL.as_bytes()).update(binding.as_bytes());
        for program in programs.installed() {
            let file = File::open(&program).context("open", &program)?;
            let mut inner = blake3::Hasher::new();
            inner.update_reader(file).context("read", &program)?;
            digest.update(inner.finalize().as_bytes());
        }
        let folder = hosts.join("goldens");
        let path = folder.join(format!("{platform}-{}.qcow2", digest.finalize().to_hex()));
        Ok(Self { folder, platform, path })
    }

    /// Finds the disk, when there is one.
    pub fn find(&self) -> Option<PathBuf> {
        self.path.exists().then(|| self.path.clone())
    }

    /// Keeps a copy of `disk`, in the place of all others of its platform.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&self, disk: &Path) -> Result<(), Error> {
        fs::create_dir_all(&self.folder).context("create", &self.folder)?;
        let own = format!("{}-", self.platform);
        for entry in fs::read_dir(&self.folder).context("read", &self.folder)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // What is left after the platform's name is a digest; `debian12-` begins another's,
            // too.
            if name.strip_prefix(&own).is_some_and(|rest| !rest.contains('-')) {
                fs::remove_file(entry.path()).context("remove", &entry.path())?;
            }
        }
        let part = self.path.with_extension("part");
        let copied = Command::new("cp").arg("--sparse=always").args([disk, &part]).status();
        if !copied.context("start", "cp".as_ref())?.success() {
            return Err(Error::Disk { path: part, detail: "cp failed".to_owned() });
        }
        File::open(&part).and_then(|file| file.sync_all()).context("write", &part)?;
        fs::rename(&part, &self.path).context("write", &self.path)
    }
}
