//! The host's end of a copy: packs what goes into a guest, and unpacks what comes out of one
//! without trusting it.

mod beneath;
mod pack;
mod screen;

use std::ffi::OsStr;
use std::fs::{File, FileTimes, Permissions};
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use mayfly_protocol::Printable;
use mayfly_sparse::Map;
use tar::{Archive, Entry, EntryType};
use tempfile::TempDir;

use self::beneath::Folder;
pub use self::pack::pack;
use self::screen::Screened;

/// Destination of a copy out of a guest: below a folder that is there, or under a name of its own,
/// all at once.
#[derive(Debug)]
pub struct Landing {
    to: PathBuf,
    /// Where it is unpacked.
    folder: Folder,
    staging: Option<TempDir>,
}

impl Landing {
    /// Makes ready for a copy to `to`.
    ///
    /// # Errors
    /// When `to` is no folder, and nothing can be made beside it.
    pub fn prepare(to: &Path) -> io::Result<Self> {
        if to.is_dir() {
            return Ok(Self { to: to.to_owned(), folder: Folder::open(to)?, staging: None });
        }
        let beside =
            to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Nobody else is to look at what is not complete.
        let private = Permissions::from_mode(0o700);
        let staging = tempfile::Builder::new()
            .prefix(".mayfly-cp-")
            .permissions(private)
            .tempdir_in(beside)
            // The message has a name that means nothing to whoever asked.
            .map_err(|error| in_folder(&error, beside))?;
        let folder = Folder::open(staging.path())?;
        Ok(Self { to: to.to_owned(), folder, staging: Some(staging) })
    }

    /// Unpacks an archive whose names all begin with `name`. It is a guest's work, thus hostile:
    /// nothing outside of the landing is touched, setuid and owners are not kept, nor permissions
    /// that the umask takes or, of folders, others' leave to write; folders that were there keep
    /// theirs. Devices and the like are left out, memory stays bounded.
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
        let screened = Screened::new(from);
        let map = screened.map();
        let mut archive = Archive::new(screened);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.into_owned();
            check_path(&path, name)?;
            let map = map.borrow_mut().take();
            self.unpack_entry(&mut entry, &path, name, map)
                .map_err(|error| about(&error, &path))?;
        }
        // What pads the archive is read as well: its sender would take the early end for a failure.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map(drop)
    }

    fn unpack_entry(
        &self,
        entry: &mut Entry<'_, impl Read>,
        path: &Path,
        name: &OsStr,
        map: Option<Map>,
    ) -> io::Result<()> {
        let mode = entry.header().mode()?;
        let nowhere = || io::Error::new(io::ErrorKind::InvalidData, "it is a link to nowhere");
        match entry.header().entry_type() {
            EntryType::Directory => self.folder.make_folder(path, mode),
            EntryType::Regular => {
                let mut file = self.folder.make_file(path, mode)?;
                match map {
                    Some(map) => fill(&mut file, entry, &map)?,
                    None => copy_exactly(entry, &mut file, entry.size())?,
                }
                match SystemTime::UNIX_EPOCH
                    .checked_add(Duration::from_secs(entry.header().mtime()?))
                {
                    Some(time) => {
                        file.set_times(FileTimes::new().set_accessed(time).set_modified(time))
                    }
                    None => Ok(()),
                }
            }
            EntryType::Symlink => {
                let target = entry.link_name()?.ok_or_else(nowhere)?;
                self.folder.make_link(path, &target)
            }
            EntryType::Link => {
                let target = entry.link_name()?.ok_or_else(nowhere)?;
                check_path(&target, name)?;
                self.folder.make_name(path, &target)
            }
            _ => Ok(()),
        }
    }

    /// Gives the copy its name.
    ///
    /// # Errors
    /// When there was nothing of that name, or what is in its place cannot be replaced.
    pub fn settle(self, name: &OsStr) -> io::Result<()> {
        match self.staging {
            Some(_) => self.folder.move_out(name, &self.to),
            None => Ok(()),
        }
    }
}

/// Writes the data of a sparse file where it belongs; between it are holes.
fn fill(file: &mut File, from: &mut impl Read, map: &Map) -> io::Result<()> {
    for extent in map.extents() {
        file.seek(SeekFrom::Start(extent.offset))?;
        copy_exactly(from, file, extent.length)?;
    }
    file.set_len(map.size())
}

fn copy_exactly(from: &mut impl Read, to: &mut File, length: u64) -> io::Result<()> {
    match io::copy(&mut from.take(length), to)? {
        copied if copied == length => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Refuses a path of an archive that does not begin with `name` and go down from there.
fn check_path(path: &Path, name: &OsStr) -> io::Result<()> {
    let mut parts = path.components();
    let first = parts.next() == Some(Component::Normal(name));
    if first && parts.all(|part| matches!(part, Component::Normal(_))) {
        return Ok(());
    }
    let text = format!("the guest sent {}, which was not asked for", path.display());
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

/// A failure to make something in a folder of the host.
fn in_folder(error: &io::Error, folder: &Path) -> io::Error {
    let cause = error.get_ref().and_then(std::error::Error::source).map(ToString::to_string);
    let text = match error.kind() {
        io::ErrorKind::NotFound => "there is no such folder".to_owned(),
        kind => cause.unwrap_or_else(|| kind.to_string()),
    };
    io::Error::new(error.kind(), format!("cannot make anything in {}: {text}", folder.display()))
}

fn about(error: &io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use tar::{Builder, Header};

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
        // As a hostile guest has it: setuid, and anybody may write.
        header.set_mode(0o4777);
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
        fs::set_permissions(tree.join("run"), Permissions::from_mode(0o750)).unwrap();
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
            fs::set_permissions(to.path(), Permissions::from_mode(0o700)).unwrap();
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

    /// The permissions that the umask of this process takes.
    fn umask() -> u32 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap();
        u32::from_str_radix(mask.trim(), 8).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn what_comes_out_is_for_others_to_write_only_as_the_umask_says() {
        let (file, folder) = (EntryType::Regular, EntryType::Directory);
        let bytes = archive(&[
            (folder, "x", "", b""),
            (folder, "x/there", "", b""),
            (folder, "x/new", "", b""),
            (file, "x/new/f", "", b"f"),
            // Its folder has no entry of its own.
            (file, "x/between/f", "", b"f"),
        ]);
        let to = tempfile::tempdir().unwrap();
        fs::create_dir_all(to.path().join("x/there")).unwrap();
        fs::set_permissions(to.path().join("x/there"), Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(to.path().join("x"), Permissions::from_mode(0o750)).unwrap();
        let landing = Landing::prepare(to.path()).unwrap();
        landing.unpack(&*bytes, OsStr::new("x")).unwrap();
        assert_eq!(mode(&to.path().join("x")), 0o750, "it was there");
        assert_eq!(mode(&to.path().join("x/there")), 0o700, "it was there");
        for made in ["x/new", "x/between"] {
            assert_eq!(mode(&to.path().join(made)), 0o777 & !(umask() | 0o022), "{made}");
        }
        assert_eq!(mode(&to.path().join("x/new/f")), 0o777 & !umask());
    }

    #[test]
    fn a_sparse_file_stays_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        let file = File::create(&from).unwrap();
        file.set_len(1 << 30).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 5000], 300_000_000).unwrap();
        let mut bytes = Vec::new();
        pack(&from, OsStr::new("x"), &mut bytes).unwrap();
        assert!(bytes.len() < 1 << 20, "{} bytes", bytes.len());
        let to = dir.path().join("to");
        let landing = Landing::prepare(&to).unwrap();
        landing.unpack(&*bytes, OsStr::new("x")).unwrap();
        landing.settle(OsStr::new("x")).unwrap();
        let copy = fs::metadata(&to).unwrap();
        assert_eq!(copy.len(), 1 << 30);
        assert!(copy.blocks() * 512 < 1 << 20, "{} blocks", copy.blocks());
        let mut middle = [0; 5002];
        let copy = File::open(&to).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&copy, &mut middle, 299_999_999).unwrap();
        assert_eq!((middle[0], middle[5001]), (0, 0));
        assert_eq!(middle[1..5001], [7; 5000]);
        // One that is cut off is an error.
        let cut = Landing::prepare(&dir.path().join("cut")).unwrap();
        cut.unpack(&bytes[..2000], OsStr::new("x")).unwrap_err();
    }

    #[test]
    fn a_folder_that_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Landing::prepare(&dir.path().join("missing/x")).unwrap_err().to_string();
        assert!(error.contains("missing: there is no such folder"), "{error}");
        assert!(!error.contains(".mayfly"), "{error}");
    }

    #[test]
    fn nobody_else_enters_a_copy_that_is_not_complete() {
        let dir = tempfile::tempdir().unwrap();
        let landing = Landing::prepare(&dir.path().join("copy")).unwrap();
        let staging = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap();
        assert_eq!(mode(&staging.path()), 0o700);
        let bytes = archive(&[(EntryType::Directory, "x", "", b"")]);
        landing.unpack(&*bytes, OsStr::new("x")).unwrap();
        landing.settle(OsStr::new("x")).unwrap();
        assert_eq!(mode(&dir.path().join("copy")), 0o777 & !(umask() | 0o022));
    }

    #[test]
    fn times_come_along_and_a_file_that_is_cut_off_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), [b'x'; 2000]).unwrap();
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let file = File::options().write(true).open(dir.path().join("f")).unwrap();
        file.set_times(FileTimes::new().set_modified(then)).unwrap();
        let mut bytes = Vec::new();
        pack(&dir.path().join("f"), OsStr::new("x"), &mut bytes).unwrap();
        let to = dir.path().join("to");
        let landing = Landing::prepare(&to).unwrap();
        landing.unpack(&*bytes, OsStr::new("x")).unwrap();
        landing.settle(OsStr::new("x")).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().modified().unwrap(), then);
        let landing = Landing::prepare(&dir.path().join("cut")).unwrap();
        assert!(landing.unpack(&bytes[..1500], OsStr::new("x")).is_err());
    }
}
