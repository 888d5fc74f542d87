//! The one thread that starts VMM processes, and the PID namespaces they start in.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::{Arc, OnceLock, mpsc};

use mayfly_host::cgroup::Started;
use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::oneshot;

use super::program::{Program, Starting};
use super::zygote_namespace::ZygoteNamespace;

/// PID namespace in which a process starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PidNamespace {
    /// Namespace of its own, in which it is process 1: it sees itself only.
    Own,
    /// Namespace of its own, in which it is not process 1. Its forks start in new ones below it.
    Zygote,
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

/// Starts `program` in a PID namespace; with that namespace where it must be kept for forks. What it
/// was given is closed here when this returns.
///
/// # Errors
/// When fork, namespaces, confinement or exec fail.
pub async fn spawn(
    program: Program,
    namespace: PidNamespace,
) -> io::Result<(Started, Option<Arc<ZygoteNamespace>>)> {
    let (reply, started) = oneshot::channel();
    let job: Job = Box::new(move |namespaces| {
        let result = namespaces.spawn(&program, namespace);
        // Our copies of its descriptors close before anyone sees the child.
        drop(program);
        // A caller that was cancelled meanwhile takes no child, which ends then.
        drop(reply.send(result));
    });
    spawner().send(job).map_err(|_| io::Error::other("the spawner thread could not be started"))?;
    let (started, namespace) =
        started.await.map_err(|_| io::Error::other("the spawner thread ended"))??;
    // Not by the thread, which others wait for.
    Ok((started.executed().await?, namespace))
}

/// The spawner thread's namespaces.
#[derive(Default)]
struct Namespaces {
    /// The one this process is in.
    own: Option<OwnedFd>,
}

impl Namespaces {
    fn spawn(
        &mut self,
        program: &Program,
        namespace: PidNamespace,
    ) -> io::Result<(Starting, Option<Arc<ZygoteNamespace>>)> {
        let start = || program.start();
        match namespace {
            PidNamespace::Own => Ok((self.fork_into(new_namespace, start, drop)?, None)),
            PidNamespace::Zygote => {
                let end = |mut first: Child| {
                    let _ = first.kill();
                    let _ = first.wait();
                };
                let namespace =
                    ZygoteNamespace::new(|spawn| self.fork_into(new_namespace, spawn, end))?;
                let enter = || Ok(setns(namespace.as_file(), CloneFlags::CLONE_NEWPID)?);
                let started = self.fork_into(enter, start, drop)?;
                Ok((started, Some(Arc::new(namespace))))
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
}

fn new_namespace() -> io::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWPID)?)
}
