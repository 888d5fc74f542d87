//! The disk behind a folder.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::CgroupError;

/// The whole disk that holds `dir`, as major and minor number: bounds on partitions are refused by
/// the kernel.
///
/// # Errors
/// [`CgroupError::NoDevice`] for a file system without a device of its own, such as tmpfs.
pub(super) fn of(dir: &Path) -> Result<(u32, u32), CgroupError> {
    let failed = |path: &Path, cause| CgroupError::Unreadable { path: path.to_owned(), cause };
    let device = std::fs::metadata(dir).map_err(|cause| failed(dir, cause))?.dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    if major == 0 {
        return Err(CgroupError::NoDevice { dir: dir.to_owned() });
    }
    let link = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let node = std::fs::canonicalize(&link).map_err(|cause| failed(&link, cause))?;
    let whole = if node.join("partition").exists() { node.join("..") } else { node };
    let numbers = super::file::read(&whole.join("dev"))?;
    let parsed =
        numbers.trim().split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    Ok(parsed.unwrap_or((major, minor)))
}
