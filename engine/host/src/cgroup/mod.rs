//! Cgroups: one for each session, entered by its VMM before the first instruction, removed at
//! discard (cgroups(7)).
//!
//! - `mounts` finds out which version a host has, from the texts of `/proc`;
//! - `place` decides where our groups live in it, `prepare` makes that place ready on v2;
//! - [`SessionCgroup`] is one group, whose bounds `v1` and `v2` write;
//! - `remove` kills and removes groups, also those of a dead engine.
//!
//! What `v2` relies on is in the kernel's `Documentation/admin-guide/cgroup-v2.rst`, what `v1`
//! relies on in its `Documentation/admin-guide/cgroup-v1/`.

mod clone;
mod controller;
mod disk;
mod error;
mod file;
mod limits;
mod mounts;
mod place;
mod prepare;
mod remove;
mod session;
mod unnamed_file;
mod v1;
mod v2;

#[cfg(test)]
mod testing;

pub use clone::Started;
pub use clone::clone_into;
pub use error::CgroupError;
pub use limits::{Limits, OVERLAY_OVERHEAD, Subject, VMM_OVERHEAD};
pub use place::{Limitation, Place, Version};
pub(crate) use remove::{Cleared, clear};
pub use session::{Entrance, SessionCgroup};
pub use unnamed_file::unnamed_file;

/// Parent of all our cgroups, in every hierarchy.
pub const ROOT: &str = "mayfly";

/// Returns the existing folders of `mayfly/<name>`, one for each hierarchy. An empty name means our
/// root. None where cgroups cannot be used.
pub fn directories(name: &str) -> Vec<std::path::PathBuf> {
    let folders = Place::of_this_process().map(|place| place.folders(name)).unwrap_or_default();
    folders.into_iter().filter(|folder| folder.is_dir()).collect()
}

/// Whether a folder is a cgroup's.
pub(crate) fn is_group(folder: &std::path::Path) -> bool {
    use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
    statfs(folder)
        .is_ok_and(|fs| [CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC].contains(&fs.filesystem_type()))
}

/// Kills what lives in `mayfly/<name>` and removes it with everything below it; does nothing when
/// there is none.
///
/// # Errors
/// [`CgroupError`] when a process cannot be killed, or a group not be removed.
pub fn remove_tree(name: &str) -> Result<(), CgroupError> {
    clear(&directories(name)).map(drop)
}
