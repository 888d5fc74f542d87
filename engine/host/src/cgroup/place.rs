//! Place of our groups in the hierarchy.
//!
//! On v1: at the root of each hierarchy. On v2 the hierarchy may have an owner, whose groups are
//! its own business (<https://systemd.io/CGROUP_DELEGATION>), so that it depends on how we were
//! started:
//!
//! - in a unit that its service manager has delegated: below that unit's group, and nothing above
//!   it is touched;
//! - in a cgroup namespace, such as a container's: below its root;
//! - else, such as from a login shell: at the root of the hierarchy.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::controller::Controller;
use super::file;
use super::mounts::{self, Hierarchies, Mount, Mounts};
use super::{CgroupError, ROOT};

/// A version of cgroups (cgroups(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Version 1: one hierarchy for each controller, or for some together.
    V1,
    /// Version 2: one hierarchy.
    V2,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}

/// Place at which this process has its cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place(pub(super) Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Hierarchies, with those of our controllers that each has.
    V1(Vec<(Mount, Vec<Controller>)>),
    V2(Parent),
}

/// The group on v2 that ours is to be in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parent {
    pub mount: Mount,
    /// Folder of the group.
    pub dir: PathBuf,
    pub owner: Owner,
}

/// Who decides about a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    /// The host: it is the root of the hierarchy, the only group that may have processes beside
    /// groups with controllers.
    Host,
    /// Whoever runs in this cgroup namespace.
    Namespace,
    /// A unit, to which it was delegated.
    Unit,
}

/// What is known of the group that this process is in.
pub(super) struct Own<'a> {
    /// Group as `/proc/self/cgroup` names it.
    pub group: &'a Path,
    /// Whether a service manager has marked the group in a folder as delegated.
    pub is_delegated: &'a dyn Fn(&Path) -> bool,
    /// Whether the root that this process sees is the host's.
    pub root_is_the_hosts: bool,
}

/// Limitation of a process that runs in a service that was not delegated its group, so that
/// sessions are outside of what the service manager accounts to it, bounds and stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limitation {
    service: String,
}

impl Limitation {
    /// Describes the limitation.
    pub fn found(&self) -> String {
        format!(
            "{} has no Delegate=yes: sessions are outside of it, at the root of the cgroups",
            self.service
        )
    }

    /// Returns what to do about it.
    pub fn remedy(&self) -> String {
        "write Delegate=yes into the unit, or start mayfly by `systemd-run --scope -p Delegate=yes`"
            .into()
    }
}

impl std::fmt::Display for Limitation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; {}", self.found(), self.remedy())
    }
}

impl Parent {
    /// Decides for a group of the hierarchy at `mount`.
    pub fn choose(mount: Mount, own: &Own<'_>) -> Self {
        let dir = mount.folder(own.group);
        let above =
            dir.iter().flat_map(|dir| dir.ancestors().take_while(|dir| *dir != mount.point));
        // The nearest. What the manager of a user's units was delegated is not ours.
        let unit = above.into_iter().find(|dir| (own.is_delegated)(dir) && !is_user_manager(dir));
        if let Some(dir) = unit.map(Path::to_owned) {
            Self { mount, dir, owner: Owner::Unit }
        } else {
            let owner = if own.root_is_the_hosts { Owner::Host } else { Owner::Namespace };
            Self { dir: mount.point.clone(), mount, owner }
        }
    }
}

/// `user@UID.service`, which systemd delegates to the service manager of that user
/// (systemd.special(7)).
fn is_user_manager(dir: &Path) -> bool {
    let name = dir.file_name().unwrap_or_default().as_bytes();
    name.starts_with(b"user@") && name.ends_with(b".service")
}

/// The service in which a group is, when the nearest unit is one.
fn service_of(group: &Path) -> Option<String> {
    let names = group.iter().map(|part| part.to_string_lossy());
    let unit = names.rev().find(|name| name.ends_with(".service") || name.ends_with(".scope"))?;
    unit.ends_with(".service").then(|| unit.into_owned())
}

impl Place {
    /// Finds the place of this process; once.
    ///
    /// # Errors
    /// [`CgroupError`] when this host has no cgroups that can be used.
    pub fn of_this_process() -> Result<&'static Self, CgroupError> {
        static PLACE: OnceLock<Place> = OnceLock::new();
        if let Some(place) = PLACE.get() {
            Ok(place)
        } else {
            let found = Self::find()?;
            Ok(PLACE.get_or_init(|| found))
        }
    }

    fn find() -> Result<Self, CgroupError> {
        let mounts = Mounts::parse(&file::read(Path::new("/proc/self/mountinfo"))?);
        let controllers = match mounts.v2() {
            Some(mount) => file::read(&mount.point.join("cgroup.controllers"))?,
            None => String::new(),
        };
        let command_line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let mount = match mounts.choose(&controllers, &command_line)? {
            Hierarchies::V1(hierarchies) => return Ok(Self(Kind::V1(hierarchies))),
            Hierarchies::V2(mount) => mount,
        };
        let text = file::read(Path::new("/proc/self/cgroup"))?;
        let group = mounts::group(&text, None).unwrap_or_else(|| "/".into());
        // Every group but the hierarchy's root has a type.
        let root_is_the_hosts = !mount.point.join("cgroup.type").exists();
        let own = Own { group: &group, is_delegated: &is_delegated, root_is_the_hosts };
        Ok(Self(Kind::V2(Parent::choose(mount, &own))))
    }

    /// Returns the version in use.
    pub fn version(&self) -> Version {
        match self.0 {
            Kind::V1(_) => Version::V1,
            Kind::V2(_) => Version::V2,
        }
    }

    /// Returns the folders of `mayfly/<name>`, one for each hierarchy, whether they exist or not.
    /// An empty name means our root.
    pub fn folders(&self, name: &str) -> Vec<PathBuf> {
        let below =
            |dir: &Path| if name.is_empty() { dir.join(ROOT) } else { dir.join(ROOT).join(name) };
        match &self.0 {
            Kind::V1(hierarchies) => {
                hierarchies.iter().map(|(mount, _)| below(&mount.point)).collect()
            }
            Kind::V2(parent) => vec![below(&parent.dir)],
        }
    }

    /// Returns the folder of a process's group for a controller, by its name of v2.
    ///
    /// # Errors
    /// When its `/proc/PID/cgroup` cannot be read, or names no such group.
    pub fn folder_of(&self, pid: u32, controller: &str) -> std::io::Result<PathBuf> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let found = match &self.0 {
            Kind::V1(hierarchies) => hierarchies.iter().find_map(|(mount, has)| {
                let controller = has.iter().copied().find(|c| c.v2_name() == controller)?;
                mount.folder(&mounts::group(&text, Some(controller))?)
            }),
            Kind::V2(parent) => {
                mounts::group(&text, None).and_then(|group| parent.mount.folder(&group))
            }
        };
        found.ok_or_else(|| {
            let reason =
                format!("no group of process {pid} is to be seen for controller {controller}");
            std::io::Error::new(std::io::ErrorKind::NotFound, reason)
        })
    }

    /// Returns the folders of this process's own group for a controller and of those above it, the
    /// nearest first, as far as they are to be seen.
    pub fn lineage(&self, controller: &str) -> Vec<PathBuf> {
        let Ok(own) = self.folder_of(std::process::id(), controller) else { return Vec::new() };
        let points: Vec<&Path> = match &self.0 {
            Kind::V1(hierarchies) => {
                hierarchies.iter().map(|(mount, _)| mount.point.as_path()).collect()
            }
            Kind::V2(parent) => vec![parent.mount.point.as_path()],
        };
        let seen =
            own.ancestors().take_while(|dir| points.iter().any(|point| dir.starts_with(point)));
        seen.map(Path::to_owned).collect()
    }

    /// Returns what is not as it should be about this place, though sessions run.
    pub fn limitation(&self) -> Option<Limitation> {
        match &self.0 {
            Kind::V2(Parent { owner: Owner::Host | Owner::Namespace, .. }) => {
                let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
                service_of(&mounts::group(&text, None)?).map(|service| Limitation { service })
            }
            _ => None,
        }
    }
}

/// Whether a service manager has delegated the group in a folder: systemd sets these attributes to
/// `1` then (<https://systemd.io/CGROUP_DELEGATION>); kernels before 5.6 and containers have only
/// one of them.
fn is_delegated(dir: &Path) -> bool {
    let Ok(path) = CString::new(dir.as_os_str().as_bytes()) else { return false };
    [c"trusted.delegate", c"user.delegate"].into_iter().any(|name| {
        let mut value = [0_u8; 8];
        // SAFETY: both strings are NUL-terminated and outlive the call, which writes at most as
        // much as it is told.
        let length = unsafe {
            libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
        };
        length == 1 && value[0] == b'1'
    })
}

#[cfg(test)]
mod tests;
