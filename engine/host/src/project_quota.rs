//! Project quotas: a bound on the space that one file takes, kept by its file system.
//!
//! A file system that has them counts its blocks for each project, a number that a file can be
//! given, and refuses more than the project's limit to whoever lacks `CAP_SYS_RESOURCE`, by
//! whatever call it is asked. The owner of a file alone may give it another project, and a limit
//! takes `CAP_SYS_ADMIN` (kernel `fs/quota/`, quotactl(2), xfs_quota(8)).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// Room for what a file system keeps about a file of so many bytes, in bytes: an extent of 16 bytes
/// (XFS; 12 on ext4) for each block of 4096, and the nodes above them.
fn metadata(bytes: u64) -> u64 {
    bytes / 128 + (1 << 20)
}

/// Why there are no project quotas below a folder.
#[derive(Debug, thiserror::Error)]
pub enum NoProjectQuota {
    /// The file system counts no projects, or does not refuse what is beyond their limits.
    #[error(
        "the file system of {} keeps no project quotas{}",
        .dir.display(),
        .cause.as_ref().map(|cause| format!(" ({cause})")).unwrap_or_default()
    )]
    NotEnforced {
        /// The folder.
        dir: PathBuf,
        /// What the kernel says; `None` when it counts and does not refuse.
        cause: Option<io::Error>,
    },
    /// It says that it keeps them, but a file cannot be given a project or a limit.
    #[error("the file system of {} refuses a project quota: {cause}", .dir.display())]
    Refused {
        /// The folder.
        dir: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// A file to try it with cannot be made.
    #[error("cannot make a file in {}: {cause}", .dir.display())]
    NoFile {
        /// The folder.
        dir: PathBuf,
        /// The cause.
        cause: io::Error,
    },
}

/// The project of files that only try whether there are projects: no user id of a VMM, which sessions
/// have as their projects, is as high.
const TRIAL: u32 = u32::MAX - 1;

/// Finds out whether files in `dir` can be bounded, by doing it to one.
///
/// # Errors
/// [`NoProjectQuota`], also before Linux 5.14, which has no quotactl_fd(2).
pub fn check(dir: &Path) -> Result<(), NoProjectQuota> {
    let file = crate::cgroup::unnamed_file(dir)
        .map_err(|cause| NoProjectQuota::NoFile { dir: dir.to_owned(), cause })?;
    match enforced(file.as_fd()) {
        Ok(true) => {}
        Ok(false) => return Err(NoProjectQuota::NotEnforced { dir: dir.to_owned(), cause: None }),
        Err(cause) => {
            return Err(NoProjectQuota::NotEnforced { dir: dir.to_owned(), cause: Some(cause) });
        }
    }
    let tried = join(&file, TRIAL, 1 << 20).and_then(|()| lift(&file, TRIAL));
    tried.map_err(|cause| NoProjectQuota::Refused { dir: dir.to_owned(), cause })
}

/// Makes `file` the one file of project `id`, which may take the space of a file of `bytes` and
/// what the file system keeps about it. The kernel counts what the file has already.
///
/// # Errors
/// The file system refuses; the file may have been given the project then.
pub fn join(file: &File, id: u32, bytes: u64) -> io::Result<()> {
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes one `struct fsxattr`, which outlives the call.
    unsafe { get_attributes(file.as_raw_fd(), &raw mut attributes) }?;
    attributes.project = id;
    // SAFETY: the kernel reads one `struct fsxattr`, which outlives the call.
    unsafe { set_attributes(file.as_raw_fd(), &raw const attributes) }?;
    limit(file, id, bytes)
}

/// Sets another limit for project `id`, on the file system of `file`: what a file of `bytes` takes.
///
/// # Errors
/// The file system refuses.
pub fn limit(file: &File, id: u32, bytes: u64) -> io::Result<()> {
    set(file, id, bytes.saturating_add(metadata(bytes)))
}

/// Takes the limit of project `id` away. The file system forgets a project without files and
/// limits.
///
/// # Errors
/// The file system refuses.
pub fn lift(file: &File, id: u32) -> io::Result<()> {
    set(file, id, 0)
}

/// Space that project `id` has and its limit, in bytes.
///
/// # Errors
/// The file system does not know the project.
pub fn used(file: &File, id: u32) -> io::Result<(u64, u64)> {
    let mut quota = Quota::default();
    quotactl(file.as_fd(), libc::Q_GETQUOTA, id, &raw mut quota)?;
    Ok((quota.space, quota.hard_blocks.saturating_mul(BLOCK)))
}

fn set(file: &File, id: u32, bytes: u64) -> io::Result<()> {
    let mut quota =
        Quota { hard_blocks: bytes.div_ceil(BLOCK), valid: QIF_BLIMITS, ..Quota::default() };
    quotactl(file.as_fd(), libc::Q_SETQUOTA, id, &raw mut quota)
}

fn enforced(file: BorrowedFd<'_>) -> io::Result<bool> {
    let mut state = State { version: 1, ..State::default() };
    quotactl(file, Q_XGETQSTAT, 0, &raw mut state)?;
    Ok(state.flags & FS_QUOTA_PDQ_ENFD != 0)
}

/// Unit of limits, in bytes (`QIF_DQBLKSIZE`, kernel `include/uapi/linux/quota.h`).
const BLOCK: u64 = 1024;
/// Project quotas, among users' and groups' (`PRJQUOTA`).
const PROJECTS: i32 = 2;
/// Only the limits on blocks are set (`QIF_BLIMITS`).
const QIF_BLIMITS: u32 = 1;
/// Asks which quotas are kept (kernel `include/uapi/linux/dqblk_xfs.h`). File systems other than
/// XFS answer it, too.
const Q_XGETQSTAT: i32 = 0x5805;
/// Limits of projects are enforced (the same file).
const FS_QUOTA_PDQ_ENFD: u16 = 1 << 5;

/// `struct if_dqblk` (kernel `include/uapi/linux/quota.h`).
#[repr(C)]
#[derive(Default)]
struct Quota {
    hard_blocks: u64,
    soft_blocks: u64,
    space: u64,
    hard_inodes: u64,
    soft_inodes: u64,
    inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

/// `struct fs_quota_stat` (kernel `include/uapi/linux/dqblk_xfs.h`), of which only the beginning is
/// of interest.
#[repr(C)]
#[derive(Default)]
struct State {
    version: i8,
    flags: u16,
    pad: i8,
    rest: [u64; 9],
}

/// `struct fsxattr` (kernel `include/uapi/linux/fs.h`).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_extent_size: u32,
    pad: [u8; 8],
}

nix::ioctl_read!(
    /// `FS_IOC_FSGETXATTR`.
    get_attributes, b'X', 31, Attributes
);
nix::ioctl_write_ptr!(
    /// `FS_IOC_FSSETXATTR`.
    set_attributes, b'X', 32, Attributes
);

/// quotactl_fd(2): quotactl(2) on the file system of an open file.
fn quotactl<T>(file: BorrowedFd<'_>, command: i32, id: u32, argument: *mut T) -> io::Result<()> {
    let command = command << 8 | PROJECTS;
    // SAFETY: callers pass the struct that the command reads and writes, which outlives the call.
    match unsafe { libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command, id, argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests;
