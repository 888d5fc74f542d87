//! The stream of WriteFile.

use super::{Place, at, is_a_directory, xattrs};
use crate::context::Context;
use crate::threads::{Elsewhere, Work};
use crate::wire::{Wire, invalid, reply};
use mayfly_protocol::{FileChunk, FilePath, FrameError, MAX_CHUNK, Reply, WriteOptions, Written};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Permission bits of a new file.
const MODE: u32 = 0o644;

/// Bytes that are gathered before a thread writes them.
const PIECE: usize = 4 * MAX_CHUNK;

/// Serves a WriteFile stream.
pub async fn write(
    mut wire: Wire,
    path: FilePath,
    options: WriteOptions,
    context: &Context,
) -> Result<(), FrameError> {
    let opened = at(context, Work::Change, path, move |place| Target::open(place, options)).await;
    let target = match opened {
        Ok(target) => Elsewhere::new(target, &context.threads),
        Err(error) => {
            wire.send(&Reply::<()>::Err(error))?;
            return wire.close().await;
        }
    };
    wire.send(&Reply::<()>::Ok(()))?;
    let mut target = Ok(target);
    let mut gathered = Vec::new();
    loop {
        wire.drain().await?;
        let chunk = wire.next::<FileChunk>().await;
        let ended = match chunk {
            // After a failure the rest is read and dropped, so that the engine comes to read the
            // answer.
            Ok(Some(FileChunk::Data(_))) if target.is_err() => false,
            Ok(Some(FileChunk::Data(bytes))) => {
                gathered.extend_from_slice(&bytes);
                false
            }
            Ok(Some(FileChunk::End)) => true,
            // The engine gave up; a temporary file goes away.
            given_up => {
                if let Ok(target) = target.map(Elsewhere::into_inner) {
                    let drop_it = move || {
                        drop(target);
                        Ok(())
                    };
                    let _ = context.threads.run(Work::Change, drop_it).await;
                }
                return given_up.map(drop);
            }
        };
        if ended {
            break;
        }
        if gathered.len() >= PIECE {
            let bytes = std::mem::take(&mut gathered);
            target = change(target, context, move |target| target.write(&bytes)).await;
        }
    }
    let written = match target {
        Ok(target) => {
            let mut target = target.into_inner();
            // It is closed there, too.
            let finish = move || {
                let place = target.place.clone();
                place.act(|| {
                    target.write(&gathered)?;
                    target.commit()
                })
            };
            context.threads.run(Work::Change, finish).await
        }
        Err(error) => Err(error),
    };
    wire.send(&written)?;
    wire.close().await
}

/// Does `work` on a target in a thread, unless something has failed before. A failed target is
/// dropped there, too.
async fn change(
    target: Reply<Elsewhere<Target>>,
    context: &Context,
    work: impl FnOnce(&mut Target) -> Reply<()> + Send + 'static,
) -> Reply<Elsewhere<Target>> {
    let mut target = target?.into_inner();
    let job = move || {
        let place = target.place.clone();
        // With these rights it is dropped as well, when it has failed.
        place.act(move || {
            work(&mut target)?;
            Ok(target)
        })
    };
    let target = context.threads.run(Work::Change, job).await?;
    Ok(Elsewhere::new(target, &context.threads))
}

/// A file that is being written.
struct Target {
    place: Place,
    options: WriteOptions,
    file: File,
    written: u64,
    /// Where it is written until it is whole; removed unless committed.
    temporary: Option<PathBuf>,
    /// Whom the file has to be given, and its permission bits, where they are not right yet.
    owner: Option<(u32, u32)>,
    mode: Option<u32>,
}

impl Target {
    fn open(place: &Place, options: WriteOptions) -> Reply<Self> {
        let path = place.as_path();
        if let Some(mode @ 0o10000..) = options.mode {
            return Err(invalid(format!("file mode {mode:o} is beyond 7777")));
        }
        if path.file_name().is_none() {
            return Err(invalid(format!("{} is no file name", place.path)));
        }
        if let Some(set) = &options.xattrs {
            xattrs::check(set)?;
        }
        if options.parents {
            place.make_parents(path)?;
        }
        if path.is_dir() {
            return Err(is_a_directory(&place.path));
        }
        if options.in_place {
            Self::open_in_place(place, options)
        } else {
            Self::open_beside(place, options)
        }
    }

    fn open_in_place(place: &Place, options: WriteOptions) -> Reply<Self> {
        let path = place.as_path();
        // O_NONBLOCK: opening a named pipe would wait for its reader.
        let open = |create| {
            OpenOptions::new()
                .write(true)
                .truncate(true)
                .create(create)
                .mode(MODE)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                .open(path)
        };
        let (opened, new) = match open(false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => (open(true), true),
            opened => (opened, false),
        };
        let file = reply(format_args!("open {}", place.path), opened)?;
        let metadata = reply(format_args!("stat {}", place.path), file.metadata())?;
        if !metadata.is_file() {
            return Err(invalid(format!("{} is not a regular file", place.path)));
        }
        Ok(Self {
            place: place.clone(),
            file,
            written: 0,
            temporary: None,
            owner: place.owner_ids().filter(|_| new),
            mode: options.mode,
            options,
        })
    }

    fn open_beside(place: &Place, options: WriteOptions) -> Reply<Self> {
        let path = place.as_path();
        let there = std::fs::symlink_metadata(path).ok().filter(std::fs::Metadata::is_file);
        if there.is_some() && place.rights().is_some() {
            // A rename needs rights for the directory alone.
            let may = accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS);
            reply(format_args!("open {}", place.path), may.map_err(io::Error::from))?;
        }
        let temporary = beside(path);
        let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        // Its name means nothing to whoever asked.
        let file = reply(format_args!("create {}", place.path), created)?;
        let own = file.metadata().ok().map(|own| (own.uid(), own.gid()));
        let owner = there.as_ref().map(|there| (there.uid(), there.gid())).or(place.owner_ids());
        let kept = there.map(|there| there.mode() & 0o7777);
        Ok(Self {
            place: place.clone(),
            file,
            written: 0,
            temporary: Some(temporary),
            owner: owner.filter(|owner| Some(*owner) != own),
            mode: options.mode.or(kept).or(Some(MODE)),
            options,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Reply<()> {
        reply(format_args!("write {}", self.place.path), self.file.write_all(bytes))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn commit(mut self) -> Reply<Written> {
        let committed = self.settle();
        reply(format_args!("write {}", self.place.path), committed)?;
        Ok(Written { bytes: self.written, path: self.place.path.clone() })
    }

    fn settle(&mut self) -> io::Result<()> {
        if let Some((uid, gid)) = self.owner {
            self.give(uid, gid)?;
        }
        // After the owner, whose change takes setuid and setgid away (chown(2)).
        if let Some(mode) = self.mode {
            self.file.set_permissions(Permissions::from_mode(mode))?;
        }
        if let Some(set) = &self.options.xattrs {
            xattrs::replace(&self.file, set)?;
        }
        if let Some(temporary) = &self.temporary {
            std::fs::rename(temporary, self.place.as_path())?;
        }
        self.temporary = None;
        Ok(())
    }

    /// Gives the file its owner. A user who may not give files away keeps it, in its group where
    /// that is one of theirs; then it must not have the rights of that owner either.
    fn give(&mut self, uid: u32, gid: u32) -> io::Result<()> {
        let given = fchown(&self.file, Some(uid), Some(gid));
        if given.is_ok() || self.place.rights().is_none() {
            return given;
        }
        let grouped = fchown(&self.file, None, Some(gid));
        if self.options.mode.is_none() {
            let lost = if grouped.is_ok() { 0o4000 } else { 0o6000 };
            self.mode = self.mode.map(|mode| mode & !lost);
        }
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = std::fs::remove_file(temporary);
        }
    }
}

/// A name beside `path` that nobody else uses.
fn beside(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default();
    // Cut, so that a name of the greatest length still has a temporary one.
    let stem = String::from_utf8_lossy(&name.as_bytes()[..name.len().min(60)]).into_owned();
    let serial = NEXT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{stem}.{}.{serial}.mayfly", std::process::id()))
}
