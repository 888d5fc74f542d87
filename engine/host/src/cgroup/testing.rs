//! Helpers of the tests of this module: real groups, which go when they are dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use super::mounts::Mounts;
use super::place::{Owner, Parent, Place, Version};
use super::remove::clear;

/// A name below our root that no other engine takes for a leftover, as it begins with this
/// process's.
pub(super) fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let own = crate::instance::name_of(std::process::id()).unwrap();
    format!("{own}-{what}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn mountinfo() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap()
}

/// A group of v2, with controllers or without.
#[derive(Debug)]
pub(super) struct V2Group(PathBuf);

impl V2Group {
    /// Makes a group at the root of v2, which hosts of v1 have, too, without controllers. `None`,
    /// and a line on standard error, where there is none.
    pub fn make(what: &str) -> Option<Self> {
        let mounts = Mounts::parse(&mountinfo());
        let Some(mount) = mounts.v2() else {
            mayfly_skip::skip("no cgroup v2 is mounted on this host");
            return None;
        };
        let dir = mount.point.join(unique(what));
        std::fs::create_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        Some(Self(dir))
    }

    /// Makes a group with all controllers that sessions have. `None`, and a line on standard error,
    /// where v2 does not have them.
    pub fn with_controllers(what: &str) -> Option<Self> {
        let place = Place::of_this_process().unwrap();
        if place.version() != Version::V2 {
            mayfly_skip::skip("the controllers of this host are on cgroup v1");
            return None;
        }
        place.prepare().unwrap();
        let dir = place.folders(&unique(what)).remove(0);
        std::fs::create_dir(&dir).unwrap();
        Some(Self(dir))
    }

    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// Returns this group as a place, as if it were a unit's or a container's.
    pub fn parent(&self, owner: Owner) -> Parent {
        let mount = Mounts::parse(&mountinfo()).v2().unwrap().clone();
        Parent { mount, dir: self.0.clone(), owner }
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.join(name)).unwrap().trim().to_owned()
    }

    pub fn write(&self, name: &str, value: &str) {
        std::fs::write(self.0.join(name), value).unwrap();
    }
}

impl Drop for V2Group {
    fn drop(&mut self) {
        let cleared = clear(std::slice::from_ref(&self.0));
        assert!(cleared.is_ok() || std::thread::panicking(), "{cleared:?}");
    }
}

/// A sleeping child, killed when dropped.
#[derive(Debug)]
pub(super) struct Sleeper(Child);

impl Sleeper {
    /// Starts a process in a group.
    pub fn start_in(dir: &Path) -> Self {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
        Self(child)
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits for its end, and returns whether it was killed.
    pub fn was_killed(mut self) -> bool {
        use std::os::unix::process::ExitStatusExt;
        self.0.wait().unwrap().signal() == Some(libc::SIGKILL)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
