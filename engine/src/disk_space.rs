//! Space of the file system that holds an engine's disk overlays: how much of it VMMs may take, and
//! what keeps them from taking more.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use mayfly_host::project_quota::{self, NoProjectQuota};
use parking_lot::Mutex;

/// Unit of a file's blocks, in bytes (stat(2)).
const BLOCK: u64 = 512;

/// The overlays of one engine, and their file system.
#[derive(Debug)]
pub(crate) struct DiskSpace {
    dir: PathBuf,
    quotas: Result<(), NoProjectQuota>,
    overlays: Mutex<Vec<Weak<Counted>>>,
}

/// How much space there is for overlays, and how much of it is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUsage {
    /// Space of the file system that processes without privileges can use, in bytes.
    pub total_bytes: u64,
    /// What of it is free, in bytes.
    pub available_bytes: u64,
    /// What the overlays of sessions, standbys, zygotes and builds have, in bytes.
    pub written_bytes: u64,
    /// What they may still take, in bytes; may be more than there is.
    pub promised_bytes: u64,
}

/// The overlay of one VMM: its bound, and its part in what is promised. The kernel frees the file
/// when this and the VMM are gone.
#[derive(Debug)]
pub(crate) struct OverlayBound(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    file: File,
    /// Most bytes.
    most: AtomicU64,
    /// Its project, where there are quotas.
    project: Option<u32>,
}

impl DiskSpace {
    /// Looks at the file system of `dir`, which must exist.
    pub fn of(dir: &Path) -> Self {
        let quotas = project_quota::check(dir);
        if let Err(reason) = &quotas {
            tracing::debug!(%reason, "disks are bounded by the size of their files alone");
        }
        Self { dir: dir.to_owned(), quotas, overlays: Mutex::default() }
    }

    /// Why the file system does not bound overlays itself, where it does not.
    pub fn no_quotas(&self) -> Option<&NoProjectQuota> {
        self.quotas.as_ref().err()
    }

    /// Bounds and counts an overlay of the VMM with the user `uid`, which also is the number of its
    /// project: while the one is in use nobody else has the other.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn bound(&self, file: BorrowedFd<'_>, uid: u32, most: u64) -> io::Result<OverlayBound> {
        // Opened again, so that a VMM has no open file in common with anybody.
        let file = mayfly_host::descriptors::open_again(file)?;
        let project = self.quotas.is_ok().then_some(uid);
        let counted = Arc::new(Counted { file, most: AtomicU64::new(most), project });
        if let Some(project) = project {
            project_quota::join(&counted.file, project, most)?;
        }
        let mut overlays = self.overlays.lock();
        overlays.retain(|overlay| overlay.strong_count() > 0);
        overlays.push(Arc::downgrade(&counted));
        Ok(OverlayBound(counted))
    }

    /// Looks at the file system and at all overlays. Makes one system call for each.
    ///
    /// # Errors
    /// The file system cannot be looked at (statvfs(3)).
    pub fn usage(&self) -> io::Result<DiskUsage> {
        let found = nix::sys::statvfs::statvfs(&self.dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
        // What is kept for root is neither used nor to be had, as df(1) counts.
        let used = found.blocks().saturating_sub(found.blocks_free());
        let overlays: Vec<_> = self.overlays.lock().iter().filter_map(Weak::upgrade).collect();
        let (mut written, mut promised) = (0, 0_u64);
        for overlay in overlays {
            let (has, most) = (overlay.written(), overlay.most.load(Ordering::Relaxed));
            written += has;
            promised = promised.saturating_add(most.saturating_sub(has));
        }
        Ok(DiskUsage {
            total_bytes: bytes(used + found.blocks_available()),
            available_bytes: bytes(found.blocks_available()),
            written_bytes: written,
            promised_bytes: promised,
        })
    }
}

impl OverlayBound {
    /// Most bytes that it may have.
    pub fn most(&self) -> u64 {
        self.0.most.load(Ordering::Relaxed)
    }

    /// Sets another bound.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn set(&self, most: u64) -> io::Result<()> {
        if let Some(project) = self.0.project {
            project_quota::limit(&self.0.file, project, most)?;
        }
        self.0.most.store(most, Ordering::Relaxed);
        Ok(())
    }
}

impl Counted {
    fn written(&self) -> u64 {
        self.file.metadata().map_or(0, |found| found.blocks().saturating_mul(BLOCK))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // Before the user id is given to somebody else.
        if let Some(project) = self.project
            && let Err(error) = project_quota::lift(&self.file, project)
        {
            tracing::warn!(%error, project, "the quota of a discarded session stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use mayfly_host::cgroup::unnamed_file;

    use super::*;

    #[test]
    fn what_is_promised_and_not_written_is_told_until_an_overlay_goes() {
        let dir = tempfile::tempdir().unwrap();
        let space = DiskSpace::of(dir.path());
        let none = space.usage().unwrap();
        assert_eq!((none.written_bytes, none.promised_bytes), (0, 0));
        assert!(none.available_bytes > 0 && none.available_bytes <= none.total_bytes, "{none:?}");

        let file = unnamed_file(dir.path()).unwrap();
        let first = space.bound(file.as_fd(), 60_002, 4 << 20).unwrap();
        let other = unnamed_file(dir.path()).unwrap();
        let second = space.bound(other.as_fd(), 60_003, 2 << 20).unwrap();
        assert_eq!(space.usage().unwrap().promised_bytes, 6 << 20);
        file.write_all_at(&vec![1; 1 << 20], 0).unwrap();
        file.sync_all().unwrap();
        let written = space.usage().unwrap();
        assert_eq!(written.written_bytes + written.promised_bytes, 6 << 20);
        assert!(written.written_bytes >= 1 << 20, "{written:?}");
        // One that has more than it may, since the bound was lowered, promises nothing.
        first.set(1 << 19).unwrap();
        assert_eq!(first.most(), 1 << 19);
        assert_eq!(space.usage().unwrap().promised_bytes, 2 << 20);
        drop((first, second));
        let gone = space.usage().unwrap();
        assert_eq!((gone.written_bytes, gone.promised_bytes), (0, 0));
    }
}
