//! A session's writable disk: an anonymous qcow2 file on top of the golden's layers.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use mayfly_host::cgroup::unnamed_file;

/// Error of an overlay.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// `qemu-img` is missing or failed.
    #[error("cannot create an empty disk overlay: {reason}")]
    Template {
        /// Last words of the program.
        reason: String,
    },
    /// The overlay file could not be written.
    #[error("cannot write a session's disk overlay in {dir}: {cause}")]
    Write {
        /// The folder it was to be in.
        dir: PathBuf,
        /// Cause of the failure.
        cause: io::Error,
    },
    /// The file system keeps quotas, and refuses one.
    #[error("cannot give a session's disk overlay in {dir} a project quota: {cause}")]
    Quota {
        /// The folder it is in.
        dir: PathBuf,
        /// The cause.
        cause: io::Error,
    },
}

/// An empty qcow2 image without backing file, from which overlays are copied. What backs an overlay
/// is decided by the VMM's command line alone.
#[derive(Debug, Clone)]
pub struct OverlayTemplate {
    /// The parts that are not zero: offset and bytes.
    parts: Vec<(u64, Vec<u8>)>,
    len: u64,
    virtual_size: u64,
}

const BLOCK: usize = 4096;

impl OverlayTemplate {
    /// Creates an empty image for a disk of `virtual_size` bytes, made by `qemu-img`.
    ///
    /// # Errors
    /// [`OverlayError::Template`].
    pub fn new(virtual_size: u64) -> Result<Self, OverlayError> {
        let failed = |reason: String| OverlayError::Template { reason };
        let dir = tempfile::tempdir().map_err(|e| failed(e.to_string()))?;
        let path = dir.path().join("empty.qcow2");
        let output = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-o", "cluster_size=65536,lazy_refcounts=on"])
            .arg(&path)
            .arg(virtual_size.to_string())
            .output()
            .map_err(|e| {
                failed(format!("cannot run qemu-img ({e}): install the package qemu-utils"))
            })?;
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let bytes = std::fs::read(&path).map_err(|e| failed(e.to_string()))?;
        let parts = bytes
            .chunks(BLOCK)
            .enumerate()
            .filter(|(_, block)| block.iter().any(|b| *b != 0))
            .map(|(at, block)| ((at * BLOCK) as u64, block.to_vec()))
            .collect();
        Ok(Self { parts, len: bytes.len() as u64, virtual_size })
    }

    /// Returns the size of the disk, in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// Creates a new empty overlay in `dir`, without a name.
    ///
    /// # Errors
    /// [`OverlayError::Write`], for instance on a full disk.
    pub fn instantiate(&self, dir: &Path) -> Result<OwnedFd, OverlayError> {
        let file = unnamed_file(dir)
            .map_err(|cause| OverlayError::Write { dir: dir.to_owned(), cause })?;
        self.fill(file, dir)
    }

    /// Makes a new file, which is in `dir`, an empty overlay.
    ///
    /// # Errors
    /// As [`OverlayTemplate::instantiate`].
    pub(super) fn fill(&self, file: File, dir: &Path) -> Result<OwnedFd, OverlayError> {
        let write = || {
            file.set_len(self.len)?;
            for (offset, bytes) in &self.parts {
                file.write_all_at(bytes, *offset)?;
            }
            Ok(OwnedFd::from(file))
        };
        write().map_err(|cause| OverlayError::Write { dir: dir.to_owned(), cause })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn overlays_are_equal_to_the_template_and_have_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let template = OverlayTemplate::new(1 << 30).unwrap();
        let fd = template.instantiate(dir.path()).unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
        let output =
            Command::new("qemu-img").args(["info", "-U", "--output=json", &path]).output().unwrap();
        let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(info["virtual-size"], 1 << 30);
        assert!(info.get("backing-filename").is_none());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let template = OverlayTemplate::new(1 << 20).unwrap();
        let error = template.instantiate(Path::new("/no/such/folder")).unwrap_err().to_string();
        assert!(error.contains("/no/such/folder"), "{error}");
    }
}
