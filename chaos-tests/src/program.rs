//! Runs programs as a person would, bounded in time, with all they say kept.

use std::fmt;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use mayfly_host::time_scale::scaled;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest run unless a test says otherwise. It only ends what hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// Longest wait for something that follows by itself, such as the end of an orphan.
const SETTLE: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(10);

/// Looks again and again until `good` holds or nothing more can be hoped for; returns the last
/// look.
pub fn settle<T>(mut look: impl FnMut() -> T, good: impl Fn(&T) -> bool) -> T {
    let begun = Instant::now();
    loop {
        let seen = look();
        if good(&seen) || begun.elapsed() > scaled(SETTLE) {
            return seen;
        }
        std::thread::sleep(TICK);
    }
}

/// Returns whether a process runs; a zombie does not.
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// A program to run.
#[derive(Debug)]
pub struct Program {
    command: Command,
    stdin: Option<Vec<u8>>,
    limit: Duration,
}

impl Program {
    /// Creates a run of `command`.
    pub fn new(command: Command) -> Self {
        Self { command, stdin: None, limit: scaled(LIMIT) }
    }

    /// Gives it these bytes as standard input instead of none.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Sets a variable in its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Changes how it is started.
    pub fn prepared(mut self, prepare: impl FnOnce(&mut Command)) -> Self {
        prepare(&mut self.command);
        self
    }

    /// Ends it after this time instead, and the test with it.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = scaled(limit);
        self
    }

    /// Starts it.
    pub fn start(mut self) -> Running {
        let (out, err) =
            (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
        let input = match &self.stdin {
            None => Stdio::null(),
            Some(bytes) => {
                let mut file = tempfile::tempfile().expect("a file");
                file.write_all(bytes).and_then(|()| file.rewind()).expect("input in a file");
                Stdio::from(file)
            }
        };
        self.command.stdin(input).stdout(out.try_clone().expect("a descriptor"));
        self.command.stderr(err.try_clone().expect("a descriptor"));
        let child = self
            .command
            .spawn()
            .unwrap_or_else(|e| panic!("{:?}: {e}", self.command.get_program()));
        Running { child, out, err, limit: self.limit, begun: Instant::now() }
    }

    /// Runs it to its end.
    pub fn run(self) -> Finished {
        self.start().wait()
    }
}

/// A running program. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    out: File,
    err: File,
    limit: Duration,
    begun: Instant,
}

impl Running {
    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("a signal");
    }

    /// Returns what it wrote to standard output so far.
    pub fn stdout(&self) -> String {
        text(&self.out)
    }

    /// Returns what it wrote to standard error so far.
    pub fn stderr(&self) -> String {
        text(&self.err)
    }

    /// Waits until `seen` gives something while it runs.
    ///
    /// # Panics
    /// When it ends before, or its time is over.
    pub fn until<T>(&mut self, what: &str, mut seen: impl FnMut(&Self) -> Option<T>) -> T {
        loop {
            if let Some(found) = seen(self) {
                return found;
            }
            let ended = self.child.try_wait().expect("a status");
            let said = || format!("stdout {:?}, stderr {:?}", self.stdout(), self.stderr());
            assert!(ended.is_none(), "it ended before {what}: {}", said());
            assert!(self.begun.elapsed() < self.limit, "{what} did not come: {}", said());
            std::thread::sleep(TICK);
        }
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Finished {
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a status") {
                break status;
            }
            let said = || format!("stdout {:?}, stderr {:?}", self.stdout(), self.stderr());
            assert!(self.begun.elapsed() < self.limit, "it hangs: {}", said());
            std::thread::sleep(TICK);
        };
        Finished { pid: self.child.id(), status, stdout: self.stdout(), stderr: self.stderr() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All of a file, by a descriptor whose position the child does not share: it is opened anew.
fn text(file: &File) -> String {
    use std::os::fd::AsRawFd;
    let bytes = std::fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("what it said");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Process id while it ran.
    pub pid: u32,
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Returns whether it exited with code 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// Returns the exit code, or 128 and the number of the signal that ended it.
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .or_else(|| self.status.signal().map(|signal| 128 + signal))
            .expect("an end")
    }

    /// Returns the one line it failed with, without `mayfly: `.
    ///
    /// # Panics
    /// When it did not fail, was ended by a signal, or said more or less than one such line.
    pub fn complaint(&self) -> &str {
        assert!(
            self.status.code().is_some_and(|code| code != 0),
            "it should fail with an exit code: {self}"
        );
        let lines: Vec<_> = self.stderr.lines().collect();
        match lines.as_slice() {
            [line] if line.starts_with("mayfly: ") => &line["mayfly: ".len()..],
            _ => panic!("not one line that begins with `mayfly: `: {self}"),
        }
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n--- stdout\n{}--- stderr\n{}---", self.status, self.stdout, self.stderr)
    }
}
