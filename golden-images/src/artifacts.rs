//! Boot artifacts: the result of a build and its entry in the cache.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::Cache;
use crate::entry_file::EntryFile;
use crate::kernel::ImageFormat;
use crate::key::BuildKey;
use crate::seal::Seal;

/// A file of the boot artifacts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its length when it was written, in bytes.
    pub len: u64,
    /// blake3 of its content when it was written, holes read as zeros.
    pub blake3: blake3::Hash,
}

/// Everything that a virtual machine needs to boot a golden image for the first time.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BootArtifacts {
    /// Identity of the build; names its cache entry.
    pub key: BuildKey,
    /// Root disk: a raw, sparse ext4 image without a partition table.
    pub base_disk: ArtifactFile,
    /// Kernel image.
    pub kernel: ArtifactFile,
    /// Format of the kernel image.
    pub kernel_format: ImageFormat,
    /// Kernel release, e.g. `6.12.0-cloud-amd64`.
    pub kernel_release: String,
    /// Initramfs (uncompressed cpio).
    pub initramfs: ArtifactFile,
    /// Kernel command line without host-specific parameters; see
    /// [`crate::cmdline::emulation_parameter`].
    pub cmdline: String,
    /// Virtual CPUs of the recipe.
    pub vcpus: u32,
    /// Guest memory of the recipe, in MiB.
    pub memory_mib: u32,
    /// Whether a docker daemon is started in the guest.
    pub docker: bool,
    /// Installed packages as `name=version`, the kernel last.
    pub packages: Vec<String>,
    /// Commands (argument vectors) to run in the booted guest before its snapshot, in order: those
    /// that bring the docker images in, then the recipe's `warm_up`. Each must succeed.
    pub warm_commands: Vec<Vec<String>>,
}

/// Returns the directory of a build's cache entry; `cache_dir` is what [`crate::Builder::new`] was
/// given.
pub fn artifact_dir(cache_dir: &Path, key: &str) -> PathBuf {
    cache_dir.join("rootfs").join(key)
}

/// Finds the artifacts of a finished build by its key, as [`BuildKey`] prints it; `cache_dir` and `seal`
/// are what [`crate::Builder::new`] was given. `None` when there is no such build, its record does
/// not carry this seal, or a file of it does not have the length it was written with. Whoever boots
/// a file must check its content.
pub fn find_artifacts(cache_dir: &Path, key: &str, seal: &dyn Seal) -> Option<BootArtifacts> {
    Cache::new(cache_dir.to_owned()).find(BuildKey::from_hex(key)?, seal).ok()
}

/// What is written to an entry, beside the files themselves.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub key: String,
    pub base_disk: EntryFile,
    pub kernel: EntryFile,
    pub kernel_format: ImageFormat,
    pub kernel_release: String,
    pub initramfs: EntryFile,
    pub cmdline: String,
    pub vcpus: u32,
    pub memory_mib: u32,
    pub docker: bool,
    pub packages: Vec<String>,
    pub warm_commands: Vec<Vec<String>>,
    /// The seal's note over all of the above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Record {
    /// The record with its note.
    pub fn sealed(mut self, seal: &dyn Seal) -> serde_json::Result<Self> {
        self.note = None;
        self.note = Some(seal.note(&self.text()?).to_hex().to_string());
        Ok(self)
    }

    /// What the note is over: no other use of a key has such a text.
    fn text(&self) -> serde_json::Result<String> {
        Ok(format!("boot artifacts {}", serde_json::to_string(self)?))
    }

    /// Opens the artifacts of the complete entry in `dir`; what is wrong with it when the record does not
    /// belong to `key`, was not written under this seal, or a file has not the length it was
    /// written with.
    pub fn open(
        mut self,
        key: BuildKey,
        dir: &Path,
        seal: &dyn Seal,
    ) -> Result<BootArtifacts, &'static str> {
        let note = self.note.take().ok_or("has no seal")?;
        let note = blake3::Hash::from_hex(note).map_err(|_| "has no seal")?;
        // blake3's own comparison takes constant time.
        if seal.note(&self.text().map_err(|_| "cannot be read")?) != note {
            return Err("does not carry this host's seal");
        }
        if self.key != key.to_string() {
            return Err("belongs to another build");
        }
        let find =
            |file: &EntryFile| file.find(dir).ok_or("lacks a file, or one has another length");
        Ok(BootArtifacts {
            key,
            base_disk: find(&self.base_disk)?,
            kernel: find(&self.kernel)?,
            kernel_format: self.kernel_format,
            kernel_release: self.kernel_release,
            initramfs: find(&self.initramfs)?,
            cmdline: self.cmdline,
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            docker: self.docker,
            packages: self.packages,
            warm_commands: self.warm_commands,
        })
    }
}
