//! Verification and removal of golden images.

use std::sync::atomic::AtomicBool;

use mayfly_host::layout::Layout;
use mayfly_snapshotter::{Digest, Manifest, Progress, SealKey, Store};

use super::error::GoldenError;
use super::load::{base_disk_path, delta_path, label};
use crate::pager_host;

/// Amount that a verification read, and what it found.
#[derive(Debug, Clone, Default)]
pub struct Verified {
    /// Chunks read and hashed.
    pub chunks: u64,
    /// Bytes read and hashed, of chunks and of the base disk.
    pub bytes: u64,
    /// Everything that is not as it should be, one line each.
    pub problems: Vec<String>,
}

/// Reads and hashes everything golden `name` consists of: its chunks and its base disk. Checks its
/// seal.
///
/// # Errors
/// [`GoldenError`] when it is unknown, cannot be read at all, or `cancel` was raised. Damage is no
/// error but in the result.
pub fn verify(
    layout: &Layout,
    name: &str,
    progress: &mut dyn FnMut(Progress),
    cancel: &AtomicBool,
) -> Result<Verified, GoldenError> {
    let store = Store::open_read_only(layout.store())?;
    let manifest = store.manifest(name)?;
    let report = store.verify(name, progress, cancel)?;
    let mut problems: Vec<String> = report.bad.iter().map(ToString::to_string).collect();
    let sealed =
        SealKey::load(layout.seal_key()).and_then(|key| store.with_seal_key(key).sealed(name));
    if let Err(error) = sealed {
        problems.push(error.to_string());
    }
    let base = base_disk_path(layout, &manifest)?;
    if let Err(error) = manifest.base_disk.verify(&base) {
        problems.push(error.to_string());
    }
    Ok(Verified { chunks: report.chunks, bytes: report.bytes + manifest.base_disk.len, problems })
}

/// Removes golden `name` and what only it used. Running sessions keep what they have open. Returns
/// the bytes freed.
///
/// # Errors
/// [`GoldenError`] when it is unknown or the store cannot be written.
pub fn remove(layout: &Layout, name: &str) -> Result<u64, GoldenError> {
    let store = Store::open(layout.store())?;
    let manifest = store.manifest(name);
    let removed = store.remove(name)?;
    let mut freed = removed.freed_bytes;
    if let Ok(manifest) = manifest {
        let others = store.list()?;
        freed += remove_files(layout, &manifest, &others);
        pager_host::forget(layout, &manifest);
    }
    Ok(freed)
}

/// Removes the files outside the store that only `manifest` used and none of `others` does; returns
/// the bytes freed.
pub(super) fn remove_files(layout: &Layout, manifest: &Manifest, others: &[Manifest]) -> u64 {
    let shared =
        |key: &str| others.iter().any(|other| other.labels.get(key) == manifest.labels.get(key));
    let mut freed = 0;
    let blake3 =
        manifest.labels.get(label::DELTA_BLAKE3).and_then(|text| text.parse::<Digest>().ok());
    if let Some(blake3) = blake3.filter(|_| !shared(label::DELTA_BLAKE3)) {
        let path = delta_path(layout, &blake3);
        freed += allocated(&path);
        let _ = std::fs::remove_file(path);
    }
    if let Some(dir) = base_disk_path(layout, manifest).ok().filter(|_| !shared(label::IMAGE)) {
        freed += allocated(&dir);
        if let Some(folder) = dir.parent() {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
    freed
}

fn allocated(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map_or(0, |m| m.blocks() * 512)
}
