//! The one thread that starts VMM processes, and the PID namespaces they start in.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;

use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::oneshot;

use super::confine;

/// In which PID namespace a process starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PidNamespace {
    /// In a new one, as its process 1: it sees itself only.
    Own,
    /// In the one of this engine's zygotes, not as its process 1, whom clone(2) denies `CLONE_PARENT`. Forks of a zygote
    /// start in new ones below it.
    Zygotes,
}

type Job = Box<dyn FnOnce(&mut Namespaces) + Send>;

/// `PR_SET_PDEATHSIG` fires when the *thread* that forked dies (prctl(2)), so all VMMs are forked by one thread that lives
/// as long as the process.
fn spawner() -> &'static mpsc::Sender<Job> {
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new().name("vmm-spawner".into());
        // A host without room for one thread cannot start VMs either; the send below then fails as a spawn error.
        let _ = thread.spawn(move || {
            let mut namespaces = Namespaces::default();
            for job in jobs {
                job(&mut namespaces);
            }
        });
        sender
    })
}

/// Starts `command` in a PID namespace; `keep` lives until the child has its own copies of it.
///
/// # Errors
/// When fork, namespaces, confinement or exec fail.
pub async fn spawn(mut command: Command, namespace: PidNamespace, keep: impl Send + 'static) -> io::Result<Child> {
    let (reply, started) = oneshot::channel();
    let job: Job = Box::new(move |namespaces| {
        let result = namespaces.spawn(&mut command, namespace);
        // The mapped descriptors live in the command: close our copies before anyone sees the child.
        drop(command);
        drop(keep);
        if let Err(Ok(mut orphan)) = reply.send(result) {
            // The caller was cancelled meanwhile.
            let _ = orphan.kill();
            let _ = orphan.wait();
        }
    });
    spawner().send(job).map_err(|_| io::Error::other("the spawner thread could not be started"))?;
    started.await.map_err(|_| io::Error::other("the spawner thread ended"))?
}

/// The spawner thread's namespaces.
#[derive(Default)]
struct Namespaces {
    /// The one this process is in.
    own: Option<OwnedFd>,
    /// The one of zygotes, and its process 1.
    zygotes: Option<(OwnedFd, Child)>,
}

impl Namespaces {
    fn spawn(&mut self, command: &mut Command, namespace: PidNamespace) -> io::Result<Child> {
        if self.own.is_none() {
            self.own = Some(File::open("/proc/self/ns/pid")?.into());
        }
        match namespace {
            PidNamespace::Own => self.fork_into(|| unshare(CloneFlags::CLONE_NEWPID).map_err(Into::into), command),
            PidNamespace::Zygotes => {
                let zygotes = self.zygotes()?.try_clone()?;
                self.fork_into(|| setns(&zygotes, CloneFlags::CLONE_NEWPID).map_err(Into::into), command)
            }
        }
    }

    /// Where this thread's children start is changed for one fork, and changed back (pid_namespaces(7)).
    fn fork_into(&self, enter: impl FnOnce() -> io::Result<()>, command: &mut Command) -> io::Result<Child> {
        enter()?;
        let result = command.spawn();
        let back = match &self.own {
            Some(own) => setns(own, CloneFlags::CLONE_NEWPID),
            None => Ok(()),
        };
        match (result, back) {
            (result, Ok(())) => result,
            (result, Err(errno)) => {
                if let Ok(mut child) = result {
                    let _ = child.kill();
                    let _ = child.wait();
                }
                Err(errno.into())
            }
        }
    }

    /// The namespace of zygotes. It lives as long as its process 1, which sleeps until this process ends: the kernel kills
    /// what is below a namespace when its process 1 is gone, and forks outlive their zygote.
    fn zygotes(&mut self) -> io::Result<&OwnedFd> {
        let gone = self.zygotes.as_mut().is_some_and(|(_, keeper)| !matches!(keeper.try_wait(), Ok(None)));
        if gone || self.zygotes.is_none() {
            let mut command = Command::new("sleep");
            command.arg("infinity").env_clear().current_dir("/");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let owner = confine::Owner::own()?;
            // SAFETY: `keeper` makes async-signal-safe system calls only.
            unsafe {
                command.pre_exec(move || confine::keeper(&owner));
            }
            let child = self.fork_into(|| unshare(CloneFlags::CLONE_NEWPID).map_err(Into::into), &mut command)?;
            let namespace = File::open(format!("/proc/{}/ns/pid", child.id()))?;
            self.zygotes = Some((namespace.into(), child));
        }
        self.zygotes.as_ref().map(|(namespace, _)| namespace).ok_or_else(|| io::Error::other("no namespace of zygotes"))
    }
}
