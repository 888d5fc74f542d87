//! A file or a directory tree as a tar archive.

use mayfly_sparse::Map;
use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

/// Writes the archive of `path`, without the holes of its files if asked for; the bytes of file
/// content in it.
///
/// What disappears meanwhile is left out, and a file that changes its length is cut or filled with
/// zeros, so that the archive stays one.
pub fn write_archive(path: &Path, sparse: bool, out: &mut impl Write) -> io::Result<u64> {
    let device = std::fs::symlink_metadata(path)?.dev();
    let builder = Builder::new(out);
    let mut packer = Packer { builder, sparse, links: HashMap::new(), device, bytes: 0 };
    // The root has no name of its own.
    let name = path.file_name().map_or_else(|| b".".to_vec(), |name| name.as_bytes().to_vec());
    let mut stack = vec![(path.to_owned(), name)];
    while let Some((path, name)) = stack.pop() {
        match packer.entry(&path, name, &mut stack) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io::Error::new(error.kind(), Failed { path, error })),
        }
    }
    packer.builder.into_inner()?;
    Ok(packer.bytes)
}

#[derive(Debug, thiserror::Error)]
#[error("{}", path.display())]
struct Failed {
    path: PathBuf,
    #[source]
    error: io::Error,
}

struct Packer<W: Write> {
    builder: Builder<W>,
    sparse: bool,
    /// The first name of each file that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    device: u64,
    bytes: u64,
}

impl<W: Write> Packer<W> {
    fn entry(
        &mut self,
        path: &Path,
        mut name: Vec<u8>,
        stack: &mut Vec<(PathBuf, Vec<u8>)>,
    ) -> io::Result<()> {
        let metadata = std::fs::symlink_metadata(path)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            // Before the entry, so that one which cannot be read is an error and not an empty
            // directory.
            let children =
                if metadata.dev() == self.device { children(path, &name)? } else { Vec::new() };
            name.push(b'/');
            self.append(&mut header(&metadata, EntryType::Directory, 0), &name, b"", io::empty())?;
            stack.extend(children);
        } else if kind.is_symlink() {
            let target = std::fs::read_link(path)?;
            let mut header = header(&metadata, EntryType::Symlink, 0);
            self.append(&mut header, &name, target.as_os_str().as_bytes(), io::empty())?;
        } else if kind.is_file() {
            self.file(path, &name)?;
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, name: &[u8]) -> io::Result<()> {
        // It may be something else by now: a link is not followed, and a pipe does not wait for its
        // writer.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it was replaced while it was packed"));
        }
        if metadata.nlink() > 1 {
            let inode = (metadata.dev(), metadata.ino());
            if let Some(first) = self.links.get(&inode).cloned() {
                return self.append(
                    &mut header(&metadata, EntryType::Link, 0),
                    name,
                    &first,
                    io::empty(),
                );
            }
            self.links.insert(inode, name.to_vec());
        }
        let size = metadata.len();
        let mut header = header(&metadata, EntryType::Regular, size);
        // Blocks of 512 bytes: a file that has all of them has no holes, and need not be sought in.
        let holes = self.sparse && metadata.blocks().saturating_mul(512) < size;
        match if holes { Map::of(&file, size)? } else { None } {
            Some(map) => {
                let blocks = map.write(&mut header);
                self.append(&mut header, name, b"", blocks.chain(map.content(&file)))?;
            }
            None => self.append(&mut header, name, b"", exactly(file, size))?,
        }
        self.bytes = self.bytes.saturating_add(size);
        Ok(())
    }

    /// Appends an entry. Names are bytes here: those of the `tar` crate must be UTF-8 when they are
    /// long.
    fn append(
        &mut self,
        header: &mut Header,
        name: &[u8],
        target: &[u8],
        content: impl Read,
    ) -> io::Result<()> {
        let old = header.as_old_mut();
        let (name_room, target_room) = (old.name.len(), old.linkname.len());
        fill(&mut old.name, name);
        fill(&mut old.linkname, target);
        for (long, room, kind) in [
            (target, target_room, EntryType::GNULongLink),
            (name, name_room, EntryType::GNULongName),
        ] {
            if long.len() > room {
                let mut header = Header::new_gnu();
                fill(&mut header.as_old_mut().name, b"././@LongLink");
                header.set_mode(0o644);
                header.set_uid(0);
                header.set_gid(0);
                header.set_mtime(0);
                // With the zero byte that ends it.
                header.set_size(long.len() as u64 + 1);
                header.set_entry_type(kind);
                header.set_cksum();
                self.builder.append(&header, long.chain(&[0][..]))?;
            }
        }
        header.set_cksum();
        self.builder.append(header, content)
    }
}

fn fill(field: &mut [u8], bytes: &[u8]) {
    for (place, byte) in field.iter_mut().zip(bytes) {
        *place = *byte;
    }
}

fn header(metadata: &Metadata, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(size);
    header.set_entry_type(kind);
    header
}

fn children(path: &Path, name: &[u8]) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        children.push((entry.path(), [name, b"/", entry.file_name().as_bytes()].concat()));
    }
    Ok(children)
}

/// `size` bytes: the first of `file`, and zeros where it has none left.
fn exactly(file: File, size: u64) -> impl Read {
    file.take(size).chain(io::repeat(0)).take(size)
}
