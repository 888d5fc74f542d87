//! VMM processes: started from one long-lived thread, confined before they run their first instruction, never outliving us.

use std::fmt;
use std::fs::File;
use std::io;
use std::io::{Read, Seek};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;

use command_fds::{CommandFdExt, FdMapping};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

/// Under which identity and limits a VMM runs.
#[derive(Debug, Default)]
pub struct Confinement {
    /// User and group id of the process; `None` keeps ours.
    pub uid: Option<u32>,
    /// A supplementary group, for a device that the process has to open itself.
    pub group: Option<u32>,
    /// `tasks` (cgroup v1) or `cgroup.procs` (v2) files, opened for writing; the process enters them before it executes.
    pub cgroups: Vec<OwnedFd>,
    /// Keeps the right to change its user and group, and no other: for a zygote, whose children become other users.
    pub may_change_user: bool,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit(pub ExitStatus);

impl Exit {
    /// The code a shell would report: the exit code, or 128 + the signal's number.
    pub fn shell_code(self) -> i32 {
        self.0.code().or_else(|| self.0.signal().map(|signal| 128 + signal)).unwrap_or(1)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.code(), self.0.signal()) {
            (Some(code), _) => write!(f, "exit code {code}"),
            (None, Some(signal)) => {
                let name = nix::sys::signal::Signal::try_from(signal).map_or("unknown", |s| s.as_str());
                write!(f, "signal {signal} {name}")
            }
            (None, None) => f.write_str("unknown status"),
        }
    }
}

/// What can go wrong with a VMM process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// `fork` or `exec` failed.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// The cause.
        source: io::Error,
    },
    /// The process could not be signalled or waited for.
    #[error("cannot {action} the VMM process {pid}: {source}")]
    Control {
        /// `watch`, `kill` or `wait for`.
        action: &'static str,
        /// Its process id.
        pid: u32,
        /// The cause.
        source: io::Error,
    },
}

type Job = Box<dyn FnOnce() + Send>;

/// `PR_SET_PDEATHSIG` fires when the *thread* that forked dies (prctl(2)), so all VMMs are forked by one thread that lives
/// as long as the process.
fn spawner() -> &'static mpsc::Sender<Job> {
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new().name("vmm-spawner".into());
        // A host without room for one thread cannot start VMs either; the send below then fails as a spawn error.
        let _ = thread.spawn(move || {
            for job in jobs {
                job();
            }
        });
        sender
    })
}

/// A started VMM process. Dropping it kills the process; [`VmmProcess::kill`] also waits for it without blocking.
#[derive(Debug)]
pub struct VmmProcess {
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
    stderr: File,
    ended: Option<Exit>,
}

impl VmmProcess {
    /// Starts `program` with `args` and `env` (nothing else in its environment), the descriptors of `inherit` at the given
    /// numbers and no other above 2, standard input and output on `/dev/null`.
    ///
    /// # Errors
    /// [`ProcessError::Start`] when fork, confinement or exec fails.
    pub async fn start(
        program: &str,
        args: Vec<String>,
        env: Vec<(&'static str, String)>,
        inherit: Vec<(OwnedFd, RawFd)>,
        confinement: Confinement,
    ) -> Result<Self, ProcessError> {
        let failed = |source: io::Error| ProcessError::Start { program: program.to_owned(), source };
        let stderr = stderr_file().map_err(failed)?;
        let child_stderr = stderr.try_clone().map_err(failed)?;

        let mut command = Command::new(program);
        command
            .args(args)
            .env_clear()
            .envs(env)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(child_stderr));
        let mappings = inherit.into_iter().map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect();
        let parent = std::process::id();
        let cgroups: Vec<RawFd> = confinement.cgroups.iter().map(AsRawFd::as_raw_fd).collect();
        let (uid, group) = (confinement.uid, confinement.group);
        let may_change_user = confinement.may_change_user;
        // SAFETY: the closure runs between fork and exec and only makes async-signal-safe system calls; it allocates
        // nothing and takes no lock. It is registered before the descriptor mapping, so `cgroups` are still open in it.
        unsafe {
            command.pre_exec(move || confine(parent, &cgroups, uid, group, may_change_user));
        }
        command.fd_mappings(mappings).map_err(|e| failed(io::Error::other(e)))?;

        let (reply, started) = oneshot::channel();
        let job: Job = Box::new(move || {
            let result = command.spawn();
            // The mapped descriptors live in the command: close our copies before anyone sees the child.
            drop(command);
            drop(confinement);
            if let Err(Ok(mut orphan)) = reply.send(result) {
                // The caller was cancelled meanwhile.
                let _ = orphan.kill();
                let _ = orphan.wait();
            }
        });
        spawner().send(job).map_err(|_| failed(io::Error::other("the spawner thread could not be started")))?;
        let child = started.await.map_err(|_| failed(io::Error::other("the spawner thread ended")))?.map_err(failed)?;
        Self::watch(child, stderr)
    }

    fn watch(mut child: Child, stderr: File) -> Result<Self, ProcessError> {
        // From here on the process is waited for through its pidfd; dropping a Child does nothing to it.
        Self::adopt(child.id(), stderr).inspect_err(|_| {
            let _ = child.kill();
            let _ = child.wait();
        })
    }

    /// Takes over `pid`, a child of this process that somebody else made and nobody else waits for, with the file that is
    /// its standard error.
    ///
    /// # Errors
    /// [`ProcessError::Control`] when there is no such process.
    pub fn adopt(pid: u32, stderr: File) -> Result<Self, ProcessError> {
        // SAFETY: an OwnedFd is open, and the same descriptor, for all its life.
        let pidfd = pidfd_open(pid).and_then(|fd| unsafe { AsyncFd::register(fd) }.map_err(Into::into));
        match pidfd {
            Ok(pidfd) => Ok(Self { pid, pidfd, stderr, ended: None }),
            Err(source) => Err(ProcessError::Control { action: "watch", pid, source }),
        }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Resolves when the process has ended; it is reaped then.
    ///
    /// # Errors
    /// [`ProcessError::Control`] when waiting fails.
    pub async fn exited(&mut self) -> Result<Exit, ProcessError> {
        loop {
            if let Some(exit) = self.try_exited()? {
                return Ok(exit);
            }
            let pid = self.pid();
            let mut ready = self.pidfd.readable().await.map_err(|source| ProcessError::Control {
                action: "wait for",
                pid,
                source,
            })?;
            ready.clear_ready();
        }
    }

    fn try_exited(&mut self) -> Result<Option<Exit>, ProcessError> {
        if self.ended.is_none() {
            self.ended = self.wait(WaitPidFlag::WNOHANG)?;
        }
        Ok(self.ended)
    }

    /// By process id, which stays ours until the process is reaped here: a wait on the pidfd, which does not block, would not
    /// either (pidfd_open(2), `PIDFD_NONBLOCK`).
    fn wait(&self, flags: WaitPidFlag) -> Result<Option<Exit>, ProcessError> {
        let failed = |errno: Errno| ProcessError::Control { action: "wait for", pid: self.pid, source: errno.into() };
        loop {
            match waitid(Id::Pid(Pid::from_raw(self.pid as i32)), flags | WaitPidFlag::WEXITED) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(Some(Exit(ExitStatus::from_raw((code & 0xff) << 8)))),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Some(Exit(ExitStatus::from_raw(signal as i32)))),
                Ok(_) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }

    fn signal_kill(&self) -> io::Result<()> {
        // SAFETY: pidfd_send_signal(2) on an open pidfd; no siginfo is passed.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.get_ref().as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if sent == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Kills the process and waits until the kernel has taken down its address space. Idempotent.
    ///
    /// # Errors
    /// [`ProcessError::Control`] when it can be neither signalled nor waited for.
    pub async fn kill(&mut self) -> Result<Exit, ProcessError> {
        if let Some(exit) = self.try_exited()? {
            return Ok(exit);
        }
        let pid = self.pid();
        self.signal_kill().map_err(|source| ProcessError::Control { action: "kill", pid, source })?;
        self.exited().await
    }

    /// The last line the process wrote to standard error, bounded to 1 KiB.
    pub fn last_words(&mut self) -> String {
        let mut text = Vec::new();
        let length = self.stderr.metadata().map_or(0, |m| m.len());
        let _ = self.stderr.seek(io::SeekFrom::Start(length.saturating_sub(1024)));
        let _ = (&self.stderr).take(1024).read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text);
        text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default().trim().to_owned()
    }
}

impl Drop for VmmProcess {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.signal_kill();
            let _ = self.wait(WaitPidFlag::empty());
        }
    }
}

/// A file that a VMM has as its standard error.
pub(super) fn stderr_file() -> io::Result<File> {
    Ok(File::from(memfd_create("vmm-stderr", MFdFlags::MFD_CLOEXEC)?))
}

fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: pidfd_open(2) takes no pointers; the child is ours and unreaped, so the pid cannot have been reused.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, libc::PIDFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned this descriptor to us alone; it fits an int by definition.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Runs in the child between fork and exec.
fn confine(
    parent: u32,
    cgroups: &[RawFd],
    uid: Option<u32>,
    group: Option<u32>,
    may_change_user: bool,
) -> io::Result<()> {
    for &cgroup in cgroups {
        // "0" means the writer itself; a single thread that moves itself needs no system-wide grace period (v1 `tasks`).
        // SAFETY: the buffer is a static one-byte string and the descriptor is open.
        if unsafe { libc::write(cgroup, c"0".as_ptr().cast(), 1) } != 1 {
            return Err(io::Error::last_os_error());
        }
    }
    let check = |result: libc::c_int| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: plain system calls on the calling process; setgroups reads as many entries as the slice has.
    unsafe {
        if let Some(uid) = uid {
            check(libc::setgroups(group.iter().len(), group.as_slice().as_ptr()))?;
            check(libc::setresgid(uid, uid, uid))?;
            check(libc::prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(may_change_user)))?;
            check(libc::setresuid(uid, uid, uid))?;
            if may_change_user {
                keep_only_user_changes()?;
            }
        }
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        // After setresuid, which clears it (prctl(2)).
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        // The parent may have died before the line above.
        if libc::getppid() as u32 != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        // Our signal mask must not leak: tokio or a caller may have blocked signals in the spawning thread.
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        check(libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()))?;
        // Out of our process group: a Ctrl-C in the terminal is ours to handle, not the VMM's.
        check(libc::setpgid(0, 0))?;
    }
    Ok(())
}

/// Reduces the capabilities to CAP_SETUID and CAP_SETGID, and keeps these over exec (capabilities(7), ambient set).
fn keep_only_user_changes() -> io::Result<()> {
    const CAP_SETGID: u32 = 6;
    const CAP_SETUID: u32 = 7;
    let bits = 1_u32 << CAP_SETGID | 1 << CAP_SETUID;
    // `struct __user_cap_header_struct`, version 3 of the interface, this process; then twice effective, permitted,
    // inheritable (capset(2)).
    let header = [0x2008_0522_u32, 0];
    let sets = [bits, bits, bits, 0, 0, 0];
    // SAFETY: capset reads the two structs, which outlive the call; prctl takes numbers.
    let failed = unsafe {
        libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) != 0
            || [CAP_SETGID, CAP_SETUID].iter().any(|cap| {
                libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, *cap as libc::c_ulong, 0, 0) != 0
            })
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}
