//! userfaultfd: the descriptor, the events it delivers, and filling what is registered with it.
//!
//! Structs and numbers are those of `<linux/userfaultfd.h>`, which the `linux-raw-sys` crate has
//! generated from the kernel's headers. What they mean is in userfaultfd(2) and
//! ioctl_userfaultfd(2).

mod event;
mod fill;

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use linux_raw_sys::general::{
    _UFFDIO_API, _UFFDIO_REGISTER, _UFFDIO_WAKE, UFFD_API, UFFD_FEATURE_EVENT_REMOVE,
    UFFD_FEATURE_MISSING_SHMEM, UFFDIO, UFFDIO_REGISTER_MODE_MISSING, uffdio_api, uffdio_range,
    uffdio_register,
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

pub(crate) use event::{Event, EventBuffer, ReadError};
pub(crate) use fill::{Step, copy, zero};

/// The only page size served. Huge pages are refused at the handshake.
pub(crate) const PAGE: u64 = 4096;

/// The device that makes userfaultfds (kernel `Documentation/admin-guide/mm/userfaultfd.rst`, Linux
/// 6.1 or later).
const DEVICE: &str = "/dev/userfaultfd";

/// What the pager needs of the kernel, for a VMM to ask for: events of removed ranges, and missing
/// pages of shared memory.
const FEATURES: u32 = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_MISSING_SHMEM;

// `USERFAULTFD_IOC_NEW`, `_IO(0xAA, 0)`, takes the flags of the new descriptor as its argument.
nix::ioctl_write_int_bad!(userfaultfd_new, nix::request_code_none!(0xAA, 0));
nix::ioctl_readwrite!(uffdio_api_call, UFFDIO, _UFFDIO_API, uffdio_api);
nix::ioctl_readwrite!(uffdio_register_call, UFFDIO, _UFFDIO_REGISTER, uffdio_register);
// The header has the direction of this one reversed, and so it is part of the kernel's interface.
nix::ioctl_read!(uffdio_wake_call, UFFDIO, _UFFDIO_WAKE, uffdio_range);

/// A userfaultfd. The pager gets those of VMMs in handshakes; [`new`](Self::new) and
/// [`register`](Self::register) are what a VMM does.
#[derive(Debug)]
pub struct Uffd(OwnedFd);

impl Uffd {
    /// Makes one for the address space of this process, with the features that the pager needs. It
    /// is closed at exec, and reading it blocks.
    ///
    /// # Errors
    /// `/dev/userfaultfd` cannot be opened, or the kernel lacks a feature (`EINVAL`).
    pub fn new() -> io::Result<Self> {
        let device = File::options().read(true).write(true).open(DEVICE)?;
        // SAFETY: a number is passed; the result is a new descriptor.
        let fd = unsafe { userfaultfd_new(device.as_raw_fd(), OFlag::O_CLOEXEC.bits())? };
        // SAFETY: the descriptor was just made, and nothing else owns it.
        let uffd = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let mut api = uffdio_api { api: UFFD_API.into(), features: FEATURES.into(), ioctls: 0 };
        // SAFETY: `api` is the struct the ioctl expects and lives through the call.
        unsafe { uffdio_api_call(uffd.0.as_raw_fd(), &raw mut api)? };
        Ok(uffd)
    }

    /// Registers `len` bytes of this process's memory at `start`, both multiples of the page size:
    /// whoever touches a page that is not there sleeps until it is filled and the range is woken.
    ///
    /// # Errors
    /// `EINVAL`: not a mapping of the kinds that userfaultfd serves. `EBUSY`: registered with
    /// another userfaultfd.
    pub fn register(&self, start: u64, len: u64) -> nix::Result<()> {
        let range = uffdio_range { start, len };
        let mut args =
            uffdio_register { range, mode: UFFDIO_REGISTER_MODE_MISSING.into(), ioctls: 0 };
        // SAFETY: `args` is the struct the ioctl expects and lives through the call. No memory
        // changes by it.
        unsafe { uffdio_register_call(self.0.as_raw_fd(), &raw mut args) }.map(drop)
    }

    /// The descriptor that a VMM sent, which the caller has found to be a userfaultfd.
    pub(crate) fn from_vmm(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Lets a read return at once where no event waits. poll(2) on a blocking userfaultfd reports
    /// `POLLERR` (userfaultfd(2)).
    pub(crate) fn set_nonblocking(&self) -> nix::Result<()> {
        let flags = OFlag::from_bits_retain(fcntl(&self.0, FcntlArg::F_GETFL)?);
        fcntl(&self.0, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
    }

    /// Wakes every thread that waits for a page of the range.
    pub(crate) fn wake(&self, start: u64, len: u64) -> nix::Result<()> {
        let mut range = uffdio_range { start, len };
        // SAFETY: `range` is the struct the ioctl expects and lives through the call.
        unsafe { uffdio_wake_call(self.0.as_raw_fd(), &raw mut range) }.map(drop)
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
