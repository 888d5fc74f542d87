//! Kills what lives in groups, and removes them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{CgroupError, file};
use crate::pidfd;
use crate::time_scale::scaled;

/// How long killed processes may take to end, and a group without processes to let go.
const LIMIT: Duration = Duration::from_secs(5);
/// Between two looks at what the kernel does not tell by itself.
const PAUSE: Duration = Duration::from_millis(1);

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cleared {
    /// Groups right below those that were named, by their names.
    pub groups: usize,
    /// Processes that were killed.
    pub processes: usize,
}

/// Kills what lives in the groups in `folders` and removes them with everything below them. Goes on
/// where something fails.
///
/// # Errors
/// [`CgroupError`]: the first.
pub(crate) fn clear(folders: &[PathBuf]) -> Result<Cleared, CgroupError> {
    let groups: BTreeSet<_> =
        folders.iter().flat_map(|dir| children(dir)).filter_map(|dir| name(&dir)).collect();
    let mut cleared = Cleared { groups: groups.len(), processes: 0 };
    let mut killed = BTreeSet::new();
    let mut outcome = Ok(());
    for dir in folders {
        // Only what is not empty is looked at more closely.
        let removed = match remove_empty(dir, Duration::ZERO) {
            Ok(()) => Ok(()),
            Err(_) => kill(dir, &mut killed).and_then(|()| remove_empty(dir, scaled(LIMIT))),
        };
        outcome = outcome.and(removed);
    }
    cleared.processes = killed.len();
    outcome.map(|()| cleared)
}

fn name(dir: &Path) -> Option<std::ffi::OsString> {
    dir.file_name().map(ToOwned::to_owned)
}

/// The groups right below one.
fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Removes a group and those below it, once they have let go of their processes.
fn remove_empty(dir: &Path, limit: Duration) -> Result<(), CgroupError> {
    for child in children(dir) {
        remove_empty(&child, limit)?;
    }
    let begun = Instant::now();
    loop {
        match std::fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && begun.elapsed() < limit => {
                std::thread::sleep(PAUSE);
            }
            Err(cause) => {
                return Err(CgroupError::Refused {
                    tried: format!("remove cgroup {}", dir.display()),
                    cause,
                });
            }
        }
    }
}

/// Kills every process in a group and below, and waits until they are gone.
fn kill(dir: &Path, killed: &mut BTreeSet<u32>) -> Result<(), CgroupError> {
    let begun = Instant::now();
    let all_at_once = dir.join("cgroup.kill");
    loop {
        let pids = processes(dir)?;
        if pids.is_empty() && !is_populated(dir) {
            return Ok(());
        }
        let left = scaled(LIMIT).saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Err(CgroupError::Occupied {
                dir: dir.to_owned(),
                reason: "they still live long after SIGKILL",
            });
        }
        // v2 since Linux 5.14, where a fork cannot escape it.
        if !file::write_if_there(&all_at_once, 1).unwrap_or(false) {
            pids.iter().for_each(|pid| kill_member(dir, *pid));
        }
        killed.extend(pids);
        wait_for_change(dir, left);
    }
}

/// The processes in a group and below. One of another PID namespace is none of ours: its engine may
/// live.
fn processes(dir: &Path) -> Result<BTreeSet<u32>, CgroupError> {
    let text = match std::fs::read_to_string(dir.join("cgroup.procs")) {
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(libc::ENODEV) =>
        {
            return Ok(BTreeSet::new());
        }
        text => {
            text.map_err(|cause| CgroupError::Unreadable { path: dir.join("cgroup.procs"), cause })?
        }
    };
    let mut pids: BTreeSet<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for child in children(dir) {
        pids.append(&mut processes(&child)?);
    }
    if pids.contains(&0) {
        return Err(CgroupError::Occupied {
            dir: dir.to_owned(),
            reason: "they are of another PID namespace",
        });
    }
    Ok(pids)
}

/// Kills a process if it still is in the group once a descriptor holds on to it, so that its id
/// cannot have become another's.
fn kill_member(dir: &Path, pid: u32) {
    let Ok(process) = pidfd::open(pid) else { return };
    if processes(dir).is_ok_and(|pids| pids.contains(&pid))
        && let Err(error) = pidfd::kill(process.as_fd())
        && error.raw_os_error() != Some(libc::ESRCH)
    {
        tracing::warn!(pid, %error, "cannot kill a process of a group that is to be removed");
    }
}

/// Whether v2 says that there are processes in a group or below.
fn is_populated(dir: &Path) -> bool {
    std::fs::read_to_string(dir.join("cgroup.events"))
        .is_ok_and(|text| text.lines().any(|line| line == "populated 1"))
}

/// Waits until v2 says that `cgroup.events` has changed, or for a moment.
fn wait_for_change(dir: &Path, limit: Duration) {
    let Ok(events) = File::open(dir.join("cgroup.events")) else {
        return std::thread::sleep(PAUSE);
    };
    // A change between the last look and this one is not told any more.
    if is_populated(dir) {
        let timeout = PollTimeout::try_from(limit.min(PAUSE * 20)).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout);
    }
}

#[cfg(test)]
mod tests;
