//! Sockets that listen at a path.

use std::{fs::Permissions, io, os::fd::OwnedFd, os::unix::fs::PermissionsExt as _, path::Path};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
};

/// A non-blocking socket listening at a path that does not exist yet, mode 0600.
pub(crate) fn listen_at(path: &Path, kind: SockType) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, kind, flags, None)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&listener), &UnixAddr::new(path)?)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))
        .map_err(|error| errno_of(&error))?;
    listen(&listener, Backlog::MAXCONN)?;
    Ok(listener)
}

pub(crate) fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}
