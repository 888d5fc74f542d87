//! One engine process on a host: its folder, its name in cgroups, and the removal of what dead engines left behind.
//!
//! Sessions own almost nothing with a name: VMMs die with the engine (`PR_SET_PDEATHSIG`), disks and memory are anonymous
//! files. What has a name (cgroups, forwarded sockets) lives below a folder named after the engine process, so that the next
//! engine can tell leftovers from a neighbour's property.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cgroup;
use crate::layout::{Layout, LayoutError};
use crate::pidfd;

/// This process's place below the runtime root; its folder and cgroups go when it is dropped.
#[derive(Debug)]
pub struct Instance {
    name: String,
    dir: PathBuf,
    reaped: Vec<String>,
}

/// `<pid>-<start time in clock ticks>`: unique while the host is up (proc_pid_stat(5), field 22). `None` for a process that
/// is gone, or has ended and only its parent has to take note of it.
pub(crate) fn name_of(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    let start = fields.nth(18)?;
    Some(format!("{pid}-{start}"))
}

/// The process id in a name.
pub(crate) fn pid_of(name: &str) -> Option<u32> {
    name.split('-').next()?.parse().ok()
}

/// Whether the process of that name still is the one with its process id.
pub(crate) fn is_alive(name: &str) -> bool {
    pid_of(name).and_then(name_of).is_some_and(|current| current == name)
}

/// Kills the process of that name and waits until it is gone, or only its parent has to take note of it.
pub(crate) fn kill(name: &str, limit: Duration) -> std::io::Result<()> {
    let gone = |error: std::io::Error| if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) };
    let Some(pid) = pid_of(name) else { return Ok(()) };
    let fd = match pidfd::open(pid, 0) {
        Ok(fd) => fd,
        Err(error) => return gone(error),
    };
    // The descriptor holds on to the process; looked at after it was opened, the name cannot become another's.
    if !is_alive(name) {
        return Ok(());
    }
    if let Err(error) = pidfd::kill(fd.as_fd()) {
        return gone(error);
    }
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout)? {
        0 => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, format!("it still lives {limit:?} after SIGKILL"))),
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
        let own = name_of(std::process::id()).unwrap_or_else(|| format!("{}-0", std::process::id()));
        // Several engines may live in one process (tests do that).
        let unique = (0u32..).map(|n| if n == 0 { own.clone() } else { format!("{own}-{n}") });
        for name in unique {
            let dir = engines.join(&name);
            match std::fs::create_dir(&dir) {
                Ok(()) => return Ok(Self { name, dir, reaped }),
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

    /// What was removed of engines that are no longer alive, one line for each.
    pub fn reaped(&self) -> &[String] {
        &self.reaped
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

/// How long the processes of a dead engine may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Removes folders, cgroups and processes of engines that are no longer alive; says what it removed, one line for each.
fn reap(engines: &Path) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let folders = cgroup::directories("").into_iter().chain([engines.to_owned()]);
    for folder in folders {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        names.extend(entries.filter(|e| e.path().is_dir()).map(|e| e.file_name().to_string_lossy().into_owned()));
    }
    names.sort();
    names.dedup();
    let dead = names.iter().filter(|name| !is_alive(&name.splitn(3, '-').take(2).collect::<Vec<_>>().join("-")));
    dead.map(|name| reap_one(engines, name)).collect()
}

fn reap_one(engines: &Path, name: &str) -> String {
    let cgroups = sessions_below(name);
    // A VMM dies with its engine; one that could not be told so is still in its cgroup.
    let killed = kill_below(name);
    let folder = engines.join(name);
    let sockets = std::fs::read_dir(&folder).into_iter().flatten().count();
    let line = format!("engine {name}: {cgroups} cgroups, {killed} processes, {sockets} sockets");
    match cgroup::remove_tree(name) {
        Ok(()) => tracing::info!(engine = %name, cgroups, killed, sockets, "removed what a dead engine left behind"),
        Err(error) => {
            tracing::warn!(%error, "cannot remove what a dead engine left behind");
            return format!("{line}; not all could be removed: {error}");
        }
    }
    let _ = std::fs::remove_dir_all(folder);
    line
}

/// Names of the sessions that have a cgroup below an engine's, in whichever hierarchy.
fn sessions_below(name: &str) -> usize {
    let mut sessions: Vec<_> = cgroup::directories(name)
        .iter()
        .flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name())
        .collect();
    sessions.sort();
    sessions.dedup();
    sessions.len()
}

/// Kills every process in the cgroups below an engine's; returns how many there were.
fn kill_below(name: &str) -> usize {
    let mut killed = std::collections::BTreeSet::new();
    let begun = Instant::now();
    // Again, for what was forked meanwhile.
    loop {
        let pids: Vec<u32> = cgroup::directories(name).iter().flat_map(|dir| pids_below(dir)).collect();
        let living: Vec<String> = pids.into_iter().filter_map(name_of).collect();
        if living.is_empty() || begun.elapsed() > KILL_LIMIT {
            return killed.len();
        }
        for process in living {
            if let Err(error) = kill(&process, KILL_LIMIT) {
                tracing::warn!(%process, %error, "cannot kill a process of a dead engine");
            }
            killed.insert(process);
        }
    }
}

fn pids_below(dir: &Path) -> Vec<u32> {
    let own = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<u32> = own.lines().filter_map(|line| line.parse().ok()).collect();
    let children = std::fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    pids.extend(children.flat_map(|child| pids_below(&child.path())));
    pids
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
        assert!(second.reaped().iter().any(|line| line.contains("999999999-1") && line.contains("1 sockets")));
        assert!(first.dir().exists() && second.dir().exists() && first.dir() != second.dir());
        drop((first, second));
        assert_eq!(std::fs::read_dir(layout.engines()).unwrap().count(), 0);
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
