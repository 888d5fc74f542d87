//! Filling a range of a registered mapping, with every outcome of the kernel told apart.
//!
//! The `userfaultfd` crate reads events and wakes; its copy and zeropage calls drop the count of a partial zeropage and
//! misread the count of a refused copy (`-EAGAIN` as a length), so these two are issued here. See ioctl_userfaultfd(2).

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use userfaultfd::Uffd;

/// The only page size served. Huge pages are refused at the handshake.
pub(crate) const PAGE: u64 = 4096;

/// `struct uffdio_copy` of `<linux/userfaultfd.h>`.
#[repr(C)]
struct CopyArgs {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

/// `struct uffdio_zeropage` of `<linux/userfaultfd.h>`.
#[repr(C)]
struct ZeroArgs {
    start: u64,
    len: u64,
    mode: u64,
    zeropage: i64,
}

nix::ioctl_readwrite!(uffdio_copy, 0xAA, 0x03, CopyArgs);
nix::ioctl_readwrite!(uffdio_zeropage, 0xAA, 0x04, ZeroArgs);

/// How far one call got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// This many bytes are filled; the rest of the range was not looked at.
    Filled(u64),
    /// The first page of the range is already there.
    Exists,
    /// The layout of the address space is changing (an event waits to be read): try again after reading events.
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
    const DONT_WAKE: u64 = 1;
    let mut args = CopyArgs { dst, src: src as u64, len, mode: DONT_WAKE, copy: 0 };
    // SAFETY: `args` is the struct the ioctl expects and lives through the call; the kernel reads `src` under the
    // caller's promise and writes only to the VMM's registered memory.
    let outcome = unsafe { uffdio_copy(uffd.as_raw_fd(), &raw mut args) };
    step(outcome, args.copy)
}

/// Maps zero pages at `start` in the VMM for `len` bytes, without waking.
pub(crate) fn zero(uffd: &Uffd, start: u64, len: u64) -> Step {
    const DONT_WAKE: u64 = 1;
    let mut args = ZeroArgs { start, len, mode: DONT_WAKE, zeropage: 0 };
    // SAFETY: `args` is the struct the ioctl expects and lives through the call.
    let outcome = unsafe { uffdio_zeropage(uffd.as_raw_fd(), &raw mut args) };
    step(outcome, args.zeropage)
}

/// Wakes every thread that waits for a page of the range.
pub(crate) fn wake(uffd: &Uffd, start: u64, len: u64) -> Result<(), userfaultfd::Error> {
    uffd.wake(start as *mut libc::c_void, usize::try_from(len).unwrap_or(usize::MAX))
}
