//! Files below a folder that is held open. Every step on the way is made from the descriptor of the
//! folder before it and follows no symbolic link (openat(2), `O_NOFOLLOW`), so that whoever moves
//! names about meanwhile leads nobody to another place.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};

/// Permissions that a new folder has at most: nobody else may make or move names in it, whatever the
/// umask is, while more is written below it.
const FOLDER: u32 = 0o755;
/// Permissions that a new file has at most: nothing that gives somebody else's rights.
const FILE: u32 = 0o777;

/// A folder held open. What is made in it has no more permissions than the umask of this process
/// leaves; the kernel sees to that, since nothing is changed after it was made.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
}

/// What a name stands for.
#[derive(Debug)]
pub enum Found {
    /// A folder, opened.
    Folder(Folder),
    /// A regular file, opened for reading.
    File(File),
    /// A symbolic link, and its target.
    Link(PathBuf),
    /// A socket, pipe or device, which is not opened.
    Other,
}

impl Folder {
    /// Opens the folder that a path leads to, symbolic links included.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self { fd: nix::fcntl::open(path, flags, Mode::empty())? })
    }

    /// Makes a folder, unless there is one, which stays as it is.
    pub fn make_folder(&self, path: &Path, mode: u32) -> io::Result<()> {
        let (parent, name) = self.parent(path, true)?;
        step(&parent.fd, name, Some(mode)).map(drop).map_err(|error| in_the_way(error, path))
    }

    /// Makes a file in the place of whatever is there but a folder.
    pub fn make_file(&self, path: &Path, mode: u32) -> io::Result<File> {
        let (parent, name) = self.cleared(path)?;
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(&parent.fd, name, flags, Mode::from_bits_truncate(mode & FILE))?.into())
    }

    /// Makes a symbolic link in the place of whatever is there but a folder.
    pub fn make_link(&self, path: &Path, target: &Path) -> io::Result<()> {
        let (parent, name) = self.cleared(path)?;
        Ok(symlinkat(target, &parent.fd, name)?)
    }

    /// Makes a second name for what is at `target` below this folder, in the place of whatever is
    /// there but a folder.
    pub fn make_name(&self, path: &Path, target: &Path) -> io::Result<()> {
        let (from, old) = self.parent(target, false)?;
        let (parent, name) = self.cleared(path)?;
        Ok(linkat(&from.fd, old, &parent.fd, name, AtFlags::empty())?)
    }

    /// Moves what is at `name` to a path of this process.
    pub fn move_out(&self, name: &OsStr, to: &Path) -> io::Result<()> {
        Ok(nix::fcntl::renameat(&self.fd, name, AT_FDCWD, to)?)
    }

    /// Opens what is at a path below this folder.
    pub fn find(&self, path: &Path) -> io::Result<(FileStat, Found)> {
        let (parent, name) = self.parent(path, false)?;
        find_at(&parent.fd, Path::new(name))
    }

    /// Returns the names in it.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        // The link of a descriptor leads to what was opened, not to a path.
        let entries = fs::read_dir(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))?;
        entries.map(|entry| Ok(entry?.file_name())).collect()
    }

    /// Opens the folder that the last part of a path is in, and returns that part. Folders on the way
    /// are made where they are missing, if asked for.
    fn parent<'a>(&self, path: &'a Path, make: bool) -> io::Result<(Self, &'a OsStr)> {
        let mut here = Self { fd: self.fd.try_clone()? };
        let mut parts = path.components().peekable();
        let mut way = PathBuf::new();
        while let Some(Component::Normal(part)) = parts.next() {
            if parts.peek().is_none() {
                return Ok((here, part));
            }
            way.push(part);
            let made = make.then_some(FOLDER);
            here = step(&here.fd, part, made).map_err(|error| in_the_way(error, &way))?;
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no path below a folder"))
    }

    /// The parent of a path, without anything but a folder at the path.
    fn cleared<'a>(&self, path: &'a Path) -> io::Result<(Self, &'a OsStr)> {
        let (parent, name) = self.parent(path, true)?;
        match unlinkat(&parent.fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok((parent, name)),
            Err(error) => Err(error.into()),
        }
    }
}

/// Opens the folder `name`, which is made with the mode `make` when it is missing.
fn step(at: &OwnedFd, name: &OsStr, make: Option<u32>) -> nix::Result<Folder> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let open = || openat(at, name, flags, Mode::empty());
    let fd = match (open(), make) {
        (Err(Errno::ENOENT), Some(mode)) => {
            match mkdirat(at, name, Mode::from_bits_truncate(mode & FOLDER)) {
                Ok(()) | Err(Errno::EEXIST) => open()?,
                Err(error) => return Err(error),
            }
        }
        (opened, _) => opened?,
    };
    Ok(Folder { fd })
}

fn in_the_way(error: Errno, path: &Path) -> io::Error {
    match error {
        Errno::ENOTDIR | Errno::ELOOP => {
            let text = format!("{} is in the way: it is no folder", path.display());
            io::Error::new(io::ErrorKind::NotADirectory, text)
        }
        error => error.into(),
    }
}

/// Opens what is at a path of this process; its last part is not followed.
pub fn find(path: &Path) -> io::Result<(FileStat, Found)> {
    find_at(AT_FDCWD, path)
}

/// What was opened is what is described, whatever the name stands for meanwhile.
fn find_at(at: impl AsFd, name: &Path) -> io::Result<(FileStat, Found)> {
    let seen = fstatat(&at, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    // Should a pipe be there by now, nobody is waited for.
    let open = |flags| {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        openat(&at, name, flags | OFlag::O_NONBLOCK, Mode::empty())
    };
    match kind_of(&seen) {
        SFlag::S_IFDIR => {
            let fd = open(OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
            Ok((fstat(&fd)?, Found::Folder(Folder { fd })))
        }
        SFlag::S_IFREG => {
            let fd = open(OFlag::O_RDONLY)?;
            let stat = fstat(&fd)?;
            let regular = kind_of(&stat) == SFlag::S_IFREG;
            Ok((stat, if regular { Found::File(fd.into()) } else { Found::Other }))
        }
        SFlag::S_IFLNK => Ok((seen, Found::Link(readlinkat(&at, name)?.into()))),
        _ => Ok((seen, Found::Other)),
    }
}

fn kind_of(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_name_that_was_swapped_leads_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("x/y")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "host").unwrap();
        fs::write(root.join("x/y/secret"), "own").unwrap();
        let folder = Folder::open(&root).unwrap();
        let held = folder.parent(Path::new("x/y/secret"), false).unwrap().0;
        // Somebody puts a link in the place of a folder on the way.
        fs::rename(root.join("x"), dir.path().join("aside")).unwrap();
        symlink(&outside, root.join("x")).unwrap();
        for path in ["x/secret", "x/y/secret"] {
            let path = Path::new(path);
            assert_eq!(folder.find(path).unwrap_err().kind(), io::ErrorKind::NotADirectory);
            folder.make_file(path, 0o644).unwrap_err();
            folder.make_link(path, path).unwrap_err();
            folder.make_name(Path::new("n"), path).unwrap_err();
            folder.make_folder(path, 0o755).unwrap_err();
        }
        folder.make_folder(Path::new("x"), 0o755).unwrap_err();
        assert_eq!(fs::read(outside.join("secret")).unwrap(), b"host");
        // What is held open is where it was, under whatever name.
        assert_eq!(held.names().unwrap(), ["secret"]);
        // A link in the place of a file is told as one, and replaced.
        symlink(outside.join("secret"), root.join("f")).unwrap();
        assert!(matches!(folder.find(Path::new("f")).unwrap().1, Found::Link(_)));
        folder.make_file(Path::new("f"), 0o644).unwrap();
        assert_eq!(fs::read(outside.join("secret")).unwrap(), b"host");
        assert!(matches!(folder.find(Path::new("f")).unwrap().1, Found::File(_)));
    }

    #[test]
    fn paths_that_do_not_go_down_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let folder = Folder::open(&root).unwrap();
        for path in ["", ".", "..", "../x", "a/../../x", "/x", "a/.."] {
            assert!(folder.make_file(Path::new(path), 0o644).is_err(), "{path}");
            assert!(folder.find(Path::new(path)).is_err(), "{path}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
