//! Makes the place of our groups on v2 ready: controllers enabled on the way down, and no processes
//! in inner groups (`cgroup-v2.rst`, "Top-down Constraint", "No Internal Process Constraint").

use std::io;
use std::path::Path;
use std::time::Duration;

use super::controller::{ALL, Controller, REQUIRED, disabled_in, missing_of};
use super::error::{Missing, MissingIn};
use super::place::{Kind, Owner, Parent, Place};
use super::{CgroupError, ROOT, file};

/// Where processes go that were in a group which is to have groups with controllers; the name that
/// systemd's manual uses with `DelegateSubgroup=` (systemd.resource-control(5)).
const LEAF: &str = "supervisor";
/// Attempts to find a group without processes; some may be forked meanwhile.
const ATTEMPTS: u32 = 100;

impl Place {
    /// Makes sure that sessions can have groups here. On v2 this process, and what else is in a
    /// delegated unit's own group or in the root of a container, may be moved to a group
    /// `supervisor` below it.
    ///
    /// # Errors
    /// [`CgroupError`] when controllers cannot be had; nothing is left behind then.
    pub fn prepare(&self) -> Result<(), CgroupError> {
        match &self.0 {
            Kind::V1(hierarchies) => {
                hierarchies.iter().try_for_each(|(mount, _)| make(&mount.point.join(ROOT)))
            }
            Kind::V2(parent) => {
                let root = parent.dir.join(ROOT);
                parent.check()?;
                parent.hand_down(&parent.dir)?;
                make(&root)?;
                parent.hand_down(&root).inspect_err(|_| {
                    let _ = std::fs::remove_dir(&root);
                })
            }
        }
    }
}

impl Place {
    /// Prepares as [`Place::prepare`] does, and makes `mayfly/<engine>`, so that what an engine
    /// cannot have is known when it starts.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn prepare_for(&self, engine: &str) -> Result<(), CgroupError> {
        self.prepare()?;
        for dir in self.folders(engine) {
            make(&dir)?;
            if let Kind::V2(parent) = &self.0 {
                parent.hand_down(&dir)?;
            }
        }
        Ok(())
    }
}

/// Makes a group, unless it is there.
pub(super) fn make(dir: &Path) -> Result<(), CgroupError> {
    match std::fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(CgroupError::Refused {
            tried: format!("make cgroup {}", dir.display()),
            cause: error,
        }),
        _ => Ok(()),
    }
}

impl Parent {
    /// Whether the controllers are there that sessions need.
    fn check(&self) -> Result<(), CgroupError> {
        let found = Controller::named_in(&file::read(&self.dir.join("cgroup.controllers"))?);
        let missing = missing_of(&found);
        if missing.is_empty() {
            return Ok(());
        }
        let group = || self.dir.clone();
        let place = match self.owner {
            Owner::Host => {
                let command_line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
                disabled_in(&command_line, &missing)
                    .map_or(MissingIn::V2, |word| MissingIn::Boot { word })
            }
            Owner::Unit => MissingIn::Unit { group: group() },
            Owner::Namespace => MissingIn::Container { group: group() },
        };
        Err(CgroupError::Controllers(Missing::new(&missing, place)))
    }

    /// Gives the groups below `dir` our controllers.
    pub fn hand_down(&self, dir: &Path) -> Result<(), CgroupError> {
        let control = dir.join("cgroup.subtree_control");
        let on = Controller::named_in(&file::read(&control)?);
        for controller in ALL.into_iter().filter(|controller| !on.contains(controller)) {
            match self.turn_on(dir, &control, controller) {
                Err(error) if !REQUIRED.contains(&controller) => {
                    tracing::debug!(%error, "sessions cannot have a bound on I/O");
                }
                outcome => outcome?,
            }
        }
        Ok(())
    }

    fn turn_on(
        &self,
        dir: &Path,
        control: &Path,
        controller: Controller,
    ) -> Result<(), CgroupError> {
        let value = format!("+{controller}");
        // The host's root needs no emptying, and what is in groups of ours is a VMM.
        let may_empty = dir == self.dir && self.owner != Owner::Host;
        for _ in 0..ATTEMPTS {
            match file::try_write(control, &value) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && may_empty => empty(dir)?,
                outcome => return outcome.map_err(|cause| file::refused(&value, control, cause)),
            }
        }
        Err(CgroupError::Occupied {
            dir: dir.to_owned(),
            reason: "new ones appear faster than they can be moved",
        })
    }
}

/// Moves the processes of a group to a leaf below it.
pub(super) fn empty(dir: &Path) -> Result<(), CgroupError> {
    let leaf = dir.join(LEAF);
    make(&leaf)?;
    let entrance = leaf.join("cgroup.procs");
    for pid in file::read(&dir.join("cgroup.procs"))?.lines() {
        if pid == "0" {
            // Of another PID namespace.
            return Err(CgroupError::Occupied {
                dir: dir.to_owned(),
                reason: "they are of another PID namespace",
            });
        }
        match file::try_write(&entrance, pid) {
            // It has ended meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            outcome => outcome.map_err(|cause| file::refused(pid, &entrance, cause))?,
        }
    }
    // One that is about to end does not move, and is gone in a moment.
    std::thread::sleep(Duration::from_micros(200));
    Ok(())
}

#[cfg(test)]
mod tests;
