//! The stream of List.

use super::names::Names;
use super::{Place, at, kind_of, stat};
use crate::context::Context;
use crate::threads::Work;
use crate::wire::{Wire, invalid, reply};
use mayfly_protocol::{DirEntry, FileKind, FilePath, FrameError, ListOptions, Metadata, Reply};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use std::fs::ReadDir;
use std::io;
use std::path::{Path, PathBuf};

/// Entries of one frame at most.
const ENTRIES: usize = 256;

/// Bytes of the entries of one frame, about; with one entry more it still is a frame.
const BYTES: usize = 512 * 1024;

/// Serves a List stream.
pub async fn list(
    mut wire: Wire,
    path: FilePath,
    options: ListOptions,
    context: &Context,
) -> Result<(), FrameError> {
    let mut walk = match at(context, Work::Read, path, move |place| Walk::new(place, options)).await
    {
        Ok(walk) => walk,
        Err(error) => {
            wire.send(&Reply::<Vec<DirEntry>>::Err(error))?;
            return wire.close().await;
        }
    };
    loop {
        let next = context.threads.run(Work::Read, move || {
            let place = walk.place.clone();
            place.act(|| {
                let batch = walk.batch()?;
                Ok((walk, batch))
            })
        });
        // The entries before leave meanwhile.
        let (next, drained) = tokio::join!(next, wire.drain());
        drained?;
        let (batch, back) = match next {
            Ok((back, batch)) => (Ok(batch), Some(back)),
            Err(error) => (Err(error), None),
        };
        wire.send(&batch)?;
        match (batch, back) {
            (Ok(batch), Some(back)) if !batch.is_empty() => walk = back,
            _ => return wire.close().await,
        }
    }
}

/// A directory that is being listed, and those below that are still to be.
struct Walk {
    place: Place,
    options: ListOptions,
    names: Names,
    /// The one that is read, its path relative to the place, and its level.
    current: Option<(ReadDir, PathBuf, u32)>,
    waiting: Vec<(PathBuf, u32)>,
}

impl Walk {
    fn new(place: &Place, options: ListOptions) -> Reply<Self> {
        if options.depth == 0 {
            return Err(invalid("a list has a depth of 1 at least"));
        }
        let opened =
            reply(format_args!("list {}", place.path), std::fs::read_dir(place.as_path()))?;
        let names = options.stat.map(|_| Names::read()).unwrap_or_default();
        Ok(Self {
            place: place.clone(),
            options,
            names,
            current: Some((opened, PathBuf::new(), 1)),
            waiting: Vec::new(),
        })
    }

    /// The next entries; none at the end.
    fn batch(&mut self) -> Reply<Vec<DirEntry>> {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while entries.len() < ENTRIES && bytes < BYTES {
            let Some(entry) = self.next()? else { break };
            bytes += size_of_entry(&entry);
            entries.push(entry);
        }
        Ok(entries)
    }

    fn next(&mut self) -> Reply<Option<DirEntry>> {
        loop {
            let Some((directory, relative, level)) = &mut self.current else {
                let Some((relative, level)) = self.waiting.pop() else { return Ok(None) };
                // It may have gone, or changed, since it was told.
                if let Ok(opened) = std::fs::read_dir(self.place.as_path().join(&relative)) {
                    self.current = Some((opened, relative, level));
                }
                continue;
            };
            let Some(found) = directory.next() else {
                self.current = None;
                continue;
            };
            let (relative, level) = (relative.clone(), *level);
            let entry = found.and_then(|entry| Ok((entry.file_name(), entry.file_type()?)));
            let (name, kind) = match entry {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entry => reply(format_args!("list {}", self.place.path), entry)?,
            };
            if let Some(entry) = self.entry(relative.join(name), kind_of(kind), level)? {
                return Ok(Some(entry));
            }
        }
    }

    /// One entry; nothing when it is gone by now.
    fn entry(&mut self, name: PathBuf, kind: FileKind, level: u32) -> Reply<Option<DirEntry>> {
        let path = self.place.as_path().join(&name);
        let metadata = match self.options.stat {
            Some(options) => match stat::describe((&path).into(), options, &self.names) {
                Err(error) if error.errno == libc::ENOENT => return Ok(None),
                described => Some(Box::new(described?)),
            },
            None => None,
        };
        let kind = metadata.as_ref().map_or(kind, |metadata| metadata.kind);
        let mut unreadable = false;
        if kind == FileKind::Directory && level < self.options.depth {
            unreadable = !may_list(&path);
            if !unreadable {
                self.waiting.push((name.clone(), level + 1));
            }
        }
        Ok(Some(DirEntry { name: name.into(), kind, unreadable, metadata }))
    }
}

fn may_list(path: &Path) -> bool {
    let access = Access::READ_OK | Access::EXEC_OK;
    !matches!(
        accessat(CWD, path, access, AtFlags::EACCESS),
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM)
    )
}

fn size_of_entry(entry: &DirEntry) -> usize {
    entry.name.as_bytes().len() + 16 + entry.metadata.as_deref().map_or(0, size_of_metadata)
}

fn size_of_metadata(metadata: &Metadata) -> usize {
    let names = metadata.owner.iter().chain(&metadata.group).map(String::len);
    let paths = metadata.target.iter().chain(metadata.followed.as_ref().map(|other| &other.path));
    let xattrs = metadata.xattrs.iter().flat_map(|xattrs| &xattrs.attributes);
    128 + metadata.path.as_bytes().len()
        + names.sum::<usize>()
        + paths.map(|path| path.as_bytes().len()).sum::<usize>()
        + xattrs
            .map(|xattr| xattr.name.as_bytes().len() + xattr.value.as_bytes().len() + 8)
            .sum::<usize>()
}
