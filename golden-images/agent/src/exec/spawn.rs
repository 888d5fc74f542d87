//! Starts a command in a session of its own, on pipes or on a pseudoterminal.
//!
//! Everything that looks at a file system may wait for it for ever, such as a frozen one (fsfreeze(8))
//! or one whose server is gone, and so may the start of the program. So all of it is done on a thread
//! that may wait.

use super::child::Child;
use super::pipe::Pipe;
use super::users::{self, Credentials};
use super::vfork::Program;
use crate::files::read_database;
use crate::wire::invalid;
use mayfly_protocol::{ByteString, ExecRequest, GuestError, StartFailure, TtySize};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::pty::{Winsize, posix_openpt};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{AccessFlags, Pid, access};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};

/// Commands that are being started at a time.
const MOST_STARTS: usize = 64;

/// How long one more waits for its turn.
const TURN: Duration = Duration::from_secs(10);

/// Bytes of stack of a thread that starts a command; the child has 32 KiB of it.
const STACK: usize = 512 * 1024;

/// How long the end of an open phase waits for threads that start a command.
const REST: Duration = Duration::from_secs(1);

/// Debian's default PATH of root (login.defs, ENV_SUPATH).
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);

/// A command that runs, and our ends of its streams.
pub struct Spawned {
    /// The process, leader of its session and process group.
    pub child: Unattended,
    /// Stdin of the command, when the request has one.
    pub stdin: Option<Pipe>,
    /// Stdout of the command, or the terminal.
    pub stdout: Pipe,
    /// Stderr of the command, when it has no terminal.
    pub stderr: Option<Pipe>,
    /// Descriptor that keeps a terminal open until the command has ended. A command that closes its
    /// descriptors before it exits would otherwise be the last user but one of the terminal, and be
    /// hung up in the middle of its exit.
    pub terminal: Option<OwnedFd>,
}

/// A command that nobody attends to yet. Dropping it kills its process group.
pub struct Unattended(Option<Child>);

impl Unattended {
    fn new(child: Child) -> Self {
        Self(Some(child))
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.0.as_ref().expect("taken when it is dropped").id()
    }

    /// Takes it over.
    pub fn attend(mut self) -> Child {
        self.0.take().expect("taken when it is dropped")
    }
}

impl Drop for Unattended {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
        // It may take its time to end, and who gave it up may be the event loop.
        if let Ok(waiter) = thread::Builder::new().spawn(move || drop(child.wait())) {
            remember(waiter);
        }
    }
}

/// Reason why a command was not started.
#[derive(Debug)]
pub struct NotStarted {
    /// What kind of failure it is.
    pub kind: StartFailure,
    /// What was tried, and why it failed.
    pub error: GuestError,
}

impl NotStarted {
    fn new(kind: StartFailure, error: GuestError) -> Self {
        Self { kind, error }
    }

    fn other(message: &str) -> Self {
        Self::new(StartFailure::Other, invalid(message))
    }

    /// Of a program that was looked up or executed.
    fn of_program(error: GuestError) -> Self {
        let kind = match error.errno {
            libc::ENOENT | libc::ENOTDIR => StartFailure::NoProgram,
            libc::EACCES
            | libc::EPERM
            | libc::ENOEXEC
            | libc::ETXTBSY
            | libc::EISDIR
            | libc::ELOOP
            | libc::ELIBBAD => StartFailure::NotExecutable,
            _ => StartFailure::Other,
        };
        Self::new(kind, error)
    }
}

impl From<NotStarted> for GuestError {
    fn from(failure: NotStarted) -> Self {
        failure.error
    }
}

/// Starts what `request` describes. Its environment has `defaults` unless it says otherwise.
pub async fn spawn(
    request: ExecRequest,
    defaults: Vec<(&'static str, String)>,
) -> Result<Spawned, NotStarted> {
    static STARTS: Semaphore = Semaphore::const_new(MOST_STARTS);
    let stuck = || {
        let message = format!(
            "{MOST_STARTS} commands wait to be started: a file system of the guest does not answer"
        );
        NotStarted::new(StartFailure::Other, GuestError { errno: libc::EAGAIN, message })
    };
    let turn = tokio::time::timeout(TURN, STARTS.acquire()).await;
    let Ok(Ok(turn)) = turn else { return Err(stuck()) };
    let (answer, outcome) = oneshot::channel();
    // What registers with the event loop has to know it.
    let runtime = tokio::runtime::Handle::current();
    let work = move || {
        let _runtime = runtime.enter();
        let outcome = spawn_now(&request, &defaults);
        drop((turn, request));
        // Without a receiver the command is killed.
        let _ = answer.send(outcome);
    };
    let thread = thread::Builder::new().name("start".into()).stack_size(STACK).spawn(work);
    let thread = thread.map_err(|error| {
        NotStarted::new(StartFailure::Other, GuestError::io("start a thread", &error))
    })?;
    remember(thread);
    outcome.await.unwrap_or_else(|_| Err(NotStarted::other("the start was lost")))
}

/// Threads that start commands, and some that did a moment ago.
fn threads() -> MutexGuard<'static, Vec<JoinHandle<()>>> {
    static THREADS: Mutex<Vec<JoinHandle<()>>> = Mutex::new(Vec::new());
    THREADS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remember(thread: JoinHandle<()>) {
    let mut threads = threads();
    threads.retain(|thread| !thread.is_finished());
    threads.push(thread);
}

/// Waits until the threads that start commands are gone; those that a file system holds up stay.
pub fn rest() {
    let deadline = Instant::now() + REST;
    let mut stuck = Vec::new();
    // Not locked meanwhile: one that ends may leave another behind.
    loop {
        let Some(thread) = threads().pop() else { break };
        while !thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        if thread.is_finished() {
            let _ = thread.join();
        } else {
            stuck.push(thread);
        }
    }
    threads().extend(stuck);
}

fn spawn_now(
    request: &ExecRequest,
    defaults: &[(&'static str, String)],
) -> Result<Spawned, NotStarted> {
    let Some(program) = request.argv.first().filter(|program| !program.is_empty()) else {
        return Err(NotStarted::other("exec needs a program"));
    };
    let strings =
        request.argv.iter().chain(request.env.iter().flat_map(|(key, value)| [key, value]));
    if strings.chain([&request.cwd]).any(|text| text.as_bytes().contains(&0)) {
        let message = "exec arguments, environment and directory cannot hold a NUL byte";
        return Err(NotStarted::other(message));
    }
    let no_user = |error| NotStarted::new(StartFailure::NoUser, error);
    let user = request.user.as_deref().map(find_user).transpose().map_err(no_user)?;
    let environment = environment(request, user.as_ref(), defaults);
    let path =
        environment.iter().rev().find(|(key, _)| key == "PATH").map(|(_, value)| value.as_os_str());
    let executable = find_program(program, path.unwrap_or(OsStr::new(DEFAULT_PATH)))
        .map_err(NotStarted::of_program)?;
    let no_directory = |error| NotStarted::new(StartFailure::NoDirectory, error);
    let directory = directory(request, user.as_ref()).map_err(no_directory)?;
    let started = Program::new(
        &executable,
        request.argv.iter().map(ByteString::as_os_str),
        // The last of the same name counts.
        environment.into_iter().collect(),
        &directory,
        request.tty.is_some(),
        user.as_ref(),
    )
    .and_then(|program| match request.tty {
        Some(size) => on_terminal(&program, size, request.stdin, user.as_ref()),
        None => on_pipes(&program, request.stdin),
    });
    started.map_err(|error| {
        let what = format_args!("start {}", executable.display());
        NotStarted::of_program(GuestError::io(what, &error))
    })
}

/// Sets the size of the terminal behind `master`.
pub fn resize(master: &OwnedFd, size: TtySize) -> io::Result<()> {
    // SAFETY: TIOCSWINSZ reads one winsize, which is what it gets.
    unsafe { set_window_size(master.as_raw_fd(), &winsize(size)) }?;
    Ok(())
}

fn winsize(size: TtySize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 }
}

// Below, our ends are made before the start, so that no child has to be ended when one fails.

fn on_pipes(program: &Program, stdin: bool) -> io::Result<Spawned> {
    let (input, stdin): (OwnedFd, _) = if stdin {
        let (theirs, ours) = io::pipe()?;
        (theirs.into(), Some(Pipe::new(ours.into())?))
    } else {
        (File::open("/dev/null")?.into(), None)
    };
    let ((stdout, output), (stderr, errors)) = (io::pipe()?, io::pipe()?);
    let (stdout, stderr) = (Pipe::new(stdout.into())?, Pipe::new(stderr.into())?);
    let child = program.start([input.as_fd(), output.as_fd(), errors.as_fd()])?;
    let child = Unattended::new(child);
    Ok(Spawned { child, stdin, stdout, stderr: Some(stderr), terminal: None })
}

fn on_terminal(
    program: &Program,
    size: TtySize,
    stdin: bool,
    user: Option<&Credentials>,
) -> io::Result<Spawned> {
    let (master, slave) = open_terminal()?;
    resize(&master, size)?;
    if let Some(user) = user {
        nix::unistd::fchown(&slave, Some(user.uid), None)?;
    }
    let input = if stdin { Some(Pipe::new(master.try_clone()?)?) } else { None };
    let terminal = Some(master.try_clone()?);
    let stdout = Pipe::new(master)?;
    let child = Unattended::new(program.start([slave.as_fd(); 3])?);
    // While the slave is open here, the master never reports the end.
    drop(slave);
    Ok(Spawned { child, stdin: input, stdout, stderr: None, terminal })
}

/// Both ends of a new pseudoterminal. No other program that is started meanwhile gets one of them,
/// as it could where close-on-exec is set afterwards (openpty(3)).
fn open_terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master: OwnedFd = posix_openpt(flags)?.into();
    // SAFETY: TIOCSPTLCK reads an int, which it gets; TIOCGPTPEER takes flags of open(2), and returns
    // a descriptor that nobody else has (ioctl_tty(2)).
    let slave = unsafe {
        let unlocked: libc::c_int = 0;
        Errno::result(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked))?;
        let peer = libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags.bits());
        OwnedFd::from_raw_fd(Errno::result(peer)?)
    };
    Ok((master, slave))
}

fn find_user(spec: &str) -> Result<Credentials, GuestError> {
    let read = |path: &str| {
        read_database(path)
            .map_err(|error| GuestError::io(format_args!("look up user {spec}: {path}"), &error))
    };
    users::lookup(spec, &read("/etc/passwd")?, &read("/etc/group")?).map_err(invalid)
}

fn environment(
    request: &ExecRequest,
    user: Option<&Credentials>,
    defaults: &[(&'static str, String)],
) -> Vec<(OsString, OsString)> {
    let home =
        user.map_or_else(|| OsString::from("/root"), |user| user.home.clone().into_os_string());
    let name = user.map_or("root", |user| &user.name);
    let mut environment: Vec<(OsString, OsString)> = vec![
        ("PATH".into(), DEFAULT_PATH.into()),
        ("HOME".into(), home),
        ("USER".into(), name.into()),
        ("LANG".into(), "C.UTF-8".into()),
    ];
    if request.tty.is_some() {
        environment.push(("TERM".into(), "xterm-256color".into()));
    }
    environment.extend(defaults.iter().map(|(name, value)| ((*name).into(), value.into())));
    let own = request
        .env
        .iter()
        .map(|(key, value)| (key.as_os_str().to_owned(), value.as_os_str().to_owned()));
    environment.extend(own);
    environment
}

fn directory(request: &ExecRequest, user: Option<&Credentials>) -> Result<PathBuf, GuestError> {
    if !request.cwd.is_empty() {
        // Checked here, because a failed start does not say whether the directory or the program
        // was missing.
        return match std::fs::metadata(request.cwd.as_path()) {
            Ok(metadata) if metadata.is_dir() => Ok(request.cwd.as_path().to_owned()),
            Ok(_) => Err(GuestError {
                errno: libc::ENOTDIR,
                message: format!("{} is not a directory", request.cwd),
            }),
            Err(error) => {
                Err(GuestError::io(format_args!("working directory {}", request.cwd), &error))
            }
        };
    }
    let home = user.map_or(Path::new("/root"), |user| &user.home);
    Ok(if home.is_dir() { home.to_owned() } else { "/".into() })
}

/// The lookup of execvp(3).
fn find_program(program: &ByteString, path: &OsStr) -> Result<PathBuf, GuestError> {
    if program.as_bytes().contains(&b'/') {
        return Ok(program.as_path().to_owned());
    }
    let mut errno = Errno::ENOENT;
    for directory in path.as_bytes().split(|byte| *byte == b':') {
        let directory = if directory.is_empty() {
            Path::new(".")
        } else {
            Path::new(OsStr::from_bytes(directory))
        };
        let candidate = directory.join(program.as_path());
        match access(&candidate, AccessFlags::X_OK) {
            Ok(()) if candidate.is_file() => return Ok(candidate),
            Ok(()) => {}
            Err(Errno::EACCES) => errno = Errno::EACCES,
            Err(_) => {}
        }
    }
    let path = path.to_string_lossy();
    Err(GuestError {
        errno: errno as i32,
        message: format!("no program {program} in PATH {path}: {}", errno.desc()),
    })
}
