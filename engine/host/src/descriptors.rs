//! Open descriptors of this process: their limit, opening their files anew, and receiving them.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::io::retry_on_intr;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

/// Most descriptors one message can carry (`SCM_MAX_FD` in the kernel's `include/net/scm.h`). With
/// room for all of them, the kernel installs none that this process does not learn about.
const MAX_SENT: usize = 253;

/// Raises this process's soft limit of open descriptors to its hard limit (getrlimit(2),
/// `RLIMIT_NOFILE`). A session costs a pager four and a daemon about ten of them: the usual soft
/// limit of 1024 would end at some 100 sessions.
pub fn raise_limit() {
    // A failure leaves it as it was.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Limit of open descriptors of this process: that of now, which [`raise_limit`] may raise. A small
/// one when it is not known.
pub fn limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

/// Opens the file of a descriptor once more, for reading, also when its name is gone. A duplicate
/// (dup(2)) would have the same offset and status flags as `descriptor`, and whoever holds one of
/// the two could change them for the other.
///
/// # Errors
/// What open(2) of `/proc/self/fd` gives.
pub fn open_again(descriptor: impl AsFd) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd()))
}

/// `SO_PASSRIGHTS` (Linux 6.16, `include/uapi/asm-generic/socket.h`).
const SO_PASSRIGHTS: libc::c_int = 83;

/// Lets nobody send descriptors to this end of a Unix socket, on Linux 6.16 or later: sendmsg(2) fails
/// with `EPERM` then. On older kernels nothing changes: the descriptors that come with what is read
/// without a look at them are closed by whoever reads, however long that takes.
pub fn refuse(socket: impl AsFd) {
    // Without it, the older behaviour is all there is.
    let _ = pass(socket, false);
}

/// Whether the other end of a Unix socket may send descriptors to this one from now on.
fn pass(socket: impl AsFd, may: bool) -> nix::Result<()> {
    let (fd, value) = (socket.as_fd().as_raw_fd(), libc::c_int::from(may));
    let length = libc::socklen_t::try_from(size_of_val(&value)).map_err(|_| Errno::EINVAL)?;
    // SAFETY: setsockopt(2) reads `length` bytes of `value`, which outlives the call.
    let set = unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, SO_PASSRIGHTS, (&raw const value).cast(), length)
    };
    Errno::result(set).map(drop)
}

/// Message that came over a Unix socket.
#[derive(Debug)]
pub struct Received {
    /// How many bytes of it were written; 0 is the end of a connection.
    pub length: usize,
    /// Whether it was longer than the buffer, and its rest is lost.
    pub truncated: bool,
    /// What came with it. Some are missing where this process has as many open as it may.
    pub descriptors: Vec<OwnedFd>,
}

/// Receives a message, and all descriptors that came with it (unix(7), `SCM_RIGHTS`): none stays
/// open that nobody owns, however many the sender had.
///
/// # Errors
/// What recvmsg(2) gives.
pub fn receive(socket: impl AsFd, bytes: &mut [u8], wait: bool) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SENT))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    flags.set(RecvFlags::DONTWAIT, !wait);
    let received =
        retry_on_intr(|| recvmsg(&socket, &mut [IoSliceMut::new(bytes)], &mut control, flags))?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let truncated = received.flags.contains(ReturnFlags::TRUNC);
    Ok(Received { length: received.bytes, truncated, descriptors })
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    use super::*;

    #[test]
    fn an_end_that_refuses_descriptors_gets_none_where_the_kernel_can() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let send = |from: &std::os::unix::net::UnixStream| {
            let (raw, part) = ([from.as_raw_fd()], [io::IoSlice::new(b"x")]);
            let rights = [ControlMessage::ScmRights(&raw)];
            sendmsg::<()>(from.as_raw_fd(), &part, &rights, MsgFlags::empty(), None)
        };
        let can = pass(&ours, true).is_ok();
        refuse(&ours);
        assert_eq!(send(&theirs).err(), can.then_some(Errno::EPERM));
        // The other way nothing has changed.
        send(&ours).unwrap();
        let received = receive(&theirs, &mut [0; 8], false).unwrap();
        assert_eq!((received.length, received.descriptors.len()), (1, 1));
    }

    #[test]
    fn a_file_opened_again_has_its_own_flags_and_offset() {
        let mut first = tempfile::tempfile().unwrap();
        first.write_all(b"text").unwrap();
        let (shared, mut own) = (first.try_clone().unwrap(), open_again(&first).unwrap());
        fcntl(&first, FcntlArg::F_SETFL(OFlag::O_APPEND)).unwrap();
        let appends = |file: &File| fcntl(file, FcntlArg::F_GETFL).unwrap() & libc::O_APPEND != 0;
        assert!(appends(&shared) && !appends(&own));
        assert_eq!((first.stream_position().unwrap(), own.stream_position().unwrap()), (4, 0));
        assert_eq!(io::read_to_string(&mut own).unwrap(), "text");
    }
}
