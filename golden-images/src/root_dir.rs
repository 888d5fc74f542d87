//! File operations inside a root directory that never leave it, whatever symbolic links a package
//! or a setup command put there: every path is resolved by `openat2(2)` with `RESOLVE_IN_ROOT`, as
//! after a chroot.
//!
//! What is made belongs to whoever owns the root directory: root of the user namespace that it was
//! made in.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, fchmod, fchmodat, fstat, fstatat, makedev, mkdirat,
    mknodat,
};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};

use crate::error::{Error, IoContext as _};

/// Longest file that is read whole, in bytes: beyond all kernels and modules.
const MAX_READ: u64 = 1 << 30;

/// A root directory held open.
#[derive(Debug)]
pub(crate) struct RootDir {
    fd: OwnedFd,
    path: PathBuf,
    owner: (Uid, Gid),
}

fn how(flags: OFlag) -> OpenHow {
    OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS)
}

impl RootDir {
    /// Opens the directory at `path`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let fd = nix::fcntl::open(
            path,
            OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .context("open", path)?;
        let stat = fstat(&fd).context("look at", path)?;
        let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        Ok(Self { fd, path: path.to_owned(), owner })
    }

    fn shown(&self, inner: &str) -> PathBuf {
        self.path.join(inner.trim_start_matches('/'))
    }

    /// Opens a regular file for reading. `Ok(None)` when there is none of that name.
    pub fn read(&self, inner: &str) -> Result<Option<File>, Error> {
        let opened = openat2(&self.fd, inner, how(OFlag::O_RDONLY | OFlag::O_NONBLOCK));
        let file = match opened {
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO) => return Ok(None),
            other => File::from(other.context("open", &self.shown(inner))?),
        };
        let meta = file.metadata().context("read", &self.shown(inner))?;
        Ok(meta.is_file().then_some(file))
    }

    /// Reads a whole regular file of at most 1 GiB. `Ok(None)` when there is none of that name.
    pub fn read_all(&self, inner: &str) -> Result<Option<Vec<u8>>, Error> {
        let Some(file) = self.read(inner)? else { return Ok(None) };
        let mut bytes = Vec::new();
        let count = file.take(MAX_READ + 1).read_to_end(&mut bytes);
        let count = count.context("read", &self.shown(inner))?;
        if count as u64 > MAX_READ {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge))
                .context("read", &self.shown(inner));
        }
        Ok(Some(bytes))
    }

    /// Reads a whole text file; a missing one is empty.
    pub fn read_text(&self, inner: &str) -> Result<String, Error> {
        String::from_utf8(self.read_all(inner)?.unwrap_or_default())
            .map_err(io::Error::other)
            .context("read", &self.shown(inner))
    }

    /// Creates a directory and its parents with mode 0755 where they do not exist.
    pub fn mkdir(&self, inner: &str) -> Result<OwnedFd, Error> {
        let directory = OFlag::O_DIRECTORY | OFlag::O_PATH;
        let mut current = openat2(&self.fd, "/", how(directory)).context("open", &self.path)?;
        let mut walked = String::new();
        for part in inner.split('/').filter(|part| !part.is_empty()) {
            walked.push('/');
            walked.push_str(part);
            current = match openat2(&self.fd, walked.as_str(), how(directory)) {
                Err(Errno::ENOENT) => {
                    mkdirat(&current, part, Mode::from_bits_truncate(0o755))
                        .context("create", &self.shown(&walked))?;
                    self.own(&current, part, &walked)?;
                    openat2(&self.fd, walked.as_str(), how(directory))
                        .context("open", &self.shown(&walked))?
                }
                other => other.context("open", &self.shown(&walked))?,
            };
        }
        Ok(current)
    }

    /// Replaces whatever non-directory is at `inner` by a new file with the bytes of `content`.
    pub fn write(&self, inner: &str, mut content: impl Read, mode: u32) -> Result<(), Error> {
        let shown = self.shown(inner);
        let (parent, name) = self.parent(inner)?;
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(mode);
        let fd = openat(&parent, name, flags, mode).context("create", &shown)?;
        self.own(&parent, name, inner)?;
        // The process's umask must not decide what the guest may read.
        fchmod(&fd, mode).context("set the mode of", &shown)?;
        io::copy(&mut content, &mut File::from(fd)).context("write", &shown)?;
        Ok(())
    }

    /// Replaces whatever non-directory is at `inner` by a symbolic link to `target`.
    pub fn symlink(&self, target: &Path, inner: &str) -> Result<(), Error> {
        let (parent, name) = self.parent(inner)?;
        symlinkat(target, &parent, name).context("create", &self.shown(inner))?;
        self.own(&parent, name, inner)
    }

    /// Replaces whatever non-directory is at `inner` by the node of a character device that
    /// everybody may use.
    pub fn character_device(&self, inner: &str, major: u64, minor: u64) -> Result<(), Error> {
        let (parent, name) = self.parent(inner)?;
        let mode = Mode::from_bits_truncate(0o666);
        mknodat(&parent, name, SFlag::S_IFCHR, mode, makedev(major, minor))
            .context("create", &self.shown(inner))?;
        self.own(&parent, name, inner)?;
        fchmodat(&parent, name, mode, FchmodatFlags::FollowSymlink)
            .context("set the mode of", &self.shown(inner))
    }

    /// Gives what was just made, under `name` in `parent`, the owner of the root.
    fn own(&self, parent: &OwnedFd, name: &str, inner: &str) -> Result<(), Error> {
        let (uid, gid) = self.owner;
        fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .context("give to the build", &self.shown(inner))
    }

    /// Describes what is at `inner` itself, a final symbolic link not followed.
    pub fn stat(&self, inner: &str) -> Result<Option<FileStat>, Error> {
        let (parent, name) = inner.rsplit_once('/').unwrap_or(("/", inner));
        let parent = if parent.is_empty() { "/" } else { parent };
        let parent = match openat2(&self.fd, parent, how(OFlag::O_DIRECTORY | OFlag::O_PATH)) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
            other => other.context("open", &self.shown(inner))?,
        };
        match fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => Ok(None),
            other => other.map(Some).context("look at", &self.shown(inner)),
        }
    }

    /// Opens the parent of `inner`, made when missing, and removes what is there unless it is a
    /// directory.
    fn parent<'a>(&self, inner: &'a str) -> Result<(OwnedFd, &'a str), Error> {
        let (parent, name) = inner.rsplit_once('/').unwrap_or(("", inner));
        let parent = self.mkdir(parent)?;
        let old = self.stat(inner)?;
        if old
            .is_some_and(|s| SFlag::from_bits_truncate(s.st_mode) & SFlag::S_IFMT != SFlag::S_IFDIR)
        {
            unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir)
                .context("replace", &self.shown(inner))?;
        }
        Ok((parent, name))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn links_never_lead_out_of_the_root() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (outside, root) = (dir.path().join("outside"), dir.path().join("root"));
        std::fs::create_dir_all(&outside).expect("made");
        std::fs::create_dir(&root).expect("made");
        std::fs::write(outside.join("secret"), "host").expect("written");
        symlink(&outside, root.join("etc")).expect("linked");
        symlink("../../outside/secret", root.join("file")).expect("linked");
        let inner = RootDir::open(&root).expect("opens");
        assert!(inner.read("/etc/secret").expect("resolved inside").is_none());
        assert!(inner.read("/file").expect("resolved inside").is_none());
        // The link /etc leads to a path that does not exist inside the root, so nothing can be made
        // below it.
        inner.write("/etc/hostname", &b"x"[..], 0o644).expect_err("dangling inside the root");
        inner.write("/file", &b"guest"[..], 0o640).expect("replaces the link");
        assert_eq!(std::fs::read_to_string(outside.join("secret")).expect("unchanged"), "host");
        assert_eq!(std::fs::read_to_string(root.join("file")).expect("written"), "guest");
        let mode = std::fs::metadata(root.join("file")).expect("there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
    }

    #[test]
    fn directories_and_files_are_made_and_read_back() {
        let dir = tempfile::tempdir().expect("temp dir");
        let inner = RootDir::open(dir.path()).expect("opens");
        inner.write("/a/b/c", &b"1"[..], 0o600).expect("written");
        inner.write("/a/b/c", &b"2"[..], 0o600).expect("replaced");
        inner.symlink(Path::new("c"), "/a/b/d").expect("linked");
        assert_eq!(inner.read_text("a/b/d").expect("read"), "2");
        assert_eq!(inner.read_text("/absent").expect("read"), "");
        assert!(inner.read("/a/b").expect("a directory is no file").is_none());
    }
}
