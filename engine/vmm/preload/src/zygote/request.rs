//! What the owner of a zygote asks for.

use std::os::fd::{FromRawFd, OwnedFd};

/// Most descriptors of one request.
const MAX_DESCRIPTORS: usize = 32;

/// One fork.
#[derive(Debug)]
pub(super) struct Request {
    /// User and group id of the child.
    pub uid: u32,
    /// Largest file it may write, in bytes, and threads of its user.
    pub bounds: (u64, u64),
    /// Descriptor of the owner's process (pidfd_open(2)), whose death ends the child.
    pub owner: OwnedFd,
    /// Gives a byte when the owner has said who the child is in its user namespace, and ends when it never will.
    pub gate: OwnedFd,
    /// `/dev/userfaultfd`.
    pub uffd_device: OwnedFd,
    /// The child's end of the handshake with the pager.
    pub handshake: OwnedFd,
    /// Files through which the child enters its cgroups.
    pub cgroups: Vec<OwnedFd>,
    /// A number in the zygote, and what the child has in its place.
    pub replace: Vec<(i32, OwnedFd)>,
}

impl Request {
    /// Reads `uid=N,files=N,threads=N,cgroups=N,replace=N:N:...` with its descriptors: the userfaultfd device, the handshake,
    /// the owner, the gate, the cgroup files, then one for each number of `replace`.
    pub fn parse(text: &[u8], descriptors: Vec<OwnedFd>) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(text).map_err(|_| "a request that is no text")?;
        let (mut uid, mut files, mut threads, mut cgroups, mut numbers) = (None, None, None, 0_usize, Vec::new());
        for entry in text.split(',') {
            let (key, value) = entry.split_once('=').ok_or("a request with an entry without `=`")?;
            let number = |text: &str| text.parse::<i32>().ok().filter(|n| *n >= 0).ok_or("a request with a bad number");
            match key {
                "uid" => uid = Some(number(value)? as u32),
                "files" => files = value.parse().ok(),
                "threads" => threads = value.parse().ok(),
                "cgroups" => cgroups = number(value)? as usize,
                "replace" => numbers = value.split(':').map(number).collect::<Result<_, _>>()?,
                _ => return Err("a request with an unknown entry"),
            }
        }
        let uid = uid.ok_or("a request without uid")?;
        let bounds = files.zip(threads).ok_or("a request without bounds")?;
        if descriptors.len() != 4 + cgroups + numbers.len() {
            return Err("a request with more or fewer descriptors than it names");
        }
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or("a request with too few descriptors");
        let (uffd_device, handshake, owner, gate) = (next()?, next()?, next()?, next()?);
        let cgroups = (0..cgroups).map(|_| next()).collect::<Result<_, _>>()?;
        let replace = numbers.into_iter().map(|n| Ok((n, next()?))).collect::<Result<_, &'static str>>()?;
        Ok(Self { uid, bounds, uffd_device, handshake, owner, gate, cgroups, replace })
    }
}

/// Receives the next request's text and descriptors; `None` when the owner has closed its end.
pub(super) fn receive(control: i32) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    /// Room for the descriptors, aligned as `cmsghdr` needs.
    #[repr(C, align(8))]
    struct Control([u8; 16 + 4 * MAX_DESCRIPTORS]);
    let mut text = [0_u8; 512];
    let mut ancillary = Control([0; 16 + 4 * MAX_DESCRIPTORS]);
    let mut iov = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
    let mut descriptors = Vec::new();
    // SAFETY: all pointers are to locals that outlive the call; headers are walked with the macros of cmsg(3), and each
    // number that arrives is a new descriptor of this process, owned by nobody else.
    let length = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        message.msg_control = ancillary.0.as_mut_ptr().cast();
        message.msg_controllen = ancillary.0.len() as _;
        let length = loop {
            let length = libc::recvmsg(control, &raw mut message, libc::MSG_CMSG_CLOEXEC);
            if length >= 0 || crate::die::errno() != libc::EINTR {
                break length;
            }
        };
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while length > 0 && !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let count = ((*header).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize) / 4;
                let first = libc::CMSG_DATA(header).cast::<i32>();
                descriptors.extend((0..count).map(|at| OwnedFd::from_raw_fd(first.add(at).read_unaligned())));
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
        length
    };
    let length = usize::try_from(length).ok().filter(|length| *length > 0)?;
    Some((text[..length].to_vec(), descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn requests_are_read_and_bad_ones_refused() {
        let six = || (0..6).map(|_| null()).collect::<Vec<_>>();
        let request = Request::parse(b"uid=7,files=9,threads=5,cgroups=1,replace=3", six()).unwrap();
        assert_eq!((request.uid, request.bounds, request.cgroups.len()), (7, (9, 5), 1));
        assert_eq!(request.replace[0].0, 3);
        for bad in
            ["", "uid=7", "uid=7,cgroups=1,replace=3:4", "uid=-1,cgroups=1,replace=3", "x=1", "cgroups=1,replace=3"]
        {
            assert!(Request::parse(bad.as_bytes(), six()).is_err(), "{bad}");
        }
    }
}
