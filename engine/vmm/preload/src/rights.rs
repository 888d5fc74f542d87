//! Sends bytes together with a descriptor (unix(7), `SCM_RIGHTS`).

/// Sends `bytes` and a duplicate of `descriptor`; the result of sendmsg(2).
pub(crate) fn send(socket: i32, bytes: &[u8], descriptor: i32) -> isize {
    /// Room for one descriptor, aligned as `cmsghdr` needs.
    #[repr(C, align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all pointers are to locals and to `bytes`, which outlive the call and are only read;
    // the control buffer is larger than CMSG_SPACE(4) = 24 and its header is written through the
    // macros of cmsg(3).
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(header).cast::<i32>().write_unaligned(descriptor);
        libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL)
    }
}
