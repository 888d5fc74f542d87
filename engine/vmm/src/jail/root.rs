//! The root directory of VMMs: one read-only tree of bind mounts, made once, in a mount namespace
//! that nothing else uses.
//!
//! Each VMM enters that namespace and takes a copy of it. So a spawn costs no path look-ups,
//! nothing of the tree is to be seen in the host's mount table, and it vanishes with its last user.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use mayfly_vmm_contract::{EMPTY_FOLDER, text};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{chdir, pivot_root};

/// Error in making the root of VMMs.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The files of a program could not be found out.
    #[error("cannot tell which libraries {program} needs: {reason}")]
    Libraries {
        /// Path of the program.
        program: PathBuf,
        /// Cause of the failure.
        reason: String,
    },
    /// A mount was refused.
    #[error(
        "cannot make the root directory of VMMs: {action}: {cause}; it takes root and the right to mount (in a container: --privileged)"
    )]
    Mount {
        /// Operation that was attempted.
        action: String,
        /// Cause of the failure.
        cause: io::Error,
    },
}

/// Device nodes of a jail: name, major, minor (kernel `Documentation/admin-guide/devices.txt`).
const NULL: (&str, u64, u64) = ("null", 1, 3);
const KVM: (&str, u64, u64) = ("kvm", 10, 232);
/// Where the preload library is in a jail.
pub(crate) const PRELOAD: &str = "/mayfly/preload.so";

/// A root directory for VMM processes.
#[derive(Debug)]
pub struct JailRoot {
    namespace: OwnedFd,
    search_path: Option<String>,
}

impl JailRoot {
    /// Makes a root that has `files` under their own paths, and those of `renamed` (path inside,
    /// path on this host), all read-only; `/dev/null`, and `/dev/kvm` when `kvm` is set; and empty
    /// folders for `/proc` and for forks. `staging` is an existing folder to build it at; nothing
    /// is left there.
    ///
    /// # Errors
    /// [`JailError::Mount`].
    pub fn make(
        files: &[PathBuf],
        renamed: &[(&str, &Path)],
        kvm: bool,
        staging: &Path,
    ) -> Result<Self, JailError> {
        // A thread, because a mount namespace is a thread's own, and this one's must not become a
        // worker's.
        let made = std::thread::scope(|scope| {
            scope.spawn(|| build(files, renamed, kvm, staging)).join().unwrap_or_else(|_| {
                Err(JailError::Mount {
                    action: "build it".into(),
                    cause: io::Error::other("the thread panicked"),
                })
            })
        });
        made.map(|namespace| Self { namespace, search_path: super::libraries::search_path(files) })
    }

    /// Folders that the dynamic loader must be told of, as the value of `LD_LIBRARY_PATH`.
    pub(crate) fn search_path(&self) -> Option<&str> {
        self.search_path.as_deref()
    }

    /// Number of its mount namespace's descriptor, for a child between fork and exec (setns(2)).
    pub(super) fn raw(&self) -> RawFd {
        self.namespace.as_raw_fd()
    }
}

fn build(
    files: &[PathBuf],
    renamed: &[(&str, &Path)],
    kvm: bool,
    staging: &Path,
) -> Result<OwnedFd, JailError> {
    fn failed<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> JailError {
        let action = action.into();
        move |e| JailError::Mount { action, cause: e.into() }
    }
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("a mount namespace"))?;
    // Nothing that is mounted here may show in the namespace this one was copied from.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .map_err(failed("make mounts private"))?;
    let namespace =
        File::open("/proc/thread-self/ns/mnt").map_err(failed("open the mount namespace"))?;
    let tmpfs = |target: &Path, flags: MsFlags| {
        mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some("mode=0755,size=1m"))
    };
    tmpfs(staging, MsFlags::MS_NOSUID | MsFlags::MS_NODEV)
        .map_err(failed("mount its file system"))?;

    let own = files.iter().map(|file| (file.as_path(), file.as_path()));
    for (inside, file) in
        own.chain(renamed.iter().map(|(inside, file)| (Path::new(*inside), *file)))
    {
        let target = below(staging, inside);
        empty_file(&target).map_err(failed(format!("make {}", inside.display())))?;
        let bound = mount(Some(file), &target, NONE, MsFlags::MS_BIND, NONE).and_then(|()| {
            let flags = MsFlags::MS_REMOUNT
                | MsFlags::MS_BIND
                | MsFlags::MS_RDONLY
                | MsFlags::MS_NOSUID
                | MsFlags::MS_NODEV;
            mount(NONE, &target, NONE, flags, NONE)
        });
        bound.map_err(failed(format!("bind {}", file.display())))?;
    }
    for folder in ["/proc", text(EMPTY_FOLDER), "/dev"] {
        std::fs::create_dir(below(staging, Path::new(folder)))
            .map_err(failed(format!("make {folder}")))?;
    }
    let dev = staging.join("dev");
    tmpfs(&dev, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC).map_err(failed("mount /dev"))?;
    for device in [Some(NULL), kvm.then_some(KVM)].into_iter().flatten() {
        node(&dev, device).map_err(failed(format!("make /dev/{}", device.0)))?;
    }
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
    mount(NONE, &dev, NONE, read_only | MsFlags::MS_NOEXEC, NONE)
        .map_err(failed("make /dev read-only"))?;
    mount(NONE, staging, NONE, read_only | MsFlags::MS_NODEV, NONE)
        .map_err(failed("make it read-only"))?;

    // pivot_root(2): "new_root and put_old may be the same"; the old root is then on top, and goes.
    chdir(staging).map_err(failed("enter it"))?;
    pivot_root(".", ".").map_err(failed("make it the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(failed("let go of the host's files"))?;
    Ok(namespace.into())
}

/// An absolute path below another folder.
fn below(folder: &Path, absolute: &Path) -> PathBuf {
    folder.join(absolute.strip_prefix("/").unwrap_or(absolute))
}

fn empty_file(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    OpenOptions::new().write(true).create_new(true).mode(0o444).open(path).map(drop)
}

/// A device node that every process of the jail may use, whoever may on the host: only VMMs that
/// are meant to have it are in a jail that has it. Where nodes cannot be made (a container without
/// CAP_MKNOD), the host's own is bound.
fn node(dev: &Path, (name, major, minor): (&str, u64, u64)) -> io::Result<()> {
    let path = dev.join(name);
    let mode = Mode::from_bits_truncate(0o666);
    if mknod(&path, SFlag::S_IFCHR, mode, makedev(major, minor)).is_ok() {
        // mknod(2) applies the umask.
        return nix::sys::stat::fchmodat(
            nix::fcntl::AT_FDCWD,
            &path,
            mode,
            nix::sys::stat::FchmodatFlags::FollowSymlink,
        )
        .map_err(Into::into);
    }
    empty_file(&path)?;
    let host = Path::new("/dev").join(name);
    Ok(mount(Some(&host), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}
