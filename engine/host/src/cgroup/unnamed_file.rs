//! Files without a name, whose write-back counts for a group.
//!
//! On v2 the kernel writes a file back on the account of the group in which it was changed first,
//! and moves it to another only after that has written most of it for a while (`cgroup-v2.rst`,
//! "Writeback"). Making a file is a change: one of the engine's would not be subject to the bound
//! on I/O of the session that writes it.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Once;

use nix::sys::wait::WaitStatus;

use super::clone::clone_into;

const MODE: u32 = 0o600;

/// Creates a file in `dir` without a name: the kernel frees it when the last descriptor closes,
/// whatever happens to us (`O_TMPFILE`, open(2)).
///
/// # Errors
/// The file system of `dir` has no such files, or open(2) fails otherwise.
pub fn unnamed_file(dir: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(MODE).open(dir)
}

/// As [`unnamed_file`], made by a process in the cgroup of this folder where the kernel can make
/// one there.
pub(super) fn unnamed_file_of(cgroup: BorrowedFd<'_>, dir: &Path) -> io::Result<File> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // The child, which shares our descriptors, puts the file where this is.
    let file = File::open("/dev/null")?;
    // SAFETY: `open_at` makes async-signal-safe system calls only, and ends the child.
    let child = match unsafe { clone_into(cgroup, libc::CLONE_FILES as u64) } {
        Ok(Some(child)) => child,
        // SAFETY: this is the child.
        Ok(None) => unsafe { open_at(&path, file.as_raw_fd()) },
        Err(error) => {
            static TOLD: Once = Once::new();
            TOLD.call_once(|| {
                tracing::warn!(%error, "no process can be made in a cgroup: bounds on disk I/O hold for a session's writes only after a while");
            });
            return unnamed_file(dir);
        }
    };
    match child.wait()? {
        WaitStatus::Exited(_, 0) => Ok(file),
        WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno)),
        killed => {
            tracing::warn!(
                ?killed,
                "a process that makes a file in its cgroup was killed; it is made outside of it"
            );
            unnamed_file(dir)
        }
    }
}

/// Puts a new file in the place of a descriptor; ends this process with 0, or the error's number.
///
/// # Safety
/// Only for a child that shares its parent's descriptors.
unsafe fn open_at(dir: &CString, place: i32) -> ! {
    let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC;
    // SAFETY: the path ends with a NUL and outlives the call; the number that open returns is known
    // to nobody else, and the parent keeps `place` for this.
    unsafe {
        let file = libc::open(dir.as_ptr(), flags, MODE);
        if file == -1 {
            libc::_exit(*libc::__errno_location());
        }
        let placed = libc::dup3(file, place, libc::O_CLOEXEC);
        let errno = *libc::__errno_location();
        libc::close(file);
        libc::_exit(if placed == -1 { errno } else { 0 })
    }
}
