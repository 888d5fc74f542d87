//! Filling a range of a registered mapping, with every outcome of the kernel told apart.

use std::os::fd::AsRawFd;

use linux_raw_sys::general::{
    _UFFDIO_COPY, _UFFDIO_ZEROPAGE, UFFDIO, UFFDIO_COPY_MODE_DONTWAKE,
    UFFDIO_ZEROPAGE_MODE_DONTWAKE, uffdio_copy, uffdio_range, uffdio_zeropage,
};
use nix::errno::Errno;

use super::Uffd;

nix::ioctl_readwrite!(uffdio_copy_call, UFFDIO, _UFFDIO_COPY, uffdio_copy);
nix::ioctl_readwrite!(uffdio_zeropage_call, UFFDIO, _UFFDIO_ZEROPAGE, uffdio_zeropage);

/// How far one call got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// This many bytes are filled; the rest of the range was not looked at.
    Filled(u64),
    /// The first page of the range is already there.
    Exists,
    /// The layout of the address space is changing (an event waits to be read): try again after
    /// reading events.
    Busy,
    /// The address space is gone.
    Gone,
    /// Nothing is registered there, or another error.
    Failed(Errno),
}

fn step(outcome: nix::Result<i32>, done: i64) -> Step {
    match outcome {
        Ok(_) => Step::Filled(done.unsigned_abs()),
        Err(Errno::EAGAIN) if done > 0 => Step::Filled(done.unsigned_abs()),
        Err(Errno::EAGAIN) => Step::Busy,
        Err(Errno::EEXIST) => Step::Exists,
        Err(Errno::ESRCH) => Step::Gone,
        Err(errno) => Step::Failed(errno),
    }
}

/// Copies `len` bytes from `src` in this process to `dst` in the VMM, without waking.
///
/// # Safety
/// `src` must be readable for `len` bytes for the whole call.
pub(crate) unsafe fn copy(uffd: &Uffd, src: *const u8, dst: u64, len: u64) -> Step {
    let mut args =
        uffdio_copy { dst, src: src as u64, len, mode: UFFDIO_COPY_MODE_DONTWAKE.into(), copy: 0 };
    // SAFETY: `args` is the struct the ioctl expects and lives through the call; the kernel reads
    // `src` under the caller's promise and writes only to the VMM's registered memory.
    let outcome = unsafe { uffdio_copy_call(uffd.0.as_raw_fd(), &raw mut args) };
    step(outcome, args.copy)
}

/// Maps zero pages at `start` in the VMM for `len` bytes, without waking.
pub(crate) fn zero(uffd: &Uffd, start: u64, len: u64) -> Step {
    let range = uffdio_range { start, len };
    let mut args =
        uffdio_zeropage { range, mode: UFFDIO_ZEROPAGE_MODE_DONTWAKE.into(), zeropage: 0 };
    // SAFETY: `args` is the struct the ioctl expects and lives through the call.
    let outcome = unsafe { uffdio_zeropage_call(uffd.0.as_raw_fd(), &raw mut args) };
    step(outcome, args.zeropage)
}
