//! A program that a child of ours executes, and the fork that does so.

use std::ffi::{CString, OsStr, c_char};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use mayfly_host::cgroup::{Entrance, Started, clone_into};
use mayfly_host::pidfd;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use super::confine::{self, Child, Step};

/// Program to execute, and everything it is to have.
#[derive(Debug)]
pub struct Program {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    /// Standard input and output.
    null: OwnedFd,
    stderr: OwnedFd,
    /// Each with the number that it is to have. All are above all of these numbers, so that none is
    /// in another's way.
    descriptors: Vec<(OwnedFd, RawFd)>,
    cgroup: Entrance,
    child: Child,
}

impl Program {
    /// Prepares to execute `program`, which is looked for in our `PATH` when it is only a name,
    /// with `arguments` and `environment`, the descriptors of `inherit` at the given numbers above
    /// 2, `stderr` as its standard error and no other descriptor, in `cgroup` and as `child` says.
    ///
    /// # Errors
    /// When it is not found, a text has a NUL, or there are too many open descriptors.
    pub fn new(
        program: &str,
        arguments: &[String],
        environment: &[(&str, String)],
        (inherit, stderr): (Vec<(OwnedFd, RawFd)>, OwnedFd),
        (cgroup, child): (Entrance, Child),
    ) -> io::Result<Self> {
        let text = |text: &[u8]| CString::new(text).map_err(io::Error::other);
        let path = find(program, std::env::var_os("PATH").as_deref())?;
        let arguments = [program].into_iter().chain(arguments.iter().map(String::as_str));
        let environment =
            environment.iter().map(|(name, value)| text(format!("{name}={value}").as_bytes()));
        let first =
            1 + inherit.iter().map(|(_, number)| *number).max().unwrap_or(libc::STDERR_FILENO);
        let descriptors = inherit
            .into_iter()
            .map(|(descriptor, number)| Ok((duplicate(&descriptor, first)?, number)));
        Ok(Self {
            path: text(path.as_os_str().as_bytes())?,
            arguments: arguments
                .map(|argument| text(argument.as_bytes()))
                .collect::<io::Result<_>>()?,
            environment: environment.collect::<io::Result<_>>()?,
            null: File::options().read(true).write(true).open("/dev/null")?.into(),
            stderr,
            descriptors: descriptors.collect::<io::Result<_>>()?,
            cgroup,
            child,
        })
    }

    /// Makes a process that is about to execute it.
    ///
    /// # Errors
    /// When there cannot be one.
    pub fn start(&self) -> io::Result<Starting> {
        let (report, report_end) = io::pipe()?;
        let first = 1 + self
            .descriptors
            .iter()
            .map(|(_, number)| *number)
            .max()
            .unwrap_or(libc::STDERR_FILENO);
        let report_end = duplicate(&report_end.into(), first)?;
        Ok(Starting { started: Some(self.fork(&report_end)?), report: Some(report.into()) })
    }

    /// Makes a child in its cgroup where the kernel can (clone(2), `CLONE_INTO_CGROUP`: v2, Linux
    /// 5.7), so that it needs not move there: the kernel holds up all forks of the host meanwhile
    /// (`cgroup-v2.rst`, `favordynmods`). Else it enters by itself.
    fn fork(&self, report: &OwnedFd) -> io::Result<Started> {
        let pointers = |texts: &[CString]| -> Vec<*const c_char> {
            texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (arguments, environment) = (pointers(&self.arguments), pointers(&self.environment));
        let run = |in_its_cgroup: bool| -> ! {
            let (step, error) = self.run(in_its_cgroup, &arguments, &environment);
            let said = report_of(step, &error);
            // SAFETY: writes bytes that outlive the call, and ends this process without running
            // anything of its parent's.
            unsafe {
                libc::write(report.as_raw_fd(), said.as_ptr().cast(), said.len());
                libc::_exit(127)
            }
        };
        if let Some(folder) = &self.cgroup.folder {
            // SAFETY: `run` makes async-signal-safe system calls only, and never returns.
            match unsafe { clone_into(folder.as_fd(), 0) } {
                Ok(Some(started)) => return Ok(started),
                Ok(None) => run(true),
                // A kernel or a container's seccomp filter that knows no such call, or a right that
                // only a move has.
                Err(error) => {
                    tracing::debug!(%error, "cannot make a process in its cgroup; it moves there");
                }
            }
        }
        // SAFETY: as above.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => run(false),
            pid => {
                let pid = pid.cast_unsigned();
                // Nobody has waited for it, so that the id is its own.
                pidfd::open(pid).map(|pidfd| Started { pid, pidfd }).inspect_err(|_| {
                    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                    let _ = nix::sys::wait::waitpid(pid, None);
                })
            }
        }
    }

    /// Becomes the program; in a child between fork and exec, which makes system calls only.
    fn run(
        &self,
        in_its_cgroup: bool,
        arguments: &[*const c_char],
        environment: &[*const c_char],
    ) -> (Step, io::Error) {
        let streams = [(&self.null, 0), (&self.null, 1), (&self.stderr, 2)];
        if let Err(error) = place(streams.into_iter()) {
            return (Step::Streams, error);
        }
        let files = if in_its_cgroup { &[][..] } else { &self.cgroup.files };
        if let Err(failed) = confine::child(&self.child, files) {
            return failed;
        }
        if let Err(error) =
            place(self.descriptors.iter().map(|(descriptor, number)| (descriptor, *number)))
        {
            return (Step::Descriptors, error);
        }
        // SAFETY: all texts are NUL-terminated, both lists end with a null pointer, and all outlive
        // the call.
        unsafe { libc::execve(self.path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
        (Step::Execute, io::Error::last_os_error())
    }
}

/// A child on its way to its program. Dropping it ends the child.
///
/// The way may be long: in a cgroup that is idle or bounded, the child waits for its turn.
#[derive(Debug)]
pub struct Starting {
    started: Option<Started>,
    report: Option<OwnedFd>,
}

impl Starting {
    /// Waits until it executes its program. Needs a tokio runtime.
    ///
    /// # Errors
    /// What failed in it; there is no process then.
    pub async fn executed(mut self) -> io::Result<Started> {
        let report = self.report.take().ok_or(io::ErrorKind::NotFound)?;
        let mut report = Receiver::from_owned_fd(report)?;
        // The other end closes as the program is executed.
        let mut said = [0; REPORT];
        match report.read_exact(&mut said).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.started.take().ok_or_else(|| io::ErrorKind::NotFound.into())
            }
            outcome => Err(outcome.map_or_else(|error| error, |_| read_report(said))),
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(started) = self.started.take() {
            // Not here: it dies when it has its turn.
            let end = || started.end();
            drop(std::thread::Builder::new().name("vmm-reaper".into()).spawn(end));
        }
    }
}

/// Gives descriptors their numbers, under which they stay open at exec.
fn place<'a>(mut descriptors: impl Iterator<Item = (&'a OwnedFd, RawFd)>) -> io::Result<()> {
    descriptors.try_for_each(|(descriptor, number)| {
        // SAFETY: both are numbers; what was open under the second is nothing that a child still
        // needs.
        match unsafe { libc::dup2(descriptor.as_raw_fd(), number) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    })
}

/// A copy with a number of at least `first`, which closes at exec.
fn duplicate(descriptor: &OwnedFd, first: RawFd) -> io::Result<OwnedFd> {
    let number = nix::fcntl::fcntl(descriptor, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(first))?;
    // SAFETY: the kernel just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Length of a child's report in bytes: the step and the error number.
const REPORT: usize = 8;

fn report_of(step: Step, error: &io::Error) -> [u8; REPORT] {
    let errno = error.raw_os_error().unwrap_or(0);
    let at = Step::ALL.iter().position(|known| *known == step).unwrap_or(Step::ALL.len());
    (((at as u64) << 32) | u64::from(errno.cast_unsigned())).to_ne_bytes()
}

fn read_report(said: [u8; REPORT]) -> io::Error {
    let said = u64::from_ne_bytes(said);
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is the error number")]
    let error = io::Error::from_raw_os_error((said as u32).cast_signed());
    let step = Step::ALL.get((said >> 32) as usize).map_or("start", |step| step.what());
    io::Error::new(error.kind(), format!("cannot {step}: {error}"))
}

/// The path of a program; of a name, the first in the folders of `path` that can be executed
/// (execvp(3)).
fn find(program: &str, path: Option<&OsStr>) -> io::Result<PathBuf> {
    if program.contains('/') {
        return Ok(program.into());
    }
    let executable = |path: &Path| {
        nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok() && path.is_file()
    };
    let folders = path.unwrap_or(OsStr::new("/usr/local/bin:/usr/bin:/bin"));
    let found = std::env::split_paths(folders)
        .map(|folder| folder.join(program))
        .find(|path| executable(path));
    found.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("{program} is not in the PATH"))
    })
}

#[cfg(test)]
mod tests;
