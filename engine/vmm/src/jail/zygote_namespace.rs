//! The PID namespace of one zygote and its forks.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::confine;
use crate::children;

/// Time between two looks at a namespace that ends.
const PAUSE: Duration = Duration::from_millis(20);
/// Most looks at a namespace that ends.
const LOOKS: u32 = 500;

/// PID namespace in which a zygote starts, and below which its forks do. Dropping it ends whatever
/// is left in it.
///
/// Its process 1 sleeps: it keeps the namespace for forks that outlive their zygote, and lets the
/// zygote be another process, since clone(2) denies `CLONE_PARENT` to process 1.
#[derive(Debug)]
pub struct ZygoteNamespace {
    namespace: File,
    /// Process 1; gone once the namespace is being taken down.
    first: Option<Child>,
}

impl ZygoteNamespace {
    /// Makes one; `fork` runs its argument where a child starts in a new namespace.
    ///
    /// # Errors
    /// When there can be no such process.
    pub(super) fn new(
        fork: impl FnOnce(&mut dyn FnMut() -> io::Result<Child>) -> io::Result<Child>,
    ) -> io::Result<Self> {
        let mut command = Command::new("sleep");
        command.arg("infinity").env_clear().current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let owner = confine::Owner::own()?;
        // SAFETY: `keeper` makes async-signal-safe system calls only.
        unsafe {
            command.pre_exec(move || confine::keeper(&owner));
        }
        let mut first = fork(&mut || command.spawn())?;
        match File::open(format!("/proc/{}/ns/pid", first.id())) {
            Ok(namespace) => Ok(Self { namespace, first: Some(first) }),
            Err(error) => {
                let _ = first.kill();
                let _ = first.wait();
                Err(error)
            }
        }
    }

    /// Returns the descriptor of the namespace, for setns(2).
    pub(super) fn as_file(&self) -> &File {
        &self.namespace
    }
}

impl Drop for ZygoteNamespace {
    /// The kernel kills what is in a namespace, and below it, when its process 1 ends. That one is
    /// gone only when all others were reaped (pid_namespaces(7)): a zygote that was taken over may
    /// have made children of this process that nobody asked for.
    fn drop(&mut self) {
        let Some(mut first) = self.first.take() else { return };
        let _ = first.kill();
        let Ok(namespace) = self.namespace.metadata() else { return };
        let id = (namespace.dev(), namespace.ino());
        let end = move || {
            for _ in 0..LOOKS {
                if !matches!(first.try_wait(), Ok(None)) {
                    return;
                }
                let process_1 = first.id();
                strays(id).filter(|pid| *pid != process_1).for_each(reap);
                std::thread::sleep(PAUSE);
            }
            tracing::warn!(first = first.id(), "a zygote's PID namespace does not end");
        };
        drop(std::thread::Builder::new().name("vmm-reaper".into()).spawn(end));
    }
}

/// Children of this process in the namespace `id` (device and inode), or right below it, that are
/// no VMMs of ours; its process 1 among them.
fn strays(id: (u64, u64)) -> impl Iterator<Item = u32> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    // proc_tid_children(5)
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let children = lists.flat_map(|list| {
        list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
    });
    children.filter(move |pid| !children::is_adopted(*pid) && is_within(*pid, id))
}

fn is_within(pid: u32, id: (u64, u64)) -> bool {
    let Ok(own) = File::open(format!("/proc/{pid}/ns/pid")) else { return false };
    let is = |file: &File| file.metadata().is_ok_and(|found| (found.dev(), found.ino()) == id);
    is(&own) || parent_of(&own).is_ok_and(|parent| is(&parent))
}

/// The namespace in which another one was made (ioctl_nsfs(2)).
fn parent_of(namespace: &File) -> io::Result<File> {
    use std::os::fd::FromRawFd;
    const NS_GET_PARENT: libc::Ioctl = 0xb702;
    // SAFETY: takes a descriptor, and returns a new one or -1.
    let parent = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_PARENT) };
    let parent = Errno::result(parent)?;
    // SAFETY: the kernel just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(parent) }.into())
}

fn reap(pid: u32) {
    tracing::warn!(pid, "a zygote made a process that nobody asked for");
    let pid = Pid::from_raw(pid.cast_signed());
    // The namespace's end kills it, too; whatever it is by now, it is a child that nobody else
    // waits for.
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    let _ = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
}

#[cfg(test)]
mod tests {
    use mayfly_host::cgroup::Entrance;

    use super::super::confine::{Child, Owner};
    use super::super::{PidNamespace, Program, Rlimits, spawn};
    use super::*;

    fn sleeper() -> Program {
        let rlimits =
            Rlimits { file_bytes: u64::MAX, threads: libc::RLIM_INFINITY, open_files: 512 };
        let child = Child {
            jail: None,
            uid: None,
            own_cores: false,
            rlimits,
            owner: Owner::own().unwrap(),
        };
        let stderr = File::create("/dev/null").unwrap().into();
        let path = [("PATH", "/usr/bin:/bin".to_owned())];
        let given = (Entrance::default(), child);
        Program::new("sleep", &["100".to_owned()], &path, (Vec::new(), stderr), given).unwrap()
    }

    fn is_there(pid: u32) -> bool {
        nix::sys::signal::kill(Pid::from_raw(pid.cast_signed()), None).is_ok()
    }

    #[tokio::test]
    #[ignore = "needs root"]
    async fn zygotes_do_not_see_one_another_and_leave_nothing() {
        let (one, first) = spawn(sleeper(), PidNamespace::Zygote).await.unwrap();
        let (two, second) = spawn(sleeper(), PidNamespace::Zygote).await.unwrap();
        let (first, second) = (first.unwrap(), second.unwrap());
        let of = |pid: u32| std::fs::metadata(format!("/proc/{pid}/ns/pid")).unwrap().ino();
        let own = |namespace: &ZygoteNamespace| namespace.as_file().metadata().unwrap().ino();
        assert_eq!((of(one.pid), of(two.pid)), (own(&first), own(&second)));
        assert_ne!(of(one.pid), of(two.pid));
        assert_ne!(of(one.pid), of(std::process::id()));

        // Nobody adopts or waits for the first: as if its zygote had made it unasked.
        let keepers = [&first, &second].map(|namespace| namespace.first.as_ref().unwrap().id());
        drop(first);
        while is_there(one.pid) || is_there(keepers[0]) {
            tokio::time::sleep(PAUSE).await;
        }
        assert!(is_there(two.pid) && is_there(keepers[1]));
        drop(second);
        while is_there(two.pid) || is_there(keepers[1]) {
            tokio::time::sleep(PAUSE).await;
        }
    }
}
