//! Packing of what goes into a guest.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use mayfly_sparse::Map;
use nix::sys::stat::FileStat;
use tar::{Builder, EntryType, Header};

use super::about;
use super::beneath::{self, Folder, Found};

/// Packs a file or a tree as `name`, owned by root. Holes of files are left out. Sockets, pipes and devices are left out. Below
/// `from`, no symbolic link is followed, also one that takes the place of a folder meanwhile.
///
/// # Errors
/// Names what cannot be read.
pub fn pack(from: &Path, name: &OsStr, to: impl Write) -> io::Result<()> {
    let mut builder = Builder::new(to);
    let (stat, found) = beneath::find(from).map_err(|error| about(&error, from))?;
    let root = append(&mut builder, &stat, found, Path::new(name))?;
    let Some(root) = root else { return builder.finish() };
    let names = |folder: &Folder, path: &Path| {
        let names = folder.names().map_err(|error| about(&error, &from.join(path)))?;
        Ok::<_, io::Error>(names.into_iter().map(|name| path.join(name)).collect::<Vec<_>>())
    };
    // Trees may be deep: the paths that wait are kept here, not on the stack.
    let mut waiting = names(&root, Path::new(""))?;
    while let Some(path) = waiting.pop() {
        let shown = from.join(&path);
        let (stat, found) = root.find(&path).map_err(|error| about(&error, &shown))?;
        let folder = append(&mut builder, &stat, found, &Path::new(name).join(&path))?;
        if let Some(folder) = folder {
            waiting.extend(names(&folder, &path)?);
        }
    }
    builder.finish()
}

/// Appends what was found under `name`; returns the folder that it is.
fn append(
    builder: &mut Builder<impl Write>,
    stat: &FileStat,
    found: Found,
    name: &Path,
) -> io::Result<Option<Folder>> {
    let mut header = header_of(stat);
    match found {
        Found::Folder(folder) => {
            header.set_entry_type(EntryType::Directory);
            builder.append_data(&mut header, name, io::empty())?;
            return Ok(Some(folder));
        }
        Found::File(file) => {
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            // Blocks of 512 bytes: a file that has all of them has no holes.
            let holes =
                u64::try_from(stat.st_blocks).is_ok_and(|blocks| blocks < size.div_ceil(512));
            if let Some(map) = if holes { Map::of(&file, size)? } else { None } {
                let blocks = map.write(&mut header);
                builder.append_data(&mut header, name, blocks.chain(map.content(&file)))?;
                return Ok(None);
            }
            header.set_entry_type(EntryType::Regular);
            header.set_size(size);
            append_file(builder, &mut header, name, file)?;
        }
        Found::Link(target) => {
            header.set_entry_type(EntryType::Symlink);
            builder.append_link(&mut header, name, target)?;
        }
        Found::Other => {}
    }
    Ok(None)
}

/// Mode and time of a file, owned by root, without content.
fn header_of(stat: &FileStat) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(stat.st_mode);
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
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
    use std::fs;

    use tar::Archive;

    use super::*;

    #[test]
    fn a_link_is_packed_as_one_and_what_is_no_file_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(dir.path().join("secret"), "host").unwrap();
        std::os::unix::fs::symlink("../secret", tree.join("link")).unwrap();
        nix::unistd::mkfifo(&tree.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for from in [tree.clone(), tree.join("link"), tree.join("pipe")] {
            let mut bytes = Vec::new();
            pack(&from, OsStr::new("x"), &mut bytes).unwrap();
            let mut archive = Archive::new(&*bytes);
            let kinds = archive.entries().unwrap().map(|e| e.unwrap().header().entry_type());
            let kinds: Vec<_> = kinds.collect();
            let expected: &[EntryType] = match from.file_name().and_then(OsStr::to_str) {
                Some("tree") => &[EntryType::Directory, EntryType::Symlink],
                Some("link") => &[EntryType::Symlink],
                _ => &[],
            };
            assert_eq!(kinds, expected, "{}", from.display());
        }
        let missing = pack(&tree.join("none"), OsStr::new("x"), io::sink()).unwrap_err();
        assert!(missing.to_string().contains("tree/none"), "{missing}");
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
