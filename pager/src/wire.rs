//! Messages with descriptors over a Unix socket.

use std::{
    io::{IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, UnixCredentials, getsockopt, recvmsg,
        sendmsg, sockopt::PeerCredentials,
    },
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
pub(crate) fn recv(
    socket: BorrowedFd<'_>,
    buf: &mut [u8],
    flags: MsgFlags,
) -> nix::Result<Received> {
    let mut space = cmsg_space!([RawFd; MAX_FDS]);
    let mut iov = [IoSliceMut::new(buf)];
    let message = loop {
        match recvmsg::<()>(
            socket.as_raw_fd(),
            &mut iov,
            Some(&mut space),
            flags | MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just installed these descriptors for this process, and nobody
            // else knows them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(Received { len: message.bytes, truncated: message.flags.contains(MsgFlags::MSG_TRUNC), fds })
}

/// Who is at the other end, as of when it connected.
pub(crate) fn peer(socket: BorrowedFd<'_>) -> nix::Result<UnixCredentials> {
    getsockopt(&socket, PeerCredentials)
}
