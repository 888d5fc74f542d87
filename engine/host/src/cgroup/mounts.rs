//! Versions and mounts of cgroups on a host, from the texts of `/proc/self/mountinfo`
//! (proc_pid_mountinfo(5)) and `/proc/PID/cgroup` (cgroups(7)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::CgroupError;
use super::controller::{ALL, Controller, REQUIRED, disabled_in, list, missing_of};
use super::error::{Missing, MissingIn};

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Folder on which it is mounted.
    pub point: PathBuf,
    /// The group that is to be seen there, as `/proc/PID/cgroup` would name it.
    pub root: PathBuf,
}

impl Mount {
    /// Returns the folder of the group that `/proc/PID/cgroup` names. `None` when it is not to be
    /// seen here.
    pub fn folder(&self, group: &Path) -> Option<PathBuf> {
        let below = group.strip_prefix(&self.root).ok()?;
        let upward = below.components().any(|part| part == std::path::Component::ParentDir);
        (!upward).then(|| self.point.join(below))
    }
}

/// All mounted hierarchies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Mounts {
    /// Each with those of our controllers that it has.
    v1: Vec<(Mount, Vec<Controller>)>,
    v2: Option<Mount>,
    /// Whether there is a hierarchy of v1 with none of our controllers.
    others: bool,
}

/// The hierarchies with our controllers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hierarchies {
    /// Each with those of our controllers that it has.
    V1(Vec<(Mount, Vec<Controller>)>),
    V2(Mount),
}

impl Mounts {
    /// Reads a text of mountinfo. Of two mounts at one place the later hides the earlier.
    pub fn parse(mountinfo: &str) -> Self {
        let mut mounts: Vec<(Mount, String, String)> = Vec::new();
        for (mount, kind, options) in mountinfo.lines().filter_map(line) {
            mounts.retain(|(earlier, _, _)| earlier.point != mount.point);
            mounts.push((mount, kind, options));
        }
        let mut this = Self::default();
        for (mount, kind, options) in mounts {
            match kind.as_str() {
                "cgroup" => {
                    let has: Vec<Controller> =
                        ALL.into_iter().filter(|c| has(&options, c.v1_name())).collect();
                    this.others |= has.is_empty();
                    // One that is mounted twice is the same.
                    if !has.is_empty() && !this.v1.iter().any(|(_, known)| *known == has) {
                        this.v1.push((mount, has));
                    }
                }
                "cgroup2" if this.v2.is_none() => this.v2 = Some(mount),
                _ => {}
            }
        }
        this
    }

    /// Returns where v2 is mounted.
    pub fn v2(&self) -> Option<&Mount> {
        self.v2.as_ref()
    }

    /// Decides for a version; `v2_controllers` is the text of `cgroup.controllers` in the mount of
    /// v2, which names what no v1 hierarchy has taken; `command_line` is that of the kernel.
    ///
    /// # Errors
    /// [`CgroupError`] when there is no version that has what sessions need.
    pub fn choose(
        self,
        v2_controllers: &str,
        command_line: &str,
    ) -> Result<Hierarchies, CgroupError> {
        let on_v2 = Controller::named_in(v2_controllers);
        let Self { v1, v2, others } = self;
        let on_v1: Vec<Controller> =
            ALL.into_iter().filter(|c| v1.iter().any(|(_, has)| has.contains(c))).collect();
        let needed = |found: &[Controller]| -> Vec<Controller> {
            REQUIRED.into_iter().filter(|controller| found.contains(controller)).collect()
        };
        match (needed(&on_v1), needed(&on_v2), v2) {
            (some, rest, _) if !some.is_empty() && !rest.is_empty() => {
                Err(CgroupError::Mixed { v1: list(&some), v2: list(&rest) })
            }
            (some, _, _) if !some.is_empty() => match missing_of(&some) {
                missing if missing.is_empty() => Ok(Hierarchies::V1(v1)),
                missing => Err(CgroupError::Controllers(on_v1_missing(&missing, command_line))),
            },
            (_, _, Some(mount)) => Ok(Hierarchies::V2(mount)),
            (_, _, None) if v1.is_empty() && !others => Err(CgroupError::NotMounted),
            (_, _, None) => Err(CgroupError::Controllers(on_v1_missing(&REQUIRED, command_line))),
        }
    }
}

fn on_v1_missing(controllers: &[Controller], command_line: &str) -> Missing {
    let word = disabled_in(command_line, controllers);
    Missing::new(controllers, word.map_or(MissingIn::V1, |word| MissingIn::Boot { word }))
}

fn has(options: &str, name: &str) -> bool {
    options.split(',').any(|option| option == name)
}

/// Mount, kind and options of the file system of one line.
fn line(line: &str) -> Option<(Mount, String, String)> {
    // ID parent major:minor root point options [optional fields] - kind source
    // options-of-the-file-system
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, point) = (unescaped(mount.next()?), unescaped(mount.next()?));
    let mut file_system = file_system.split(' ');
    let (kind, _, options) =
        (file_system.next()?, file_system.next()?, file_system.next().unwrap_or_default());
    Some((Mount { point, root }, kind.to_owned(), options.to_owned()))
}

/// A path in which space, tab, newline and backslash are written as `\ooo`.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, more)) = rest.split_first() {
        let octal = more
            .get(..3)
            .filter(|digits| first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        let value = octal.map(|digits| {
            digits.iter().fold(0_u32, |sum, digit| sum * 8 + u32::from(digit - b'0'))
        });
        if let Some(byte) = value.and_then(|value| u8::try_from(value).ok()) {
            bytes.push(byte);
            rest = &more[3..];
        } else {
            bytes.push(first);
            rest = more;
        }
    }
    OsString::from_vec(bytes).into()
}

/// The group that a text of `/proc/PID/cgroup` names for a controller of v1, or for v2 where
/// `None`.
pub(super) fn group(text: &str, v1_controller: Option<Controller>) -> Option<PathBuf> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let meant = match v1_controller {
            Some(controller) => has(controllers, controller.v1_name()),
            None => number == "0" && controllers.is_empty(),
        };
        meant.then(|| PathBuf::from(path.trim_end_matches(" (deleted)")))
    })
}

#[cfg(test)]
mod tests;
