//! The group of one session.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::place::{Kind, Place, Version};
use super::unnamed_file::unnamed_file_of;
use super::{CgroupError, Limits, Subject, clear, unnamed_file, v1, v2};

/// A cgroup of ours. Dropping it removes it.
#[derive(Debug)]
pub struct SessionCgroup {
    group: Group,
    subject: Subject,
    /// Whether I/O is bounded.
    io: AtomicBool,
    removed: bool,
}

#[derive(Debug)]
enum Group {
    V1(v1::Group),
    V2(v2::Group),
}

/// The ways into a group; open as long as they are to be used.
#[derive(Debug, Default)]
pub struct Entrance {
    /// Files through which a single-threaded process enters by writing `0`: `tasks` on v1,
    /// `cgroup.procs` on v2.
    pub files: Vec<OwnedFd>,
    /// The group's folder on v2, for a process to be made in it (clone(2), `CLONE_INTO_CGROUP`).
    pub folder: Option<OwnedFd>,
}

impl SessionCgroup {
    /// Makes cgroup `mayfly/<name>` with `limits` for `subject`.
    ///
    /// # Errors
    /// [`CgroupError`] when a controller is missing or refuses; the group is not left behind then.
    pub fn create(name: &str, limits: &Limits, subject: Subject) -> Result<Self, CgroupError> {
        Self::create_at(Place::of_this_process()?, name, limits, subject)
    }

    /// Creates a cgroup as [`SessionCgroup::create`] does, with a file for the disk, without a
    /// name, in the subject's folder: what is written back of it counts for the group. It is made
    /// before the group is bounded, so that nobody waits for a process of a group that gets no
    /// processor. Blocks for about as long as a fork(2).
    ///
    /// # Errors
    /// As there; apart from it, the file cannot be made, for instance on a full disk.
    pub fn create_with_file(
        name: &str,
        limits: &Limits,
        subject: Subject,
    ) -> Result<(Self, io::Result<File>), CgroupError> {
        let this = Self::make_at(Place::of_this_process()?, name, subject)?;
        let file = this.unnamed_file(&this.subject.disk_dir);
        this.bound(limits, false)?;
        Ok((this, file))
    }

    pub(super) fn create_at(
        place: &Place,
        name: &str,
        limits: &Limits,
        subject: Subject,
    ) -> Result<Self, CgroupError> {
        let this = Self::make_at(place, name, subject)?;
        this.bound(limits, false)?;
        Ok(this)
    }

    fn make_at(place: &Place, name: &str, subject: Subject) -> Result<Self, CgroupError> {
        let made = match &place.0 {
            Kind::V1(hierarchies) => v1::Group::make(hierarchies, name).map(Group::V1),
            Kind::V2(parent) => v2::Group::make(parent, name).map(Group::V2),
        };
        let group = made.inspect_err(|_| {
            let _ = clear(&place.folders(name));
        })?;
        Ok(Self { group, subject, io: AtomicBool::new(false), removed: false })
    }

    /// Sets other `limits`, and the full share of the processors; for a standby that becomes
    /// somebody's session.
    ///
    /// # Errors
    /// [`CgroupError`] when the kernel refuses, such as a memory bound below what is in use.
    pub fn set(&self, limits: &Limits) -> Result<(), CgroupError> {
        self.bound(limits, true)
    }

    fn bound(&self, limits: &Limits, again: bool) -> Result<(), CgroupError> {
        match &self.group {
            Group::V1(group) => group.bound(limits, &self.subject, again)?,
            Group::V2(group) => group.bound(limits, &self.subject, again)?,
        }
        let wanted = limits.io_bytes_per_second.is_some();
        if self.io.swap(wanted, Ordering::Relaxed) && !wanted {
            return match &self.group {
                Group::V1(group) => group.lift_io(&self.subject.disk_dir),
                Group::V2(group) => group.lift_io(&self.subject.disk_dir),
            };
        }
        Ok(())
    }

    /// Returns the version in use.
    pub fn version(&self) -> Version {
        match self.group {
            Group::V1(_) => Version::V1,
            Group::V2(_) => Version::V2,
        }
    }

    /// Returns whether the kernel bounds its swap. Where it does not and there is swap, `mayfly
    /// doctor` says so.
    pub fn bounds_swap(&self) -> bool {
        match &self.group {
            Group::V1(group) => group.bounds_swap(),
            Group::V2(group) => group.bounds_swap(),
        }
    }

    /// Returns the ways into the cgroup.
    ///
    /// # Errors
    /// [`CgroupError`] when one cannot be opened.
    pub fn entrance(&self) -> Result<Entrance, CgroupError> {
        let write = |path: PathBuf| opened(&path, OpenOptions::new().write(true));
        match &self.group {
            Group::V1(group) => {
                let files = group.entrances().map(write).collect::<Result<_, _>>()?;
                Ok(Entrance { files, folder: None })
            }
            Group::V2(group) => {
                let mut options = OpenOptions::new();
                options.read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY);
                let folder = opened(group.dir(), &options)?;
                Ok(Entrance {
                    files: vec![write(group.dir().join("cgroup.procs"))?],
                    folder: Some(folder),
                })
            }
        }
    }

    fn unnamed_file(&self, dir: &Path) -> io::Result<File> {
        match &self.group {
            // The kernel does not count the write-back of files there.
            Group::V1(_) => unnamed_file(dir),
            Group::V2(group) => unnamed_file_of(File::open(group.dir())?.as_fd(), dir),
        }
    }

    /// Returns the folders of the cgroup, one for each hierarchy.
    pub fn folders(&self) -> Vec<PathBuf> {
        match &self.group {
            Group::V1(group) => group.dirs().map(Path::to_owned).collect(),
            Group::V2(group) => vec![group.dir().to_owned()],
        }
    }

    /// Kills what still lives in it and removes it. Takes microseconds when nothing does, seconds
    /// at most.
    ///
    /// # Errors
    /// [`CgroupError`] when it cannot be removed.
    pub fn remove(mut self) -> Result<(), CgroupError> {
        self.removed = true;
        clear(&self.folders()).map(drop)
    }
}

fn opened(path: &Path, options: &OpenOptions) -> Result<OwnedFd, CgroupError> {
    options
        .open(path)
        .map(File::into)
        .map_err(|cause| CgroupError::Refused { tried: format!("open {}", path.display()), cause })
}

impl Drop for SessionCgroup {
    /// For a start that was cancelled; its VMM was dropped, and thereby killed, before.
    fn drop(&mut self) {
        if !self.removed
            && let Err(error) = clear(&self.folders())
        {
            tracing::warn!(%error, "left behind");
        }
    }
}

#[cfg(test)]
mod tests;
