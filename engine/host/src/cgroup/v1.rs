//! A group in the hierarchies of cgroup v1 (kernel `Documentation/admin-guide/cgroup-v1/`).

use std::path::{Path, PathBuf};

use super::controller::Controller;
use super::limits::{CPU_PERIOD_US, Limits, Subject};
use super::mounts::Mount;
use super::{CgroupError, ROOT, disk, file};

/// Processor weight of a session and of background work: `cpu.shares`, default 1024.
const SHARES: (u64, u64) = (1024, 64);

/// The folders of one group.
#[derive(Debug)]
pub(super) struct Group {
    /// One for each hierarchy, with those of our controllers that it has.
    folders: Vec<(PathBuf, Vec<Controller>)>,
}

impl Group {
    /// Makes group `mayfly/<name>`.
    pub fn make(hierarchies: &[(Mount, Vec<Controller>)], name: &str) -> Result<Self, CgroupError> {
        let folder = |(mount, has): &(Mount, Vec<Controller>)| {
            (mount.point.join(ROOT).join(name), has.clone())
        };
        let this = Self { folders: hierarchies.iter().map(folder).collect() };
        for dir in this.dirs() {
            std::fs::create_dir_all(dir).map_err(|cause| CgroupError::Refused {
                tried: format!("make cgroup {}", dir.display()),
                cause,
            })?;
        }
        Ok(this)
    }

    pub fn dirs(&self) -> impl Iterator<Item = &Path> {
        self.folders.iter().map(|(dir, _)| dir.as_path())
    }

    fn of(&self, controller: Controller) -> Option<&Path> {
        self.folders.iter().find(|(_, has)| has.contains(&controller)).map(|(dir, _)| dir.as_path())
    }

    /// A file of a controller that every host has.
    fn file(&self, controller: Controller, name: &str) -> PathBuf {
        self.of(controller).unwrap_or(Path::new("")).join(name)
    }

    /// Returns whether the kernel bounds swap for each group.
    pub fn bounds_swap(&self) -> bool {
        self.file(Controller::Memory, "memory.memsw.limit_in_bytes").exists()
    }

    /// Returns the files through which a single-threaded process enters it.
    pub fn entrances(&self) -> impl Iterator<Item = PathBuf> {
        self.dirs().map(|dir| dir.join("tasks"))
    }

    /// Sets the bounds. `again` lifts those that are not wanted any more.
    pub fn bound(
        &self,
        limits: &Limits,
        subject: &Subject,
        again: bool,
    ) -> Result<(), CgroupError> {
        self.bound_memory(limits.memory(subject))?;
        file::write(&self.file(Controller::Pids, "pids.max"), limits.threads)?;
        self.bound_cpu(limits, again)?;
        match limits.io_bytes_per_second {
            Some(rate) => self.bound_io(rate, &subject.disk_dir),
            None => Ok(()),
        }
    }

    fn bound_memory(&self, bytes: u64) -> Result<(), CgroupError> {
        // The kernel bounds memory and swap together, and refuses a bound on memory above that one:
        // lift it first. In the end they are the same, for what a guest touches has to fit into its
        // memory bound without swap.
        let with_swap = self.file(Controller::Memory, "memory.memsw.limit_in_bytes");
        let bounds_swap = file::write_if_there(&with_swap, -1)?;
        file::write(&self.file(Controller::Memory, "memory.limit_in_bytes"), bytes)?;
        if bounds_swap { file::write(&with_swap, bytes) } else { Ok(()) }
    }

    fn bound_cpu(&self, limits: &Limits, again: bool) -> Result<(), CgroupError> {
        super::v2::weigh(
            &self.file(Controller::Cpu, "cpu.idle"),
            &self.file(Controller::Cpu, "cpu.shares"),
            SHARES,
            limits.background,
        )?;
        let quota = self.file(Controller::Cpu, "cpu.cfs_quota_us");
        match limits.cpu_quota() {
            Some(microseconds) => {
                file::write(&self.file(Controller::Cpu, "cpu.cfs_period_us"), CPU_PERIOD_US)?;
                file::write(&quota, microseconds)
            }
            None if again => file::write(&quota, -1),
            None => Ok(()),
        }
    }

    fn bound_io(&self, rate: u64, dir: &Path) -> Result<(), CgroupError> {
        let folder = self.of(Controller::Io).ok_or(CgroupError::NoIo)?;
        let (major, minor) = disk::of(dir)?;
        for name in ["blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device"] {
            file::write(&folder.join(name), format_args!("{major}:{minor} {rate}"))?;
        }
        Ok(())
    }

    /// Lifts the bounds on I/O that a call of [`Group::bound`] set for the disk of `dir`.
    pub fn lift_io(&self, dir: &Path) -> Result<(), CgroupError> {
        self.bound_io(0, dir)
    }
}
