//! Roles of this process, and the choice of one.

use crate::config::Layout;
use crate::identity::Identity;
use crate::port::{Hangup, Port};
use crate::{console, init, initramfs, open, parked, quiesce, tar};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: mayfly-agent serve --fd N --state DIR | quiesce | pack FORM WHO PATH | unpack WHO DIR | --version\n\
                     (as PID 1 it is the init of a Mayfly guest)";

/// Runs the role that the process id, the program name and the arguments ask for.
pub fn run() -> ExitCode {
    let exact: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let args: Vec<String> = exact.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    if std::process::id() == 1 {
        let failure = match args.first().map(String::as_str) {
            Some("/init") => initramfs::run(),
            _ => init::run(),
        };
        init::give_up(&failure);
    }
    let args: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    match args.as_slice() {
        ["--version"] => {
            println!("mayfly-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        ["quiesce"] => quiesce::main(),
        // Paths are bytes, not text.
        ["pack", form, who, _] => tar::pack_main(form, who, exact[4].as_ref()),
        ["unpack", who, _] => tar::unpack_main(who, exact[3].as_ref()),
        ["serve", options @ ..] => match serve(options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(message) => {
                eprintln!("mayfly-agent: {message}");
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn serve(options: &[&str]) -> Result<(), String> {
    let (mut fd, mut state) = (None, None);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match (*option, options.next()) {
            ("--fd", Some(value)) => fd = value.parse::<RawFd>().ok().filter(|fd| *fd > 2),
            ("--state", Some(value)) => state = Some(PathBuf::from(value)),
            _ => return Err(USAGE.into()),
        }
    }
    let (Some(fd), Some(state)) = (fd, state) else { return Err(USAGE.into()) };
    // SAFETY: the caller passed this descriptor to us for good; nothing else in this new process
    // owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let port = Port::new(fd, Hangup::Ends).map_err(|error| format!("--fd: {error}"))?;
    let layout = Layout::under(&state);
    let identity =
        Identity::in_directory(&layout).map_err(|error| format!("{}: {error}", state.display()))?;
    channel_loop(port, identity, &layout).map_err(|error| error.to_string())
}

/// Runs the agent proper: parked, open, parked again, until the port is gone for good.
pub fn channel_loop(port: Port, mut identity: Identity, layout: &Layout) -> std::io::Result<()> {
    if let Err(error) = crate::exec::limits::raise() {
        console::say(&format!("open files limit: {error}"));
    }
    let mut opener = open::Opener::new(layout.clone(), identity.is_guest())?;
    let mut port = port;
    let mut unread = Vec::new();
    let mut was_open = false;
    loop {
        identity.refresh_hooks(layout);
        let Some(session) = parked::wait(&port, &mut identity, &unread, was_open)? else {
            return Ok(());
        };
        let (back, last) = opener.serve(port, session)?;
        (port, unread, was_open) = (back, last, true);
    }
}

/// Runs the agent process of a guest; ends only with the guest.
pub fn guest_main(identity: Identity) -> ExitCode {
    let layout = Layout::guest();
    let ended =
        crate::port::open_guest_port().and_then(|port| channel_loop(port, identity, &layout));
    match ended {
        Ok(()) => console::say("the channel ended"),
        Err(error) => console::say(&format!("the channel failed: {error}")),
    }
    ExitCode::FAILURE
}
