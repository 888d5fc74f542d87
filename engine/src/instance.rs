//! One engine process on a host: its folder, its name in cgroups, and the removal of what dead engines left behind.
//!
//! Sessions own almost nothing with a name: VMMs die with the engine (`PR_SET_PDEATHSIG`), disks and memory are anonymous
//! files. What has a name (cgroups, forwarded sockets) lives below a folder named after the engine process, so that the next
//! engine can tell leftovers from a neighbour's property.

use std::path::{Path, PathBuf};

use crate::cgroup;
use crate::layout::{Layout, LayoutError};

/// This process's place below the runtime root; its folder and cgroups go when it is dropped.
#[derive(Debug)]
pub struct Instance {
    name: String,
    dir: PathBuf,
}

/// `<pid>-<start time in clock ticks>`: unique while the host is up (proc_pid_stat(5), field 22).
fn name_of(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields = stat.rsplit_once(')')?.1;
    let start = fields.split_whitespace().nth(19)?;
    Some(format!("{pid}-{start}"))
}

fn is_alive(name: &str) -> bool {
    let pid = name.split('-').next().and_then(|pid| pid.parse().ok());
    pid.and_then(name_of).is_some_and(|current| current == name)
}

impl Instance {
    /// Makes this process's folder and removes what engines that are no longer alive have left.
    ///
    /// # Errors
    /// [`LayoutError::Create`].
    pub fn enter(layout: &Layout) -> Result<Self, LayoutError> {
        let engines = layout.engines();
        Layout::create(&engines)?;
        reap(&engines);
        let own = name_of(std::process::id()).unwrap_or_else(|| format!("{}-0", std::process::id()));
        // Several engines may live in one process (tests do that).
        let unique = (0u32..).map(|n| if n == 0 { own.clone() } else { format!("{own}-{n}") });
        for name in unique {
            let dir = engines.join(&name);
            match std::fs::create_dir(&dir) {
                Ok(()) => return Ok(Self { name, dir }),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(LayoutError::Create { path: dir, source }),
            }
        }
        unreachable!("an unbounded range of names cannot be used up")
    }

    /// Folder for sockets of this engine's sessions.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Cgroup name of one of this engine's sessions, below our root.
    pub fn cgroup_name(&self, session: &str) -> String {
        format!("{}/{session}", self.name)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Err(error) = cgroup::remove_tree(&self.name) {
            tracing::warn!(%error, "left behind");
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Removes folders and cgroups of engines that are no longer alive; says what it removed.
fn reap(engines: &Path) {
    let mut names: Vec<String> = Vec::new();
    let folders = cgroup::directories("").into_iter().chain([engines.to_owned()]);
    for folder in folders {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        names.extend(entries.filter(|e| e.path().is_dir()).map(|e| e.file_name().to_string_lossy().into_owned()));
    }
    names.sort();
    names.dedup();
    for name in names.iter().filter(|name| !is_alive(&name.splitn(3, '-').take(2).collect::<Vec<_>>().join("-"))) {
        match cgroup::remove_tree(name) {
            Ok(()) => tracing::info!(engine = %name, "removed what a dead engine left behind"),
            Err(error) => tracing::warn!(%error, "cannot remove what a dead engine left behind"),
        }
        let _ = std::fs::remove_dir_all(engines.join(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_of_the_dead_go_and_those_of_the_living_stay() {
        let run = tempfile::tempdir().unwrap();
        let layout = Layout::new("/nonexistent", run.path());
        let first = Instance::enter(&layout).unwrap();
        let dead = layout.engines().join("999999999-1");
        std::fs::create_dir(&dead).unwrap();
        std::fs::write(dead.join("docker.sock"), "").unwrap();
        let second = Instance::enter(&layout).unwrap();
        assert!(!dead.exists());
        assert!(first.dir().exists() && second.dir().exists() && first.dir() != second.dir());
        drop((first, second));
        assert_eq!(std::fs::read_dir(layout.engines()).unwrap().count(), 0);
    }
}
