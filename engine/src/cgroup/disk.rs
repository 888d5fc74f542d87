//! The disk behind a folder.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::CgroupError;

/// The whole disk that holds `dir`, as major and minor number: bounds on partitions are refused by
/// the kernel.
///
/// # Errors
/// [`CgroupError::NoDevice`] for a file system without a device of its own, such as tmpfs.
pub(super) fn of(dir: &Path) -> Result<(u32, u32), CgroupError> {
    let failed = |source| CgroupError::Unreadable { path: dir.to_owned(), source };
    let device = std::fs::metadata(dir).map_err(failed)?.dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    if major == 0 {
        return Err(CgroupError::NoDevice { dir: dir.to_owned() });
    }
    let node = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).map_err(failed)?;
    let whole = if node.join("partition").exists() { node.join("..") } else { node };
    let numbers = std::fs::read_to_string(whole.join("dev")).map_err(failed)?;
    let parsed = numbers.trim().split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    Ok(parsed.unwrap_or((major, minor)))
}
