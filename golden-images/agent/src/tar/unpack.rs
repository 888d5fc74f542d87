//! A tar archive into a directory, and nowhere else.
//!
//! Two walls: names and links are checked against the directory before each entry, which gives
//! errors that say what is wrong, and the process is confined to the directory (chroot(2)), which
//! holds whatever other processes do meanwhile.

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use std::fs::{File, FileTimes};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};
use tar::{Archive, Entry, EntryType};

/// Meaning of symbolic links during an unpack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The directory is the root of the file system, out of which nothing leads.
    Everything,
    /// A link that leads out of the directory is not followed.
    Directory,
}

/// Confines this process to `directory`, which is `/` from then on.
pub fn enter(directory: &Path) -> io::Result<Scope> {
    let (root, metadata) = (std::fs::metadata("/")?, std::fs::metadata(directory)?);
    std::env::set_current_dir(directory)?;
    nix::unistd::chroot(".")?;
    std::env::set_current_dir("/")?;
    let same = (root.dev(), root.ino()) == (metadata.dev(), metadata.ino());
    Ok(if same { Scope::Everything } else { Scope::Directory })
}

/// Unpacks an archive below `root`, with the owners in it if asked for; the bytes of file content.
/// An entry that is refused ends it.
pub fn read_archive(
    input: &mut impl Read,
    root: &Path,
    scope: Scope,
    owners: bool,
) -> io::Result<u64> {
    let mut archive = Archive::new(input);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(owners);
    let mut unpacker =
        Unpacker { directory: open_directory(root)?, root, scope, times: Vec::new(), bytes: 0 };
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        unpacker
            .entry(&mut entry)
            .map_err(|error| io::Error::new(error.kind(), Failed { name: shown(&name), error }))?;
    }
    unpacker.set_times()?;
    Ok(unpacker.bytes)
}

/// A name as an error message may carry it.
fn shown(name: &str) -> String {
    name.chars().take(300).flat_map(char::escape_debug).collect()
}

#[derive(Debug, thiserror::Error)]
#[error("entry {name}")]
struct Failed {
    name: String,
    #[source]
    error: io::Error,
}

struct Unpacker<'a> {
    root: &'a Path,
    directory: OwnedFd,
    scope: Scope,
    /// Set at the end, because every entry in a directory changes it.
    times: Vec<(PathBuf, u64)>,
    bytes: u64,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> io::Result<()> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        if is_posix_sparse(entry)? {
            return Err(refused(
                "it is a sparse file of the POSIX format: use the GNU format (tar --format=gnu), or \
                 no sparse files (bsdtar --no-read-sparse)",
            ));
        }
        let name = inside(&entry.path()?)?;
        let Some(parent) = name.parent() else {
            // The directory itself keeps what it has.
            return if kind.is_dir() { Ok(()) } else { Err(refused("it has no name")) };
        };
        match kind {
            EntryType::Regular
            | EntryType::Continuous
            | EntryType::GNUSparse
            | EntryType::Directory => {
                self.make_parent(parent)?;
                let size = entry.size();
                // The crate looks at the parent once more.
                if !entry.unpack_in(self.root)? {
                    return Err(refused("its name leads out of the directory"));
                }
                if kind.is_dir() {
                    self.times.push((name, entry.header().mtime().unwrap_or(0)));
                } else {
                    self.bytes = self.bytes.saturating_add(size);
                }
                Ok(())
            }
            EntryType::Symlink => {
                self.make_parent(parent)?;
                entry.unpack_in(self.root).map(drop)
            }
            EntryType::Link => {
                let target =
                    entry.link_name()?.ok_or_else(|| refused("this hard link has no target"))?;
                let target = inside(&target)?;
                self.check(
                    target.parent().ok_or_else(|| refused("this hard link has no target"))?,
                )?;
                self.make_parent(parent)?;
                self.hard_link(&target, &name)
            }
            _ => Err(refused("it is no file, directory or link")),
        }
    }

    /// linkat(2) does not follow a last symbolic link.
    fn hard_link(&self, target: &Path, name: &Path) -> io::Result<()> {
        let (from, to) = (self.root.join(target), self.root.join(name));
        match std::fs::hard_link(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let (one, other) =
                    (std::fs::symlink_metadata(&from)?, std::fs::symlink_metadata(&to)?);
                if (one.dev(), one.ino()) == (other.dev(), other.ino()) {
                    return Ok(());
                }
                std::fs::remove_file(&to)?;
                std::fs::hard_link(&from, &to)
            }
            done => done,
        }
    }

    fn make_parent(&self, parent: &Path) -> io::Result<()> {
        self.check(parent)?;
        std::fs::create_dir_all(self.root.join(parent))
    }

    /// Refuses a directory path that leads out through a symbolic link. As much of it as exists
    /// decides: a link that leads out does so whether or not there is something at its end.
    fn check(&self, path: &Path) -> io::Result<()> {
        if self.scope == Scope::Everything {
            return Ok(());
        }
        for path in path.ancestors().filter(|path| !path.as_os_str().is_empty()) {
            let how = OpenHow::new()
                .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
                .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
            match openat2(&self.directory, path, how) {
                Ok(_) => return Ok(()),
                Err(Errno::ENOENT) => {}
                Err(Errno::EXDEV) => {
                    return Err(refused("a symbolic link in its path leads out of the directory"));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn set_times(&self) -> io::Result<()> {
        for (name, mtime) in self.times.iter().rev() {
            let Some(mtime) = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(*mtime))
            else {
                continue;
            };
            // A later entry may have replaced it.
            if let Ok(directory) = open_directory(&self.root.join(name)) {
                File::from(directory)
                    .set_times(FileTimes::new().set_modified(mtime).set_accessed(mtime))?;
            }
        }
        Ok(())
    }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    Ok(std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?.into())
}

/// A name without its leading `/` and without `.`; one with `..` is refused (CVE-2001-1267 and its
/// many children).
fn inside(name: &Path) -> io::Result<PathBuf> {
    let mut inside = PathBuf::new();
    for part in name.components() {
        match part {
            Component::Normal(part) => inside.push(part),
            Component::ParentDir => {
                return Err(refused("a name with .. leads out of the directory"));
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(inside)
}

/// Whether an entry has the map of a sparse file in its extensions (GNU tar manual, "PAX Format,
/// Version 1.0" and before). The `tar` crate would take it for a plain file.
fn is_posix_sparse(entry: &mut Entry<'_, impl Read>) -> io::Result<bool> {
    let Some(extensions) = entry.pax_extensions()? else { return Ok(false) };
    for extension in extensions {
        if extension?.key_bytes().starts_with(b"GNU.sparse.") {
            return Ok(true);
        }
    }
    Ok(false)
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
