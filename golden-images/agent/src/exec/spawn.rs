//! Starts a command in a session of its own, on pipes or on a pseudoterminal.

use super::pipe::Pipe;
use super::users::{self, Credentials};
use crate::wire::invalid;
use mayfly_protocol::{ByteString, ExecRequest, GuestError, TtySize};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{AccessFlags, access, setgid, setgroups, setsid, setuid};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Debian's default PATH of root (login.defs, ENV_SUPATH).
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);
nix::ioctl_write_int_bad!(set_controlling_terminal, libc::TIOCSCTTY);

/// A command that runs, and our ends of its streams.
pub struct Spawned {
    /// The process, leader of its session and process group.
    pub child: Child,
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

/// Starts what `request` describes. Its environment has `defaults` unless it says otherwise.
pub fn spawn(
    request: &ExecRequest,
    defaults: &[(&'static str, String)],
) -> Result<Spawned, GuestError> {
    let Some(program) = request.argv.first().filter(|program| !program.is_empty()) else {
        return Err(invalid("exec needs a program"));
    };
    let strings =
        request.argv.iter().chain(request.env.iter().flat_map(|(key, value)| [key, value]));
    if strings.chain([&request.cwd]).any(|text| text.as_bytes().contains(&0)) {
        return Err(invalid("exec arguments, environment and directory cannot hold a NUL byte"));
    }
    let user = request.user.as_deref().map(find_user).transpose()?;
    let environment = environment(request, user.as_ref(), defaults);
    let path =
        environment.iter().rev().find(|(key, _)| key == "PATH").map(|(_, value)| value.as_os_str());
    let executable = find_program(program, path.unwrap_or(OsStr::new(DEFAULT_PATH)))?;

    let mut command = Command::new(&executable);
    command.arg0(program.as_os_str()).args(request.argv[1..].iter().map(ByteString::as_os_str));
    command.env_clear().envs(environment.iter().map(|(key, value)| (key, value)));
    command.current_dir(directory(request, user.as_ref())?);
    let failed =
        |error: io::Error| GuestError::io(format_args!("start {}", executable.display()), &error);
    match request.tty {
        Some(size) => on_terminal(command, size, request.stdin, user).map_err(failed),
        None => on_pipes(command, request.stdin, user).map_err(failed),
    }
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

fn on_pipes(mut command: Command, stdin: bool, user: Option<Credentials>) -> io::Result<Spawned> {
    command.stdin(if stdin { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    lead_session(&mut command, false, user);
    let mut child = Reaped(Some(command.spawn()?));
    let streams = child
        .0
        .as_mut()
        .map(|child| (child.stdin.take(), child.stdout.take(), child.stderr.take()));
    let (stdin, Some(stdout), Some(stderr)) = streams.unwrap_or_default() else {
        return Err(io::Error::other("no pipes"));
    };
    let stdin = stdin.map(|stdin| Pipe::new(stdin.into())).transpose()?;
    let (stdout, stderr) = (Pipe::new(stdout.into())?, Pipe::new(stderr.into())?);
    Ok(Spawned { child: child.keep()?, stdin, stdout, stderr: Some(stderr), terminal: None })
}

fn on_terminal(
    mut command: Command,
    size: TtySize,
    stdin: bool,
    user: Option<Credentials>,
) -> io::Result<Spawned> {
    let pty = openpty(Some(&winsize(size)), None)?;
    for fd in [&pty.master, &pty.slave] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    if let Some(user) = &user {
        nix::unistd::fchown(&pty.slave, Some(user.uid), None)?;
    }
    command.stdin(pty.slave.try_clone()?).stdout(pty.slave.try_clone()?).stderr(pty.slave);
    lead_session(&mut command, true, user);
    let child = Reaped(Some(command.spawn()?));
    // The slave's copies live in `command`; while one is open, the master never reports the end.
    drop(command);
    let input = if stdin { Some(Pipe::new(pty.master.try_clone()?)?) } else { None };
    let terminal = Some(pty.master.try_clone()?);
    let stdout = Pipe::new(pty.master)?;
    Ok(Spawned { child: child.keep()?, stdin: input, stdout, stderr: None, terminal })
}

/// Kills and reaps a child whose start was not completed.
struct Reaped(Option<Child>);

impl Reaped {
    fn keep(mut self) -> io::Result<Child> {
        self.0.take().ok_or_else(|| io::Error::other("no child"))
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn lead_session(command: &mut Command, terminal: bool, user: Option<Credentials>) {
    let lead = move || {
        setsid()?;
        // What ignores signals is inherited: a command is to end by them whoever started its agent
        // (nohup(1), a shell's background).
        for number in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
            // SAFETY: no handler is set.
            unsafe { signal(number, SigHandler::SigDfl) }?;
        }
        if terminal {
            // SAFETY: TIOCSCTTY takes an int; descriptor 0 is the terminal.
            unsafe { set_controlling_terminal(0, 0) }?;
        }
        if let Some(user) = &user {
            setgroups(&user.groups)?;
            setgid(user.gid)?;
            setuid(user.uid)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only: no allocation, no lock.
    // The process has one thread.
    unsafe { command.pre_exec(lead) };
}

fn find_user(spec: &str) -> Result<Credentials, GuestError> {
    let read = |path: &str| {
        std::fs::read_to_string(path)
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
