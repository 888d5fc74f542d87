//! Messages with descriptors over a Unix socket.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        ControlMessage, MsgFlags, UnixCredentials, getsockopt, sendmsg, sockopt::PeerCredentials,
    },
};
pub(crate) use rustix::net::RecvFlags;
use rustix::{
    io::retry_on_intr,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, ReturnFlags, recvmsg},
};

/// Most descriptors one message can carry (`SCM_MAX_FD` in the kernel's `include/net/scm.h`).
/// Receiving with room for all of them means that the kernel never installs a descriptor this
/// process does not learn about.
const MAX_FDS: usize = 253;

/// What arrived in one receive.
pub(crate) struct Received {
    /// Bytes written to the buffer; 0 is the end of the connection.
    pub len: usize,
    /// The message was longer than the buffer and its tail is lost.
    pub truncated: bool,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// Sends `bytes` as one message, with `fds`.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: MsgFlags,
) -> nix::Result<usize> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    loop {
        match sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            flags | MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Receives one message into `buf`.
///
/// # Errors
/// `ENOBUFS` when some of the descriptors could not be installed, because this process has as many
/// open as it may; those that could be are closed again. Else what recvmsg(2) gives.
pub(crate) fn recv(
    socket: BorrowedFd<'_>,
    buf: &mut [u8],
    flags: RecvFlags,
) -> nix::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(buf)], &mut control, flags | RecvFlags::CMSG_CLOEXEC)
    })
    .map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
    // All that were installed become owned before anything else is looked at.
    let mut fds = Vec::new();
    for received in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = received {
            fds.extend(rights);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Errno::ENOBUFS);
    }
    Ok(Received { len: message.bytes, truncated: message.flags.contains(ReturnFlags::TRUNC), fds })
}

/// Who is at the other end, as of when it connected.
pub(crate) fn peer(socket: BorrowedFd<'_>) -> nix::Result<UnixCredentials> {
    getsockopt(&socket, PeerCredentials)
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsFd, os::unix::net::UnixStream, process::Command};

    use nix::sys::resource::{Resource, setrlimit};

    use super::*;

    /// Set in the process that a test starts for what changes a whole process.
    const APART: &str = "MAYFLY_TEST_APART";

    #[test]
    fn descriptors_beyond_what_this_process_may_have_leave_none_open() {
        const NAME: &str = "descriptors_beyond_what_this_process_may_have_leave_none_open";
        if std::env::var_os(APART).is_none() {
            let own = std::env::current_exe().unwrap();
            let path = format!("{}::{NAME}", module_path!().split_once("::").unwrap().1);
            let run = Command::new(own).args(["--exact", &path]).env(APART, "1").output().unwrap();
            let said = String::from_utf8_lossy(&run.stdout);
            assert!(run.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let many = vec![theirs.as_fd(); MAX_FDS];
        send(theirs.as_fd(), b"x", &many, MsgFlags::empty()).unwrap();
        let before = open();
        let room = before as u64 + 10;
        setrlimit(Resource::RLIMIT_NOFILE, room, room).unwrap();
        let received = recv(ours.as_fd(), &mut [0; 8], RecvFlags::DONTWAIT);
        assert_eq!(received.err(), Some(Errno::ENOBUFS));
        assert_eq!(open(), before);
    }
}
