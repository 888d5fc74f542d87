//! Errors of cgroups: what was tried, what stood in the way, what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::controller::{self, Controller};

/// Error of cgroups. As text: [`CgroupError::found`], then [`CgroupError::remedy`].
#[derive(Debug)]
pub enum CgroupError {
    /// A text that tells how cgroups are set up here could not be read.
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// Cause of the failure.
        cause: io::Error,
    },
    /// The host has no cgroups in sight.
    NotMounted,
    /// Controllers that sessions need cannot be had.
    Controllers(Missing),
    /// Some controllers are on cgroup v1, others on v2.
    Mixed {
        /// Names of the controllers on v1.
        v1: String,
        /// Names of the controllers on v2.
        v2: String,
    },
    /// The kernel refused a change.
    Refused {
        /// Change that was tried, such as ``write `1` to /sys/fs/cgroup/.../cgroup.kill``.
        tried: String,
        /// Answer of the kernel.
        cause: io::Error,
    },
    /// Processes that are not ours to touch are in the way.
    Occupied {
        /// The group they are in.
        dir: PathBuf,
        /// Reason why they are still there.
        reason: &'static str,
    },
    /// Disk I/O cannot be bounded where the overlays are.
    NoDevice {
        /// Folder of the overlays.
        dir: PathBuf,
    },
    /// Disk I/O cannot be bounded on this host.
    NoIo,
}

/// Controllers that cannot be had, and where they were looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Names of the controllers.
    pub(super) names: String,
    /// Where they are missing.
    pub(super) place: MissingIn,
}

/// Where controllers are missing; each calls for another remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MissingIn {
    /// The kernel was told to do without, by this word of its command line.
    Boot { word: String },
    /// No cgroup v1 hierarchy has them.
    V1,
    /// The root of cgroup v2 does not have them.
    V2,
    /// A delegated unit's group was not given them.
    Unit { group: PathBuf },
    /// A container's group was not given them.
    Container { group: PathBuf },
}

impl Missing {
    pub(super) fn new(controllers: &[Controller], place: MissingIn) -> Self {
        Self { names: controller::list(controllers), place }
    }
}

impl CgroupError {
    /// Returns what was tried, and what stood in the way.
    pub fn found(&self) -> String {
        match self {
            Self::Unreadable { path, cause } => {
                format!("cannot read {}: {cause}", path.display())
            }
            Self::NotMounted => "no cgroup file system is mounted".into(),
            Self::Controllers(Missing { names, place }) => match place {
                MissingIn::Boot { word } => {
                    format!("the kernel was booted with {word}, and sessions need {names}")
                }
                MissingIn::V1 => {
                    format!("no cgroup v1 hierarchy with the controllers {names} is mounted")
                }
                MissingIn::V2 => {
                    format!("this kernel's cgroup v2 does not have the controllers {names}")
                }
                MissingIn::Unit { group } => {
                    format!(
                        "the unit of {} was not delegated the controllers {names}",
                        group.display()
                    )
                }
                MissingIn::Container { group } => {
                    format!(
                        "this container's cgroup {} was not given the controllers {names}",
                        group.display()
                    )
                }
            },
            Self::Mixed { v1, v2 } => {
                format!(
                    "controllers are split between cgroup v1 ({v1}) and v2 ({v2}), and sessions need all on one"
                )
            }
            Self::Refused { tried, cause } => format!("cannot {tried}: {cause}"),
            Self::Occupied { dir, reason } => {
                format!("processes are left in cgroup {}: {reason}", dir.display())
            }
            Self::NoDevice { dir } => {
                format!(
                    "{} is on a file system without a device, on which I/O cannot be bounded",
                    dir.display()
                )
            }
            Self::NoIo => {
                "this host has no io (v2) or blkio (v1) controller to bound I/O with".into()
            }
        }
    }

    /// Returns what to do about it.
    pub fn remedy(&self) -> String {
        const PRIVILEGED: &str = "run as root, in a container with --privileged";
        match self {
            Self::Unreadable { path, .. } if path.starts_with("/proc") => {
                "mount /proc (mount -t proc none /proc), and run as root".into()
            }
            Self::Unreadable { .. } => "run as root; see `dmesg`".into(),
            Self::NotMounted => {
                format!("mount -t cgroup2 none /sys/fs/cgroup; {PRIVILEGED}")
            }
            Self::Controllers(Missing { names, place }) => match place {
                MissingIn::Boot { word } => format!("boot without {word}"),
                MissingIn::V1 => "boot with systemd.unified_cgroup_hierarchy=1, or mount the missing ones".into(),
                MissingIn::V2 => format!("use a kernel that was built with {names} for cgroups, as Debian's are"),
                MissingIn::Unit { .. } => "write Delegate=yes into the unit, not a list of controllers".into(),
                MissingIn::Container { .. } => "have its manager delegate them; run it with --privileged".into(),
            },
            Self::Mixed { .. } => "boot with systemd.unified_cgroup_hierarchy=1 and without mounts of cgroup v1".into(),
            Self::Refused { cause, .. } => match cause.raw_os_error() {
                Some(libc::EROFS) => {
                    "cgroups are mounted read-only: run the container with --privileged, or remount them rw".into()
                }
                Some(libc::EACCES | libc::EPERM) => PRIVILEGED.into(),
                Some(libc::EBUSY) => "something else uses the group: see its cgroup.procs".into(),
                Some(libc::EOPNOTSUPP) => "a group above is threaded: see its cgroup.type".into(),
                Some(libc::ENOSPC | libc::EAGAIN) => {
                    "see cgroup.max.descendants and cgroup.max.depth of the groups above".into()
                }
                Some(libc::ENOENT | libc::ENODEV) => "something removed the group, or turned a controller off".into(),
                _ => "see `dmesg`".into(),
            },
            Self::Occupied { .. } => "see its cgroup.procs".into(),
            Self::NoDevice { .. } => "put MAYFLY_HOME on a disk, or do without the bound".into(),
            Self::NoIo => "do without the bound".into(),
        }
    }
}

impl fmt::Display for CgroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.found(), self.remedy())
    }
}

impl std::error::Error for CgroupError {}
