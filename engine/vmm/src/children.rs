//! Which children of this process are VMMs already, so that no answer of a zygote can name one of
//! them, or any other process, as its fork.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use parking_lot::Mutex;

/// Process ids of the VMMs that this process has adopted and not reaped.
static ADOPTED: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Takes note that the child `pid` is a VMM from now on. Returns `false` when it was one before.
pub(crate) fn adopt(pid: u32) -> bool {
    ADOPTED.lock().insert(pid)
}

/// Returns whether `pid` is a VMM that was adopted and not reaped.
pub(crate) fn is_adopted(pid: u32) -> bool {
    ADOPTED.lock().contains(&pid)
}

/// Reaps the adopted child `pid` if it has ended; does not wait.
///
/// # Errors
/// `ECHILD` when it is no child of this process.
pub(crate) fn reap(pid: u32) -> Result<WaitStatus, Errno> {
    // The id is free for another process as soon as the child is reaped: nobody may look at the
    // list between the two.
    let mut adopted = ADOPTED.lock();
    let ended = waitid(
        Id::Pid(Pid::from_raw(pid.cast_signed())),
        WaitPidFlag::WNOHANG | WaitPidFlag::WEXITED,
    )?;
    if ended != WaitStatus::StillAlive {
        adopted.remove(&pid);
    }
    Ok(ended)
}

/// Waits until the adopted child `pid`, which was killed, has ended, and reaps it. Blocks.
pub(crate) fn wait_and_reap(pid: u32) {
    // Without the list, which others need meanwhile.
    let end = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    while waitid(Id::Pid(Pid::from_raw(pid.cast_signed())), end) == Err(Errno::EINTR) {}
    let _ = reap(pid);
}

/// Returns the id of the process behind `pidfd`, which must be a child of this process that was not
/// reaped. The id stays its own until then.
///
/// # Errors
/// When it is no child of this process, or the id cannot be read (proc_pid_fdinfo(5), `Pid`).
pub(crate) fn child_behind(pidfd: BorrowedFd<'_>) -> io::Result<u32> {
    let look = WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT | WaitPidFlag::WEXITED;
    waitid(Id::PIDFd(pidfd.as_fd()), look).map_err(|errno| match errno {
        Errno::ECHILD => io::Error::other("it is no child of this process"),
        errno => errno.into(),
    })?;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i64>().ok());
    // 0 and -1 stand for a process in another PID namespace, and for one that was reaped.
    pid.and_then(|pid| u32::try_from(pid).ok())
        .filter(|pid| *pid > 0)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it has ended already"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sys::signal::{Signal, kill};

    use super::*;

    #[test]
    fn only_children_are_told_from_a_descriptor() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let theirs = mayfly_host::pidfd::open(child.id()).unwrap();
        assert_eq!(child_behind(theirs.as_fd()).unwrap(), child.id());
        let own = mayfly_host::pidfd::open(std::process::id()).unwrap();
        child_behind(own.as_fd()).unwrap_err();
        let first = mayfly_host::pidfd::open(1).unwrap();
        child_behind(first.as_fd()).unwrap_err();
        child.kill().unwrap();
        child.wait().unwrap();
        child_behind(theirs.as_fd()).unwrap_err();
    }

    #[test]
    fn a_child_is_adopted_once_until_it_is_reaped() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let pid = child.id();
        assert!(!is_adopted(pid) && adopt(pid) && !adopt(pid) && is_adopted(pid));
        assert_eq!(reap(pid), Ok(WaitStatus::StillAlive));
        assert!(is_adopted(pid));
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
        while reap(pid) == Ok(WaitStatus::StillAlive) {
            std::thread::yield_now();
        }
        assert!(!is_adopted(pid));
        assert_eq!(reap(pid), Err(Errno::ECHILD));
        child.wait().unwrap_err();
    }
}
