//! Runs a host program in its own mount and PID namespace, so that nothing of it outlives the run;
//! as the host's root, or confined.
//!
//! What a recipe or a package says is run confined: as root of a user namespace without a right on
//! the host, in a root directory that has the host's `/usr` and `/etc`, which it cannot write, a few
//! devices, and the paths that it is given. It keeps the host's network.
//!
//! `unshare(1)` with `--kill-child` makes the program the first process of a PID namespace: when
//! that dies the kernel kills every descendant, and the private mounts go with the last of them.
//! `PR_SET_PDEATHSIG` does the same when the calling thread dies, so that even a `kill -9` of the
//! caller leaves no process and no mount.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{PipeReader, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Error, IoContext as _};
use crate::userns;
use mayfly_protocol::Printable;

/// Makes the root directory of a confined program, and runs it.
const CONFINE: &str = include_str!("hooks/confine.sh");
/// Lines of output kept for an error message.
const TAIL_LINES: usize = 60;
/// How long one wait for output lasts before the cancel flag is looked at, in milliseconds.
const TICK_MS: u16 = 100;
/// Most bytes read once everything is dead. A pipe of the largest size that the kernel allows by
/// default has no more (pipe(7)); what still comes is from a process outside, which may go on.
const LAST_BYTES: usize = 1 << 20;
/// How long the end of a namespace is waited for whose first process cannot be named.
const UNNAMED_END: Duration = Duration::from_secs(2);
/// Longest line kept; the rest of a longer one is dropped.
const MAX_LINE: usize = 4096;
/// Search path of children: sbin too, wherever the caller's path ends.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Result of a program that ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit status of the program.
    pub status: ExitStatus,
    /// The last lines of its output and error output.
    pub tail: Vec<String>,
}

impl Finished {
    /// Returns the last lines that say something, on one line.
    pub fn detail(&self) -> String {
        let errors: Vec<_> = self
            .tail
            .iter()
            .filter(|l| l.starts_with("E:") || l.contains("rror"))
            .cloned()
            .collect();
        let lines = if errors.is_empty() { self.tail.clone() } else { errors };
        let from = lines.len().saturating_sub(4);
        match lines[from..].join("; ") {
            text if text.is_empty() => "it printed nothing".into(),
            text => text,
        }
    }
}

/// Confines of a program.
#[derive(Debug)]
pub(crate) struct Confinement {
    user: OwnedFd,
    stage: PathBuf,
    writable: Vec<PathBuf>,
}

impl Confinement {
    /// Makes a user namespace of its own, with leave to write the folders and files `writable`, which must
    /// belong to its root (see [`userns::give`]). They have the paths that they have on the host,
    /// where nothing of theirs but what they hold is seen. `stage` is an empty folder.
    ///
    /// # Errors
    /// [`Error::UserNamespace`] when the kernel refuses it.
    pub fn new(stage: &Path, writable: &[&Path]) -> Result<Self, Error> {
        let writable = writable.iter().map(|path| (*path).to_owned()).collect();
        Ok(Self { user: userns::make()?, stage: stage.to_owned(), writable })
    }

    /// The arguments of [`CONFINE`], up to the program.
    fn arguments(&self) -> Vec<OsString> {
        let mut arguments = vec![
            self.user.as_raw_fd().to_string().into(),
            self.stage.clone().into(),
            self.writable.len().to_string().into(),
        ];
        arguments.extend(self.writable.iter().map(|path| path.clone().into()));
        arguments
    }
}

/// A program to run.
#[derive(Debug)]
pub struct Sandbox(Command);

impl Sandbox {
    /// Creates a run of `program` in new namespaces, as the host's root.
    pub fn new(program: &str) -> Self {
        let mut sandbox = Self::unshare(&[]);
        sandbox.0.arg(program);
        sandbox
    }

    /// Creates a run of `program` as nobody on the host.
    pub(crate) fn confined(program: &str, confinement: Confinement) -> Self {
        let mut sandbox = Self::unshare(&["--ipc", "--uts", "--cgroup"]);
        sandbox.0.args(["sh", "-c", CONFINE, "confine"]).args(confinement.arguments()).arg(program);
        // SAFETY: between fork and exec one system call is made, and an io::Error from a number,
        // which does not allocate.
        unsafe {
            sandbox.0.pre_exec(move || {
                fcntl(&confinement.user, FcntlArg::F_SETFD(FdFlag::empty()))?;
                Ok(())
            });
        }
        sandbox
    }

    fn unshare(namespaces: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]);
        command.args(namespaces).arg("--");
        command
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", "/root")
            .stdin(Stdio::null());
        // The proxy settings of the caller are the only part of its environment that the package
        // manager needs.
        for name in
            ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"]
        {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        Self(command)
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.0.args(args);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Runs the program to its end. `on_output` gets every line, made printable, and `None` about ten
    /// times a second.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `cancel` was set (everything is dead then), or a failure to start
    /// the program.
    pub fn run(
        mut self,
        cancel: &AtomicBool,
        mut on_output: impl FnMut(Option<&str>),
    ) -> Result<Finished, Error> {
        let here = Path::new("unshare");
        let (reader, writer) = std::io::pipe().context("make a pipe for", here)?;
        self.0.stdout(writer.try_clone().context("make a pipe for", here)?).stderr(writer);
        let parent = nix::unistd::getpid();
        // SAFETY: between fork and exec only async-signal-safe calls are made: prctl, setsid, getppid, and
        // building an io::Error from a number, which does not allocate.
        unsafe {
            self.0.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                // Without the terminal: it has none, and Ctrl-C there is not for it.
                nix::unistd::setsid()?;
                if nix::unistd::getppid() == parent {
                    Ok(())
                } else {
                    Err(std::io::Error::from_raw_os_error(libc_esrch()))
                }
            });
        }
        let mut child = self.0.spawn().context("start", here)?;
        // The command holds the pipe's write end; reading would never end otherwise.
        drop(self.0);
        let outcome = follow(&reader, &child, cancel, &mut on_output);
        if outcome.is_err() {
            stop(&mut child, &reader);
        }
        let status = child.wait().context("wait for", here)?;
        Ok(Finished { status, tail: outcome?.into() })
    }
}

fn libc_esrch() -> i32 {
    nix::errno::Errno::ESRCH as i32
}

/// A descriptor that can be read once the process has ended, and in the case of the first one of a
/// PID namespace all others of it.
fn pidfd(process: u32) -> std::io::Result<OwnedFd> {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw);
    let process = process.ok_or_else(|| std::io::Error::from_raw_os_error(libc_esrch()))?;
    Ok(pidfd_open(process, PidfdFlags::empty())?)
}

/// Kills the namespace and waits for its end: that of its first process, or of the pipe, which a
/// process outside may hold open.
fn stop(child: &mut Child, mut reader: &PipeReader) {
    let id = child.id();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
    let first = children.ok().and_then(|all| pidfd(all.trim().parse().ok()?).ok());
    let _ = child.kill();
    // It may be about to fork, or to end, when it has no child.
    let until = first.is_none().then(|| Instant::now() + UNNAMED_END);
    let mut rest = [0; 4096];
    while until.is_none_or(|until| Instant::now() < until) {
        let mut fds = vec![PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        fds.extend(first.iter().map(|first| PollFd::new(first.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::from(TICK_MS)) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return,
        }
        let [output, first @ ..] = &fds[..] else { return };
        if first.iter().any(|first| first.any() == Some(true))
            || output.any() == Some(true) && !matches!(reader.read(&mut rest), Ok(n) if n > 0)
        {
            return;
        }
    }
}

/// The last lines of an output, and the one that is being read.
#[derive(Default)]
struct Lines {
    tail: VecDeque<String>,
    line: Vec<u8>,
}

impl Lines {
    fn add(&mut self, bytes: &[u8], on_output: &mut impl FnMut(Option<&str>)) {
        for byte in bytes {
            match byte {
                b'\n' | b'\r' => self.finish(on_output),
                _ if self.line.len() < MAX_LINE => self.line.push(*byte),
                _ => {}
            }
        }
    }

    fn finish(&mut self, on_output: &mut impl FnMut(Option<&str>)) {
        // Here all that is said by what a build runs goes through, on its way to a terminal, an error
        // or the log.
        let text = Printable(String::from_utf8_lossy(&self.line).trim()).to_string();
        self.line.clear();
        if !text.is_empty() {
            on_output(Some(&text));
            if self.tail.len() == TAIL_LINES {
                self.tail.pop_front();
            }
            self.tail.push_back(text);
        }
    }
}

/// Reads lines until the child has ended, and with it its namespace; keeps the last ones. The end of
/// the pipe is not waited for: a process outside may have got hold of it.
fn follow(
    mut reader: &PipeReader,
    child: &Child,
    cancel: &AtomicBool,
    on_output: &mut impl FnMut(Option<&str>),
) -> Result<VecDeque<String>, Error> {
    let what = Path::new("the child process");
    let ended = pidfd(child.id()).context("watch", what)?;
    let mut lines = Lines::default();
    let mut buffer = [0; 8192];
    let mut open = true;
    let mut last_bytes = None;
    loop {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        let mut fds = vec![PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        if open {
            fds.push(PollFd::new(reader.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::from(TICK_MS)) {
            Ok(0) => {
                on_output(None);
                continue;
            }
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error).context("read the output of", what),
        }
        // What it has written before it ended is in the pipe by now.
        if fds[0].any() == Some(true) && last_bytes.is_none() {
            last_bytes = Some(LAST_BYTES);
        }
        if fds.get(1).and_then(PollFd::any) != Some(true) {
            if last_bytes.is_some() {
                break;
            }
            continue;
        }
        let count = match reader.read(&mut buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            other => other.context("read the output of", what)?,
        };
        lines.add(&buffer[..count], on_output);
        open = count > 0;
        if let Some(left) = &mut last_bytes {
            *left = left.saturating_sub(count);
            if *left == 0 || !open {
                break;
            }
        }
    }
    lines.finish(on_output);
    Ok(lines.tail)
}

/// Whether `program` is on the children's search path.
pub(crate) fn is_installed(program: &str) -> bool {
    PATH.split(':').any(|dir| Path::new(dir).join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_says_steers_no_terminal() {
        let (mut lines, mut said) = (Lines::default(), Vec::new());
        let mut on_output = |line: Option<&str>| said.extend(line.map(str::to_owned));
        let sent = b"Setting up \x1b[2J\x1b]0;owned\x07kmod (1)\nplain \xc3\xbc\n\xc2\x9b31m\xff";
        lines.add(sent, &mut on_output);
        lines.finish(&mut on_output);
        assert_eq!(
            said,
            ["Setting up \\u{1b}[2J\\u{1b}]0;owned\\u{7}kmod (1)", "plain ü", "\\u{9b}31m\u{fffd}"]
        );
        assert_eq!(lines.tail, said);
    }

    #[test]
    #[ignore = "needs root"]
    fn output_status_and_tail_come_back() {
        let mut lines = Vec::new();
        let done = Sandbox::new("sh")
            .args(["-c", "echo one; echo two >&2; printf last; exit 3"])
            .run(&AtomicBool::new(false), |l| lines.extend(l.map(str::to_owned)))
            .expect("runs");
        assert_eq!(done.status.code(), Some(3));
        assert_eq!(lines, ["one", "two", "last"]);
        assert_eq!(done.detail(), "one; two; last");
    }

    #[test]
    #[ignore = "needs root"]
    fn cancelling_kills_even_a_daemonized_grandchild() {
        let dir = tempfile::tempdir().expect("temp dir");
        let cancel = AtomicBool::new(false);
        let script = format!(
            "mount -t tmpfs none {0}; setsid sh -c 'echo $$ up; exec sleep 1000' & sleep 1000",
            dir.path().display()
        );
        let result = Sandbox::new("sh").args(["-c", &script]).run(&cancel, |line| {
            if line.is_some_and(|l| l.ends_with("up")) {
                cancel.store(true, Ordering::Relaxed);
            }
        });
        // `run` only returns once every process of the namespace is dead.
        assert!(matches!(result, Err(Error::Cancelled)));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
        assert!(!mounts.contains(&dir.path().display().to_string()));
    }

    /// The pipe that the sandbox of this thread writes its output to, held by this process as by
    /// one that was given it.
    fn hold_output() -> std::fs::File {
        let only = |of: &str| {
            let children = std::fs::read_to_string(format!("/proc/{of}/children"));
            children.expect("readable").trim().to_owned()
        };
        let unshare = only("thread-self");
        let first = only(&format!("{unshare}/task/{unshare}"));
        let output = std::fs::OpenOptions::new().write(true).open(format!("/proc/{first}/fd/1"));
        output.expect("is open")
    }

    #[test]
    #[ignore = "needs root"]
    fn output_that_a_process_outside_holds_is_not_waited_for() {
        let (mut lines, mut held) = (Vec::new(), None);
        let done = Sandbox::new("sh")
            .args(["-c", "echo up; sleep 1; echo more; printf last; exit 3"])
            .run(&AtomicBool::new(false), |line| {
                if line == Some("up") {
                    held = Some(hold_output());
                }
                lines.extend(line.map(str::to_owned));
            })
            .expect("runs");
        assert_eq!(done.status.code(), Some(3));
        assert_eq!(lines, ["up", "more", "last"]);
        drop(held.expect("held until here"));
    }

    #[test]
    #[ignore = "needs root"]
    fn a_process_outside_that_goes_on_writing_is_not_listened_to() {
        let mut writer = None;
        let done = Sandbox::new("sh")
            .args(["-c", "echo up; sleep 1; exit 3"])
            .run(&AtomicBool::new(false), |line| {
                if line == Some("up") {
                    let mut output = hold_output();
                    // Until nobody reads.
                    writer = Some(std::thread::spawn(move || {
                        while std::io::Write::write_all(&mut output, &[b'x'; 4096]).is_ok() {}
                    }));
                }
            })
            .expect("runs");
        assert_eq!(done.status.code(), Some(3));
        writer.expect("writes").join().expect("ends");
    }

    #[test]
    #[ignore = "needs root"]
    fn a_run_whose_output_is_held_outside_can_be_cancelled() {
        let (cancel, mut held) = (AtomicBool::new(false), None);
        let result =
            Sandbox::new("sh").args(["-c", "echo up; exec sleep 1000"]).run(&cancel, |line| {
                if line == Some("up") {
                    held = Some(hold_output());
                    cancel.store(true, Ordering::Relaxed);
                }
            });
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        drop(held.expect("held until here"));
    }
}
