//! Files without a name, whose write-back counts for a group.
//!
//! On v2 the kernel writes a file back on the account of the group in which it was changed first, and
//! moves it to another only after that has written most of it for a while (`cgroup-v2.rst`,
//! "Writeback"). Making a file is a change: one of the engine's would not be subject to the bound on
//! I/O of the session that writes it.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::sys::wait::{WaitStatus, waitpid};

use super::clone::clone_into;

const MODE: u32 = 0o600;

/// A file in `dir` without a name: the kernel frees it when the last descriptor closes, whatever
/// happens to us (`O_TMPFILE`, open(2)).
pub fn unnamed_file(dir: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(MODE).open(dir)
}

/// As [`unnamed_file`], made by a process in the cgroup of this folder where the kernel can make one
/// there.
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
            tracing::debug!(%error, "cannot make a process in a cgroup; its file is made outside of it");
            return unnamed_file(dir);
        }
    };
    let pid = nix::unistd::Pid::from_raw(child.pid.cast_signed());
    loop {
        match waitpid(pid, None) {
            Err(nix::errno::Errno::EINTR) => {}
            Ok(WaitStatus::Exited(_, 0)) => return Ok(file),
            Ok(WaitStatus::Exited(_, errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Ok(other) => return Err(io::Error::other(format!("a process that makes a file ended with {other:?}"))),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Puts a new file in the place of a descriptor; ends this process with 0, or the error's number.
///
/// # Safety
/// Only for a child that shares its parent's descriptors.
unsafe fn open_at(dir: &CString, place: i32) -> ! {
    let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC;
    // SAFETY: the path ends with a NUL and outlives the call; `file` is this process's own, and
    // `place` a number that its parent keeps for it.
    unsafe {
        let file = libc::open(dir.as_ptr(), flags, MODE);
        if file == -1 || libc::dup3(file, place, libc::O_CLOEXEC) == -1 {
            libc::_exit(*libc::__errno_location());
        }
        libc::close(file);
        libc::_exit(0)
    }
}
