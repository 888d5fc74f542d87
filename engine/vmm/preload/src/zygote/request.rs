//! Receives what the owner of a zygote asks for.

use std::os::fd::{FromRawFd, OwnedFd};

use mayfly_vmm_contract::fork::{MAX_DESCRIPTORS, MAX_TEXT};

/// Receives the next request's text and descriptors; `None` when the owner has closed its end.
pub(super) fn receive(control: i32) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    /// Room for the descriptors, aligned as `cmsghdr` needs.
    #[repr(C, align(8))]
    struct Control([u8; 16 + 4 * MAX_DESCRIPTORS]);
    let mut text = [0_u8; MAX_TEXT];
    let mut ancillary = Control([0; 16 + 4 * MAX_DESCRIPTORS]);
    let mut iov = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
    let mut descriptors = Vec::new();
    // SAFETY: all pointers are to locals that outlive the call; headers are walked with the macros
    // of cmsg(3), and each number that arrives is a new descriptor of this process, owned by nobody
    // else.
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
                let count =
                    ((*header).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize) / 4;
                let first = libc::CMSG_DATA(header).cast::<i32>();
                descriptors.extend(
                    (0..count).map(|at| OwnedFd::from_raw_fd(first.add(at).read_unaligned())),
                );
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
        length
    };
    let length = usize::try_from(length).ok().filter(|length| *length > 0)?;
    Some((text[..length].to_vec(), descriptors))
}
