//! The one thread that starts VMM processes, and the PID namespaces they start in.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;

use mayfly_host::cgroup::Started;
use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::oneshot;

use super::confine;
use super::program::{Program, Starting};

/// PID namespace in which a process starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PidNamespace {
    /// Namespace of its own, in which it is process 1: it sees itself only.
    Own,
    /// Namespace of this engine's zygotes, in which it is not process 1, whom clone(2) denies
    /// `CLONE_PARENT`. Forks of a zygote start in new ones below it.
    Zygotes,
}

type Job = Box<dyn FnOnce(&mut Namespaces) + Send>;

/// `PR_SET_PDEATHSIG` fires when the *thread* that forked dies (prctl(2)), so all VMMs are forked
/// by one thread that lives as long as the process.
fn spawner() -> &'static mpsc::Sender<Job> {
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new().name("vmm-spawner".into());
        // A host without room for one thread cannot start VMs either; the send below then fails as
        // a spawn error.
        let _ = thread.spawn(move || {
            let mut namespaces = Namespaces::default();
            for job in jobs {
                job(&mut namespaces);
            }
        });
        sender
    })
}

/// Starts `program` in a PID namespace. What it was given is closed here when this returns.
///
/// # Errors
/// When fork, namespaces, confinement or exec fail.
pub async fn spawn(program: Program, namespace: PidNamespace) -> io::Result<Started> {
    let (reply, started) = oneshot::channel();
    let job: Job = Box::new(move |namespaces| {
        let result = namespaces.spawn(&program, namespace);
        // Our copies of its descriptors close before anyone sees the child.
        drop(program);
        // A caller that was cancelled meanwhile takes no child, which ends then.
        drop(reply.send(result));
    });
    spawner().send(job).map_err(|_| io::Error::other("the spawner thread could not be started"))?;
    let started = started.await.map_err(|_| io::Error::other("the spawner thread ended"))??;
    // Not by the thread, which others wait for.
    started.executed().await
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
    fn spawn(&mut self, program: &Program, namespace: PidNamespace) -> io::Result<Starting> {
        let start = || program.start();
        match namespace {
            PidNamespace::Own => self.fork_into(new_namespace, start, drop),
            PidNamespace::Zygotes => {
                let zygotes = self.zygotes()?.try_clone()?;
                self.fork_into(|| Ok(setns(&zygotes, CloneFlags::CLONE_NEWPID)?), start, drop)
            }
        }
    }

    /// Where this thread's children start is changed for one fork, and changed back
    /// (pid_namespaces(7)); `end` ends the child when that fails.
    fn fork_into<T>(
        &mut self,
        enter: impl FnOnce() -> io::Result<()>,
        start: impl FnOnce() -> io::Result<T>,
        end: impl FnOnce(T),
    ) -> io::Result<T> {
        let own = match self.own.take() {
            Some(own) => own,
            None => File::open("/proc/self/ns/pid")?.into(),
        };
        let own = self.own.insert(own);
        enter()?;
        let result = start();
        match (result, setns(own, CloneFlags::CLONE_NEWPID)) {
            (result, Ok(())) => result,
            (result, Err(errno)) => {
                let _ = result.map(end);
                Err(errno.into())
            }
        }
    }

    /// The namespace of zygotes. It lives as long as its process 1, which sleeps until this process
    /// ends: the kernel kills what is below a namespace when its process 1 is gone, and forks
    /// outlive their zygote.
    fn zygotes(&mut self) -> io::Result<&OwnedFd> {
        let gone =
            self.zygotes.as_mut().is_some_and(|(_, keeper)| !matches!(keeper.try_wait(), Ok(None)));
        if gone || self.zygotes.is_none() {
            let mut command = Command::new("sleep");
            command.arg("infinity").env_clear().current_dir("/");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let owner = confine::Owner::own()?;
            // SAFETY: `keeper` makes async-signal-safe system calls only.
            unsafe {
                command.pre_exec(move || confine::keeper(&owner));
            }
            let child = self.fork_into(
                new_namespace,
                || command.spawn(),
                |mut child| {
                    let _ = child.kill();
                    let _ = child.wait();
                },
            )?;
            let namespace = File::open(format!("/proc/{}/ns/pid", child.id()))?;
            self.zygotes = Some((namespace.into(), child));
        }
        self.zygotes
            .as_ref()
            .map(|(namespace, _)| namespace)
            .ok_or_else(|| io::Error::other("no namespace of zygotes"))
    }
}

fn new_namespace() -> io::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWPID)?)
}
