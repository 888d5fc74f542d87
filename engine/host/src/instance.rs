//! Engine process on a host: its folder, its name in cgroups, and the removal of what dead engines
//! left behind.
//!
//! Sessions own almost nothing with a name: VMMs die with the engine (`PR_SET_PDEATHSIG`), disks
//! and memory are anonymous files. What has a name (cgroups, forwarded sockets) lives below a
//! folder named after the engine process, so that the next engine can tell leftovers from a
//! neighbour's property.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cgroup;
use crate::layout::{Layout, LayoutError};
use crate::pidfd;

/// Place of this process below the runtime root; its folder and cgroups go when it is dropped.
#[derive(Debug)]
pub struct Instance {
    name: String,
    dir: PathBuf,
    reaped: Vec<String>,
}

/// Returns `<pid>-<start time in clock ticks>`: unique while the host is up (proc_pid_stat(5),
/// field 22). `None` for a process that is gone, or has ended and only its parent has to take note
/// of it.
pub fn name_of(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    let start = fields.nth(18)?;
    Some(format!("{pid}-{start}"))
}

/// Returns the process id in a name.
pub fn pid_of(name: &str) -> Option<u32> {
    name.split('-').next()?.parse().ok()
}

/// Returns whether the process of that name still is the one with its process id.
pub fn is_alive(name: &str) -> bool {
    pid_of(name).and_then(name_of).is_some_and(|current| current == name)
}

/// Kills the process of that name and waits until it is gone, or only its parent has to take note
/// of it.
///
/// # Errors
/// It may not be signalled, or lives on after `limit`. None when it is gone already.
pub fn kill(name: &str, limit: Duration) -> std::io::Result<()> {
    let gone = |error: std::io::Error| {
        if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
    };
    let Some(pid) = pid_of(name) else { return Ok(()) };
    let fd = match pidfd::open(pid) {
        Ok(fd) => fd,
        Err(error) => return gone(error),
    };
    // The descriptor holds on to the process; looked at after it was opened, the name cannot become
    // another's.
    if !is_alive(name) {
        return Ok(());
    }
    if let Err(error) = pidfd::kill(fd.as_fd()) {
        return gone(error);
    }
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout)? {
        0 => Err(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            format!("it still lives {limit:?} after SIGKILL"),
        )),
        _ => Ok(()),
    }
}

impl Instance {
    /// Makes this process's folder and removes what engines that are no longer alive have left.
    ///
    /// # Errors
    /// [`LayoutError::Create`].
    pub fn enter(layout: &Layout) -> Result<Self, LayoutError> {
        let engines = layout.engines();
        Layout::create(&engines)?;
        let reaped = reap(&engines);
        let own =
            name_of(std::process::id()).unwrap_or_else(|| format!("{}-0", std::process::id()));
        // Several engines may live in one process (tests do that).
        let unique = (0u32..).map(|n| if n == 0 { own.clone() } else { format!("{own}-{n}") });
        for name in unique {
            let dir = engines.join(&name);
            match std::fs::create_dir(&dir) {
                Ok(()) => {
                    note_groups(&dir, &name)
                        .map_err(|cause| LayoutError::Create { path: dir.clone(), cause })?;
                    return Ok(Self { name, dir, reaped });
                }
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(cause) => return Err(LayoutError::Create { path: dir, cause }),
            }
        }
        unreachable!("an unbounded range of names cannot be used up")
    }

    /// Returns the folder for sockets of this engine's sessions.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns what was removed of engines that are no longer alive, one line for each.
    pub fn reaped(&self) -> &[String] {
        &self.reaped
    }

    /// Returns the name of the instance, which is that of its folder, and of its cgroup below our
    /// root.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the cgroup name of one of this engine's sessions, below our root.
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

/// File in an engine's folder that says where its cgroups are, one folder in a line: an engine that
/// is started in another way has its own elsewhere.
const GROUPS: &str = "cgroups";

fn note_groups(dir: &Path, name: &str) -> std::io::Result<()> {
    let folders =
        cgroup::Place::of_this_process().map(|place| place.folders(name)).unwrap_or_default();
    let lines: Vec<String> =
        folders.iter().map(|folder| format!("{}\n", folder.display())).collect();
    std::fs::write(dir.join(GROUPS), lines.concat())
}

/// The cgroups of an engine: where ours would be, and where it has noted.
fn groups_of(engines: &Path, name: &str) -> Vec<PathBuf> {
    let noted = std::fs::read_to_string(engines.join(name).join(GROUPS)).unwrap_or_default();
    let noted = noted
        .lines()
        .map(PathBuf::from)
        .filter(|folder| folder.ends_with(Path::new(cgroup::ROOT).join(name)));
    let mut folders: Vec<PathBuf> = cgroup::directories(name)
        .into_iter()
        .chain(noted.filter(|folder| cgroup::is_group(folder)))
        .collect();
    folders.sort();
    folders.dedup();
    folders
}

/// Removes folders, cgroups and processes of engines that are no longer alive; says what it
/// removed, one line for each.
fn reap(engines: &Path) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let folders = cgroup::directories("").into_iter().chain([engines.to_owned()]);
    for folder in folders {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        names.extend(
            entries
                .filter(|e| e.path().is_dir())
                .map(|e| e.file_name().to_string_lossy().into_owned()),
        );
    }
    names.sort();
    names.dedup();
    let dead = names
        .iter()
        .filter(|name| !is_alive(&name.splitn(3, '-').take(2).collect::<Vec<_>>().join("-")));
    dead.map(|name| reap_one(engines, name)).collect()
}

fn reap_one(engines: &Path, name: &str) -> String {
    let folder = engines.join(name);
    let sockets = std::fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.file_name() != GROUPS)
        .count();
    // A VMM dies with its engine; one that could not be told so is still in its cgroup.
    match cgroup::clear(&groups_of(engines, name)) {
        Ok(cgroup::Cleared { groups, processes }) => {
            tracing::info!(engine = %name, groups, processes, sockets, "removed what a dead engine left behind");
            let _ = std::fs::remove_dir_all(folder);
            format!("engine {name}: {groups} cgroups, {processes} processes, {sockets} sockets")
        }
        Err(error) => {
            tracing::warn!(%error, "cannot remove what a dead engine left behind");
            format!("engine {name}: not all could be removed: {error}")
        }
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
        assert!(
            second
                .reaped()
                .iter()
                .any(|line| line.contains("999999999-1") && line.contains("1 sockets"))
        );
        assert!(first.dir().exists() && second.dir().exists() && first.dir() != second.dir());
        drop((first, second));
        assert_eq!(std::fs::read_dir(layout.engines()).unwrap().count(), 0);
    }

    #[test]
    #[ignore = "needs root"]
    fn cgroups_that_a_dead_engine_had_elsewhere_are_found_by_its_note() {
        let run = tempfile::tempdir().unwrap();
        let layout = Layout::new("/nonexistent", run.path());
        // A folder as another way of starting would have it, below a group of this process.
        let own = name_of(std::process::id()).unwrap();
        let elsewhere: Vec<_> =
            cgroup::Place::of_this_process().unwrap().folders(&format!("{own}-elsewhere"));
        let dead = "999999999-7";
        let groups: Vec<_> =
            elsewhere.iter().map(|dir| dir.join(cgroup::ROOT).join(dead)).collect();
        groups.iter().for_each(|dir| std::fs::create_dir_all(dir.join("session")).unwrap());
        let folder = layout.engines().join(dead);
        std::fs::create_dir_all(&folder).unwrap();
        let victim = run.path().join(cgroup::ROOT).join(dead);
        std::fs::create_dir_all(&victim).unwrap();
        // What is no cgroup is left alone, whatever a note says.
        let noted = groups.iter().chain([&victim]).map(|dir| format!("{}\n", dir.display()));
        std::fs::write(folder.join(GROUPS), noted.collect::<String>()).unwrap();
        let instance = Instance::enter(&layout).unwrap();
        let line = instance.reaped().iter().find(|line| line.contains(dead)).unwrap();
        assert_eq!(line, &format!("engine {dead}: 1 cgroups, 0 processes, 0 sockets"));
        assert!(groups.iter().all(|dir| !dir.exists()) && !folder.exists() && victim.exists());
        let note = std::fs::read_to_string(instance.dir().join(GROUPS)).unwrap();
        assert!(
            !note.is_empty() && note.lines().all(|line| line.ends_with(instance.name())),
            "{note}"
        );
        elsewhere.iter().for_each(|dir| {
            std::fs::remove_dir(dir.join(cgroup::ROOT)).unwrap();
            std::fs::remove_dir(dir).unwrap();
        });
    }

    #[test]
    fn only_the_process_that_is_meant_is_killed() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let name = name_of(child.id()).unwrap();
        assert!(is_alive(&name));
        let limit = Duration::from_secs(60);
        kill(&format!("{}-1", child.id()), limit).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        kill(&name, limit).unwrap();
        // Nobody has waited for it yet; it counts as dead all the same.
        assert!(!is_alive(&name));
        assert!(!child.wait().unwrap().success());
        // Gone: nothing to do.
        kill(&name, limit).unwrap();
        assert!(!is_alive(&name));
    }
}
