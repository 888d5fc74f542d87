//! Starts a command in a session of its own, on pipes or on a pseudoterminal.

use super::child::Child;
use super::pipe::Pipe;
use super::users::{self, Credentials};
use super::vfork::Program;
use crate::wire::invalid;
use mayfly_protocol::{ByteString, ExecRequest, GuestError, TtySize};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::unistd::{AccessFlags, access};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Debian's default PATH of root (login.defs, ENV_SUPATH).
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);

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

    let directory = directory(request, user.as_ref())?;
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
    started.map_err(|error| GuestError::io(format_args!("start {}", executable.display()), &error))
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
    Ok(Spawned { child, stdin, stdout, stderr: Some(stderr), terminal: None })
}

fn on_terminal(
    program: &Program,
    size: TtySize,
    stdin: bool,
    user: Option<&Credentials>,
) -> io::Result<Spawned> {
    let pty = openpty(Some(&winsize(size)), None)?;
    for fd in [&pty.master, &pty.slave] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    if let Some(user) = user {
        nix::unistd::fchown(&pty.slave, Some(user.uid), None)?;
    }
    let input = if stdin { Some(Pipe::new(pty.master.try_clone()?)?) } else { None };
    let terminal = Some(pty.master.try_clone()?);
    let stdout = Pipe::new(pty.master)?;
    let child = program.start([pty.slave.as_fd(); 3])?;
    // While the slave is open here, the master never reports the end.
    drop(pty.slave);
    Ok(Spawned { child, stdin: input, stdout, stderr: None, terminal })
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
