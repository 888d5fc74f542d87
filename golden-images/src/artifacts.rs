//! Boot artifacts: the result of a build and its entry in the cache.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::Cache;
use crate::entry_file::EntryFile;
use crate::kernel::ImageFormat;
use crate::key::BuildKey;

/// Everything that a virtual machine needs to boot a golden image for the first time.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BootArtifacts {
    /// Identity of the build; names its cache entry.
    pub key: BuildKey,
    /// Root disk: a raw, sparse ext4 image without a partition table.
    pub base_disk: PathBuf,
    /// Kernel image.
    pub kernel: PathBuf,
    /// Format of the kernel image.
    pub kernel_format: ImageFormat,
    /// Kernel release, e.g. `6.12.0-cloud-amd64`.
    pub kernel_release: String,
    /// blake3 of the kernel image.
    pub kernel_blake3: blake3::Hash,
    /// Initramfs (uncompressed cpio).
    pub initramfs: PathBuf,
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

/// Finds the artifacts of a finished build by its key, as [`BuildKey`] prints it; `cache_dir` is
/// what [`crate::Builder::new`] was given. `None` when there is no such build, or a file of it does
/// not have the length it was written with.
pub fn find_artifacts(cache_dir: &Path, key: &str) -> Option<BootArtifacts> {
    Cache::new(cache_dir.to_owned()).find(BuildKey::from_hex(key)?)
}

/// What is written to an entry, beside the files themselves.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub key: String,
    pub base_disk: EntryFile,
    pub kernel: EntryFile,
    pub kernel_format: ImageFormat,
    pub kernel_release: String,
    pub kernel_blake3: String,
    pub initramfs: EntryFile,
    pub cmdline: String,
    pub vcpus: u32,
    pub memory_mib: u32,
    pub docker: bool,
    pub packages: Vec<String>,
    pub warm_commands: Vec<Vec<String>>,
}

impl Record {
    /// Opens the artifacts of the complete entry in `dir`; `None` when the record does not belong
    /// to `key` or a file is not as it was written.
    pub fn open(self, key: BuildKey, dir: &Path) -> Option<BootArtifacts> {
        if self.key != key.to_string() {
            return None;
        }
        Some(BootArtifacts {
            key,
            base_disk: self.base_disk.check(dir)?,
            kernel: self.kernel.check(dir)?,
            kernel_format: self.kernel_format,
            kernel_release: self.kernel_release,
            kernel_blake3: blake3::Hash::from_hex(&self.kernel_blake3).ok()?,
            initramfs: self.initramfs.check(dir)?,
            cmdline: self.cmdline,
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            docker: self.docker,
            packages: self.packages,
            warm_commands: self.warm_commands,
        })
    }
}
