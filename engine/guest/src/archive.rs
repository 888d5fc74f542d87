//! The host's end of a copy: packs what goes into a guest, and unpacks what comes out of one
//! without trusting it.

mod screen;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use mayfly_protocol::Printable;
use tar::{Archive, Builder, EntryType, Header, HeaderMode};
use tempfile::TempDir;

use self::screen::Screened;

/// Destination of a copy out of a guest: below a folder that is there, or under a name of its own,
/// all at once.
#[derive(Debug)]
pub struct Landing {
    to: PathBuf,
    staging: Option<TempDir>,
}

impl Landing {
    /// Makes ready for a copy to `to`.
    ///
    /// # Errors
    /// When `to` is no folder, and nothing can be made beside it.
    pub fn prepare(to: &Path) -> io::Result<Self> {
        if to.is_dir() {
            return Ok(Self { to: to.to_owned(), staging: None });
        }
        let beside =
            to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let staging = tempfile::Builder::new().prefix(".mayfly-cp-").tempdir_in(beside)?;
        Ok(Self { to: to.to_owned(), staging: Some(staging) })
    }

    /// Unpacks an archive whose names all begin with `name`. It is a guest's work, thus hostile:
    /// nothing outside of the landing is touched, setuid and owners are not kept, devices and the
    /// like are left out, memory stays bounded.
    ///
    /// # Errors
    /// When the archive is damaged or names something else, or the host cannot write it.
    pub fn unpack(&self, from: impl Read, name: &OsStr) -> io::Result<()> {
        // The names in a message are the guest's.
        self.unpack_all(from, name).map_err(|error| {
            io::Error::new(error.kind(), Printable(&error.to_string()).to_string())
        })
    }

    fn unpack_all(&self, from: impl Read, name: &OsStr) -> io::Result<()> {
        let dir = self.staging.as_ref().map_or(self.to.as_path(), TempDir::path);
        let mut archive = Archive::new(Screened::new(from));
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.into_owned();
            if path.components().next() != Some(Component::Normal(name)) {
                return Err(foreign(&path));
            }
            let kind = entry.header().entry_type();
            let wanted =
                kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_hard_link();
            if !wanted {
                continue;
            }
            // A folder that is there is kept, and gets the mode that the archive names.
            check_way(dir, &path, kind.is_dir())?;
            if kind.is_hard_link() {
                let target = entry.link_name()?.ok_or_else(|| foreign(&path))?;
                if target.components().next() != Some(Component::Normal(name)) {
                    return Err(foreign(&target));
                }
                check_way(dir, &target, false)?;
                // One that is there already is replaced, as files and symbolic links are.
                match fs::remove_file(dir.join(&path)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            if !entry.unpack_in(dir)? {
                return Err(foreign(&path));
            }
        }
        // What pads the archive is read as well: its sender would take the early end for a failure.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map(drop)
    }

    /// Gives the copy its name.
    ///
    /// # Errors
    /// When there was nothing of that name, or what is in its place cannot be replaced.
    pub fn settle(self, name: &OsStr) -> io::Result<()> {
        match self.staging {
            Some(staging) => fs::rename(staging.path().join(name), &self.to),
            None => Ok(()),
        }
    }
}

/// Refuses a path of an archive whose folders below `dir` are not all folders, but a symbolic link
/// that the archive made, or somebody else: the `tar` crate follows those that stay below `dir`. With
/// `whole`, the last part of the path is looked at as well.
fn check_way(dir: &Path, path: &Path, whole: bool) -> io::Result<()> {
    let mut way = dir.to_owned();
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        let Component::Normal(part) = part else { return Err(foreign(path)) };
        way.push(part);
        if parts.peek().is_none() && !whole {
            break;
        }
        match fs::symlink_metadata(&way) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => {
                let text = format!("{} is in the way: it is no folder", way.display());
                return Err(io::Error::new(io::ErrorKind::NotADirectory, text));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn foreign(path: &Path) -> io::Error {
    let text = format!("the guest sent {}, which was not asked for", path.display());
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Packs a file or a tree as `name`, owned by root. Sockets, pipes and devices are left out.
///
/// # Errors
/// Names what cannot be read.
pub fn pack(from: &Path, name: &OsStr, to: impl Write) -> io::Result<()> {
    let mut builder = Builder::new(to);
    // Trees may be deep: the paths that wait are kept here, not on the stack.
    let mut waiting = vec![(from.to_owned(), PathBuf::from(name))];
    while let Some((path, name)) = waiting.pop() {
        let failed =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let metadata = fs::symlink_metadata(&path).map_err(failed)?;
        let mut header = Header::new_gnu();
        header.set_metadata_in_mode(&metadata, HeaderMode::Complete);
        header.set_uid(0);
        header.set_gid(0);
        if metadata.is_dir() {
            builder.append_data(&mut header, &name, io::empty())?;
            for entry in fs::read_dir(&path).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                waiting.push((entry.path(), name.join(entry.file_name())));
            }
        } else if metadata.is_symlink() {
            header.set_size(0);
            builder.append_link(&mut header, &name, fs::read_link(&path).map_err(failed)?)?;
        } else if metadata.is_file() {
            header.set_entry_type(EntryType::Regular);
            append_file(&mut builder, &mut header, &name, File::open(&path).map_err(failed)?)?;
        }
    }
    builder.finish()
}

/// Appends as many bytes as the header says, also of a file that changes meanwhile.
fn append_file(
    builder: &mut Builder<impl Write>,
    header: &mut Header,
    name: &Path,
    file: File,
) -> io::Result<()> {
    let size = header.size()?;
    builder.append_data(header, name, file.chain(io::repeat(0)).take(size))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn entry(
        builder: &mut Builder<&mut Vec<u8>>,
        kind: EntryType,
        name: &str,
        link: &str,
        content: &[u8],
    ) {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.set_size(content.len() as u64);
        // Written as it is: the builder would refuse what a hostile guest sends.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }

    /// Kind, name, target of a link, content.
    type Sent<'a> = (EntryType, &'a str, &'a str, &'a [u8]);

    fn archive(entries: &[Sent]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut builder = Builder::new(&mut bytes);
        entries.iter().for_each(|(kind, name, link, content)| {
            entry(&mut builder, *kind, name, link, content);
        });
        builder.finish().unwrap();
        drop(builder);
        bytes
    }

    #[test]
    fn a_tree_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        let deep = "d".repeat(90);
        fs::create_dir_all(tree.join(&deep).join(&deep)).unwrap();
        fs::write(tree.join(&deep).join(&deep).join("file"), "deep").unwrap();
        fs::write(tree.join("run"), "#!").unwrap();
        fs::set_permissions(tree.join("run"), fs::Permissions::from_mode(0o750)).unwrap();
        symlink("run", tree.join("link")).unwrap();
        std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
        let mut bytes = Vec::new();
        pack(&tree, OsStr::new("other"), &mut bytes).unwrap();

        let to = dir.path().join("copy");
        let landing = Landing::prepare(&to).unwrap();
        landing.unpack(&*bytes, OsStr::new("other")).unwrap();
        assert!(!to.exists());
        landing.settle(OsStr::new("other")).unwrap();
        assert_eq!(fs::read(to.join(&deep).join(&deep).join("file")).unwrap(), b"deep");
        assert_eq!(fs::metadata(to.join("run")).unwrap().permissions().mode() & 0o777, 0o750);
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("run"));
        assert!(!to.join("socket").exists());
        // Below a folder that is there.
        let landing = Landing::prepare(&to).unwrap();
        landing.unpack(&*bytes, OsStr::new("other")).unwrap();
        landing.settle(OsStr::new("other")).unwrap();
        assert_eq!(fs::read(to.join("other/run")).unwrap(), b"#!");
        // Nothing else: neither the first copy's staging folder.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_a_guest_sends_stays_where_it_belongs() {
        let file = EntryType::Regular;
        let attacks: [&[Sent]; 5] = [
            &[(file, "other", "", b"x")],
            &[(file, "../x", "", b"x")],
            &[(file, "x/../../y", "", b"x")],
            &[(file, "/x", "", b"x")],
            &[(EntryType::Symlink, "x", "..", b""), (file, "x/y", "", b"x")],
        ];
        for entries in attacks {
            let dir = tempfile::tempdir().unwrap();
            let to = dir.path().join("to");
            fs::create_dir(&to).unwrap();
            let refused =
                Landing::prepare(&to).unwrap().unpack(&*archive(entries), OsStr::new("x"));
            assert!(refused.is_err(), "{entries:?}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "{entries:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        let device = archive(&[(EntryType::Char, "x", "", b""), (file, "x/run", "", b"x")]);
        Landing::prepare(dir.path()).unwrap().unpack(&*device, OsStr::new("x")).unwrap();
        let mode = fs::metadata(dir.path().join("x/run")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7000, 0, "setuid on the host");
    }

    #[test]
    fn what_a_user_has_beside_the_copy_is_not_touched() {
        let (file, folder, link) = (EntryType::Regular, EntryType::Directory, EntryType::Symlink);
        let attacks: [&[Sent]; 5] = [
            // Links that stay below the target of the copy.
            &[(folder, "x", "", b""), (link, "x/l", "..", b""), (file, "x/l/own", "", b"x")],
            &[(link, "x", ".", b""), (file, "x/own", "", b"x")],
            &[(folder, "x", "", b""), (link, "x/l", "..", b""), (folder, "x/l", "", b"")],
            // A second name for a file of the user's.
            &[(folder, "x", "", b""), (EntryType::Link, "x/n", "own", b"")],
            &[
                (folder, "x", "", b""),
                (link, "x/l", "..", b""),
                (EntryType::Link, "x/n", "x/l/own", b""),
            ],
        ];
        for entries in attacks {
            let to = tempfile::tempdir().unwrap();
            let own = to.path().join("own");
            fs::write(&own, "own").unwrap();
            fs::set_permissions(to.path(), fs::Permissions::from_mode(0o700)).unwrap();
            let refused =
                Landing::prepare(to.path()).unwrap().unpack(&*archive(entries), OsStr::new("x"));
            assert!(refused.is_err(), "{entries:?}");
            assert_eq!(fs::read(&own).unwrap(), b"own", "{entries:?}");
            assert_eq!(fs::metadata(&own).unwrap().nlink(), 1, "{entries:?}");
            assert_eq!(fs::metadata(to.path()).unwrap().mode() & 0o777, 0o700, "{entries:?}");
            assert!(fs::read_dir(to.path()).unwrap().count() <= 2, "{entries:?}");
        }
        // Links within the copy are made, and a copy goes over one that is there.
        let to = tempfile::tempdir().unwrap();
        let good = archive(&[
            (folder, "x", "", b""),
            (file, "x/a", "", b"a"),
            (EntryType::Link, "x/b", "x/a", b""),
            (link, "x/up", "..", b""),
        ]);
        for _ in 0..2 {
            Landing::prepare(to.path()).unwrap().unpack(&*good, OsStr::new("x")).unwrap();
        }
        assert_eq!(fs::metadata(to.path().join("x/a")).unwrap().nlink(), 2);
        assert_eq!(fs::read_link(to.path().join("x/up")).unwrap(), Path::new(".."));
    }

    #[test]
    fn a_file_that_shrinks_does_not_damage_what_follows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("short");
        fs::write(&path, "ab").unwrap();
        let mut bytes = Vec::new();
        let mut builder = Builder::new(&mut bytes);
        let mut header = Header::new_gnu();
        header.set_size(5);
        append_file(&mut builder, &mut header, Path::new("short"), File::open(&path).unwrap())
            .unwrap();
        builder.finish().unwrap();
        drop(builder);
        let mut archive = Archive::new(&*bytes);
        let mut content = Vec::new();
        archive.entries().unwrap().next().unwrap().unwrap().read_to_end(&mut content).unwrap();
        assert_eq!(content, b"ab\0\0\0");
    }
}
