//! A group of cgroup v2 (kernel `Documentation/admin-guide/cgroup-v2.rst`).

use std::path::{Path, PathBuf};

use super::limits::{CPU_PERIOD_US, Limits, Subject};
use super::place::Parent;
use super::{CgroupError, ROOT, disk, file};

/// Processor weight of a session and of background work: `cpu.weight`, default 100.
const WEIGHT: (u64, u64) = (100, 6);
/// Files that the required controllers give a group.
const FILES: [&str; 3] = ["memory.max", "pids.max", "cpu.max"];

/// The folder of one group.
#[derive(Debug)]
pub(super) struct Group {
    dir: PathBuf,
}

impl Group {
    /// Makes group `mayfly/<name>` below `parent`, and turns controllers on above it where they are
    /// not.
    pub fn make(parent: &Parent, name: &str) -> Result<Self, CgroupError> {
        let root = parent.dir.join(ROOT);
        let dir = root.join(name);
        // The root of our groups stays, so it is made only where there are controllers for it.
        if !root.exists() {
            super::Place(super::place::Kind::V2(parent.clone())).prepare()?;
        }
        std::fs::create_dir_all(&dir).map_err(|cause| CgroupError::Refused {
            tried: format!("make cgroup {}", dir.display()),
            cause,
        })?;
        let this = Self { dir };
        if !this.has_controllers() {
            super::Place(super::place::Kind::V2(parent.clone())).prepare()?;
            for inner in this
                .dir
                .ancestors()
                .skip(1)
                .take_while(|dir| *dir != root)
                .collect::<Vec<_>>()
                .iter()
                .rev()
            {
                parent.hand_down(inner)?;
            }
        }
        Ok(this)
    }

    fn has_controllers(&self) -> bool {
        FILES.iter().all(|name| self.dir.join(name).exists())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns whether the kernel bounds swap for each group.
    pub fn bounds_swap(&self) -> bool {
        self.dir.join("memory.swap.max").exists()
    }

    /// Sets the bounds. `again` lifts those that are not wanted any more.
    pub fn bound(
        &self,
        limits: &Limits,
        subject: &Subject,
        again: bool,
    ) -> Result<(), CgroupError> {
        let file = |name: &str| self.dir.join(name);
        file::write(&file("memory.max"), limits.memory(subject))?;
        // What a guest touches has to fit into its memory bound. The file is there unless booted
        // with swapaccount=0.
        file::write_if_there(&file("memory.swap.max"), 0)?;
        // A VMM is one thing: a part of it is of no use.
        file::write_if_there(&file("memory.oom.group"), 1)?;
        file::write(&file("pids.max"), limits.threads)?;
        weigh(&file("cpu.idle"), &file("cpu.weight"), WEIGHT, limits.background)?;
        match limits.cpu_quota() {
            Some(quota) => file::write(&file("cpu.max"), format_args!("{quota} {CPU_PERIOD_US}"))?,
            None if again => file::write(&file("cpu.max"), "max")?,
            None => {}
        }
        match limits.io_bytes_per_second {
            Some(rate) => self.bound_io(&rate.to_string(), &subject.disk_dir),
            None => Ok(()),
        }
    }

    fn bound_io(&self, rate: &str, dir: &Path) -> Result<(), CgroupError> {
        let file = self.dir.join("io.max");
        if !file.exists() {
            return Err(CgroupError::NoIo);
        }
        let (major, minor) = disk::of(dir)?;
        file::write(&file, format_args!("{major}:{minor} rbps={rate} wbps={rate}"))
    }

    /// Lifts the bounds on I/O that a call of [`Group::bound`] set for the disk of `dir`.
    pub fn lift_io(&self, dir: &Path) -> Result<(), CgroupError> {
        self.bound_io("max", dir)
    }
}

/// Sets the processor weight of a group: `weights` of a session and of background work. Where the
/// kernel has `cpu.idle` (Linux 5.15, the same on v1) background work runs only when its siblings
/// leave a processor over, and leaves it at once when one of them wakes up. An idle group takes no
/// weight.
pub(super) fn weigh(
    idle: &Path,
    weight: &Path,
    weights: (u64, u64),
    background: bool,
) -> Result<(), CgroupError> {
    let has_idle = file::write_if_there(idle, u8::from(background))?;
    match (background, has_idle) {
        (true, true) => Ok(()),
        (true, false) => file::write(weight, weights.1),
        (false, _) => file::write(weight, weights.0),
    }
}
