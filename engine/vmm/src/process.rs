//! VMM processes: started from one long-lived thread, confined before they run their first
//! instruction, never outliving us.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;

use mayfly_host::cgroup::Entrance;
use mayfly_host::pidfd;
use mayfly_protocol::Printable;
use mayfly_vmm_contract::confine::MAX_OPEN_FILES;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;

use super::children;
use super::jail::{self, JailRoot, PidNamespace, Rlimits, ZygoteNamespace};

/// Identity and limits under which a VMM runs.
#[derive(Debug)]
pub struct Confinement {
    /// User and group id of the process; `None` keeps ours.
    pub uid: Option<u32>,
    /// Cgroup of the process, in which it is before it executes; none of ours by default.
    pub cgroup: Entrance,
    /// Largest file it may write, in bytes: its disk overlay, and whatever else it can reach
    /// (`RLIMIT_FSIZE`).
    pub file_bytes: u64,
    /// Most threads of its user (`RLIMIT_NPROC`), `u32::MAX` for no bound; the cgroup has one of
    /// its own. Of a zygote the kernel counts those of its forks as well.
    pub threads: u32,
    /// Most open descriptors of it (`RLIMIT_NOFILE`).
    pub open_files: u64,
}

impl Default for Confinement {
    fn default() -> Self {
        Self {
            uid: None,
            cgroup: Entrance::default(),
            file_bytes: u64::MAX,
            threads: 128,
            open_files: MAX_OPEN_FILES,
        }
    }
}

/// What a process starts in.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    /// Root directory of the process, with namespaces of its own.
    pub jail: Arc<JailRoot>,
    /// PID namespace of the process.
    pub pids: PidNamespace,
    /// Whether it keeps other processes off its processor cores, where the kernel can.
    pub own_cores: bool,
}

/// End of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit(pub ExitStatus);

impl Exit {
    /// Returns the code a shell would report: the exit code, or 128 + the signal's number.
    pub fn shell_code(self) -> i32 {
        self.0.code().or_else(|| self.0.signal().map(|signal| 128 + signal)).unwrap_or(1)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.code(), self.0.signal()) {
            (Some(code), _) => write!(f, "exit code {code}"),
            (None, Some(signal)) => {
                let name =
                    nix::sys::signal::Signal::try_from(signal).map_or("unknown", |s| s.as_str());
                write!(f, "signal {signal} {name}")
            }
            (None, None) => f.write_str("unknown status"),
        }
    }
}

/// Error of a VMM process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// `fork` or `exec` failed.
    #[error("cannot start {program}: {cause}")]
    Start {
        /// Path of the program.
        program: String,
        /// Cause of the failure.
        cause: io::Error,
    },
    /// What is said to be a VMM is no process that this one could take over.
    #[error("cannot take over a process as a VMM: {cause}")]
    NotOurs {
        /// Reason why it is none.
        cause: io::Error,
    },
    /// The process could not be signalled or waited for.
    #[error("cannot {action} process {pid}: {cause}")]
    Control {
        /// `watch`, `bound`, `kill` or `wait for`.
        action: &'static str,
        /// Process id.
        pid: u32,
        /// Cause of the failure.
        cause: io::Error,
    },
}

/// A started VMM process. Dropping it kills the process; [`VmmProcess::kill`] also waits for it
/// without blocking.
#[derive(Debug)]
pub struct VmmProcess {
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
    stderr: File,
    ended: Option<Exit>,
    /// Of a zygote and its forks: when the last of them is gone, so is the namespace.
    namespace: Option<Arc<ZygoteNamespace>>,
}

impl VmmProcess {
    /// Starts `program` with `args` and `env` (nothing else in its environment), the descriptors of
    /// `inherit` at the given numbers and no other above 2, standard input and output on
    /// `/dev/null`. It sees the host as it is.
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
        Self::start_in(None, program, args, env, inherit, confinement).await
    }

    /// As [`VmmProcess::start`], with namespaces and a root directory of its own.
    pub(super) async fn start_in(
        surroundings: Option<Surroundings>,
        program: &str,
        args: Vec<String>,
        env: Vec<(&'static str, String)>,
        inherit: Vec<(OwnedFd, RawFd)>,
        confinement: Confinement,
    ) -> Result<Self, ProcessError> {
        let failed = |cause: io::Error| ProcessError::Start { program: program.to_owned(), cause };
        let (stderr, child_stderr) = stderr_file().map_err(failed)?;
        let pids =
            surroundings.as_ref().map_or(PidNamespace::Own, |surroundings| surroundings.pids);
        let own_cores = surroundings.as_ref().is_some_and(|surroundings| surroundings.own_cores);
        let child = jail::Child {
            own_cores,
            jail: surroundings.map(|surroundings| surroundings.jail),
            uid: confinement.uid,
            rlimits: Rlimits {
                file_bytes: confinement.file_bytes,
                threads: bound_of(confinement.threads),
                open_files: confinement.open_files,
            },
            owner: jail::Owner::own().map_err(failed)?,
        };
        let descriptors = (inherit, child_stderr);
        let program =
            jail::Program::new(program, &args, &env, descriptors, (confinement.cgroup, child));
        let (started, namespace) =
            jail::spawn(program.map_err(failed)?, pids).await.map_err(failed)?;
        let pid = started.pid;
        Self::adopt(started.pidfd, stderr, namespace).inspect_err(|error| {
            // Nobody has it and has waited for it, so that the id is its own.
            if matches!(error, ProcessError::NotOurs { .. }) {
                let pid = Pid::from_raw(pid.cast_signed());
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                let _ = nix::sys::wait::waitpid(pid, None);
            }
        })
    }

    /// Takes over the process behind `pidfd` (pidfd_open(2)) with the file that is its standard
    /// error, and keeps the PID namespace that it is in. Whatever `pidfd` is, a process is taken
    /// over only if it is a child of this process, and neither reaped nor taken over before; any
    /// other is left alone.
    ///
    /// # Errors
    /// [`ProcessError::NotOurs`] for any other process; [`ProcessError::Control`] when it cannot be
    /// watched.
    pub fn adopt(
        pidfd: OwnedFd,
        stderr: File,
        namespace: Option<Arc<ZygoteNamespace>>,
    ) -> Result<Self, ProcessError> {
        let pid = children::child_behind(pidfd.as_fd())
            .map_err(|cause| ProcessError::NotOurs { cause })?;
        if !children::adopt(pid) {
            let cause = io::Error::other(format!("process {pid} is another VMM's"));
            return Err(ProcessError::NotOurs { cause });
        }
        // SAFETY: an OwnedFd is open, and the same descriptor, for all its life.
        match unsafe { AsyncFd::register(pidfd) } {
            Ok(pidfd) => Ok(Self { pid, pidfd, stderr, ended: None, namespace }),
            Err(e) => {
                let (pidfd, cause) = e.into_parts();
                let _ = pidfd::kill(pidfd.as_fd());
                children::wait_and_reap(pid);
                Err(ProcessError::Control { action: "watch", pid, cause })
            }
        }
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the PID namespace of a zygote or of its fork, in which further forks are.
    pub(super) fn namespace(&self) -> Option<Arc<ZygoteNamespace>> {
        self.namespace.clone()
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
            let mut ready = self.pidfd.readable().await.map_err(|cause| ProcessError::Control {
                action: "wait for",
                pid,
                cause,
            })?;
            ready.clear_ready();
        }
    }

    fn try_exited(&mut self) -> Result<Option<Exit>, ProcessError> {
        if self.ended.is_none() {
            self.ended = self.reap()?;
        }
        Ok(self.ended)
    }

    /// By process id, which stays ours until the process is reaped here: a wait on the pidfd, which
    /// does not block, would not either (pidfd_open(2), `PIDFD_NONBLOCK`).
    fn reap(&self) -> Result<Option<Exit>, ProcessError> {
        match children::reap(self.pid) {
            Ok(WaitStatus::Exited(_, code)) => {
                Ok(Some(Exit(ExitStatus::from_raw((code & 0xff) << 8))))
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                Ok(Some(Exit(ExitStatus::from_raw(signal as i32))))
            }
            Ok(_) => Ok(None),
            Err(errno) => Err(ProcessError::Control {
                action: "wait for",
                pid: self.pid,
                cause: errno.into(),
            }),
        }
    }

    /// Bounds the largest file it may write, in bytes (prlimit(2)). Of a process of another user
    /// this takes CAP_SYS_RESOURCE.
    ///
    /// # Errors
    /// [`ProcessError::Control`] when the kernel refuses, or the process is gone.
    pub fn bound_files(&self, most: u64) -> Result<(), ProcessError> {
        let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
        let pid = self.pid.cast_signed();
        // SAFETY: reads one struct that outlives the call; the process is ours and not reaped, so
        // the id is its own.
        match unsafe {
            libc::prlimit(pid, libc::RLIMIT_FSIZE, &raw const limit, std::ptr::null_mut())
        } {
            0 => Ok(()),
            _ => Err(ProcessError::Control {
                action: "bound",
                pid: self.pid,
                cause: io::Error::last_os_error(),
            }),
        }
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
        pidfd::kill(self.pidfd.get_ref().as_fd()).map_err(|cause| ProcessError::Control {
            action: "kill",
            pid,
            cause,
        })?;
        self.exited().await
    }

    /// Returns the last line the process wrote to standard error, bounded to 1 KiB, without what
    /// steers a terminal.
    pub fn last_words(&mut self) -> String {
        last_line(&self.stderr)
    }
}

impl Drop for VmmProcess {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = pidfd::kill(self.pidfd.get_ref().as_fd());
            children::wait_and_reap(self.pid);
        }
    }
}

fn bound_of(threads: u32) -> u64 {
    if threads == u32::MAX { libc::RLIM_INFINITY } else { u64::from(threads) }
}

/// Most bytes that a VMM writes to its standard error; further writes fail. Usually it is a line.
const STDERR_BYTES: u64 = 256 << 10;

/// A file that a VMM has as its standard error. It cannot grow (memfd_create(2), "File sealing"),
/// whatever the largest file is that the VMM may write.
///
/// Opened for us, for reading, and for the VMM: their status flags and positions are apart.
pub(super) fn stderr_file() -> io::Result<(File, OwnedFd)> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create("vmm-stderr", flags)?);
    file.set_len(STDERR_BYTES)?;
    let size = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(size))?;
    Ok((mayfly_host::descriptors::open_again(&file)?, file.into()))
}

/// The last line in such a file that is not empty, of the last 1 KiB that was written.
fn last_line(file: &File) -> String {
    let mut text = vec![0; usize::try_from(STDERR_BYTES).unwrap_or(0)];
    let read = file.read_at(&mut text, 0).unwrap_or(0);
    // What was never written is zeros.
    let end = text[..read].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let text = String::from_utf8_lossy(&text[end.saturating_sub(1024)..end]);
    let line = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default().trim();
    Printable(line).to_string()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    #[ignore = "needs root"]
    async fn a_vmm_that_writes_errors_without_end_fills_no_memory() {
        let script = "head -c 1000000 /dev/zero >&2; echo more >&2 || exit 7";
        let arguments = vec!["-c".to_owned(), script.to_owned()];
        let env = vec![("PATH", "/usr/bin:/bin".to_owned())];
        let started = VmmProcess::start("sh", arguments, env, Vec::new(), Confinement::default());
        let mut process = started.await.unwrap();
        let exit = process.exited().await.unwrap();
        assert_eq!(exit.to_string(), "exit code 7");
        assert_eq!(process.stderr.metadata().unwrap().len(), STDERR_BYTES);
    }

    #[test]
    fn its_last_words_are_what_it_wrote_last() {
        let (file, child_end) = stderr_file().unwrap();
        let mut child_end = File::from(child_end);
        child_end.write_all(&[b'x'; 5000]).unwrap();
        child_end.write_all(b"\nthe cause\n\n").unwrap();
        assert_eq!(last_line(&file), "the cause");
    }
}
