//! Files of the guest, streamed in both directions.

use crate::wire::{Wire, invalid, reply};
use mayfly_protocol::{
    ByteString, DirEntry, FileChunk, FileKind, FrameError, GuestError, MAX_CHUNK, Metadata, Reply,
};
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const ENTRIES_PER_FRAME: usize = 256;

/// Serves a ReadFile stream.
pub async fn read(
    mut wire: Wire,
    path: &ByteString,
    offset: u64,
    limit: u64,
) -> Result<(), FrameError> {
    let (mut file, metadata) = match open_regular(path, offset) {
        Ok(opened) => opened,
        Err(error) => {
            wire.send(&Reply::<Metadata>::Err(error))?;
            return wire.close().await;
        }
    };
    wire.send(&Reply::Ok(metadata))?;
    let mut left = limit;
    let mut buffer = vec![0; MAX_CHUNK];
    loop {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        match file.read(&mut buffer[..want]) {
            Ok(0) => {
                wire.send(&FileChunk::End)?;
                return wire.close().await;
            }
            Ok(count) => {
                left -= count as u64;
                wire.send_now(&FileChunk::Data(buffer[..count].to_vec())).await?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                wire.send(&FileChunk::Failed(GuestError::io(format_args!("read {path}"), &error)))?;
                return wire.close().await;
            }
        }
    }
}

fn open_regular(path: &ByteString, offset: u64) -> Reply<(File, Metadata)> {
    // O_NONBLOCK: opening a named pipe would wait for its writer.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path.as_path());
    let mut file = reply(format_args!("open {path}"), opened)?;
    let metadata = reply(format_args!("stat {path}"), file.metadata())?;
    if !metadata.is_file() {
        return Err(invalid(format!("{path} is not a regular file")));
    }
    reply(format_args!("seek in {path}"), file.seek(SeekFrom::Start(offset)))?;
    Ok((file, convert(&metadata, None)))
}

/// Serves a WriteFile stream.
pub async fn write(mut wire: Wire, path: &ByteString, mode: u32) -> Result<(), FrameError> {
    let mut target = match Target::create(path, mode) {
        Ok(target) => target,
        Err(error) => {
            wire.send(&Reply::<()>::Err(error))?;
            return wire.close().await;
        }
    };
    wire.send(&Reply::<()>::Ok(()))?;
    let mut result: Reply<u64> = Ok(0);
    loop {
        wire.drain().await?;
        match wire.next::<FileChunk>().await? {
            // After a failure the rest is read and dropped, so that the engine comes to read the
            // answer.
            Some(FileChunk::Data(bytes)) => {
                if let Ok(written) = &mut result {
                    match target.file.write_all(&bytes) {
                        Ok(()) => *written += bytes.len() as u64,
                        Err(error) => {
                            result = Err(GuestError::io(format_args!("write {path}"), &error));
                        }
                    }
                }
            }
            Some(FileChunk::End) => break,
            // The engine gave up; the temporary file goes away.
            Some(FileChunk::Failed(_)) | None => return Ok(()),
        }
    }
    if let Ok(written) = result {
        result = reply(
            format_args!("write {path}"),
            target.commit(path.as_path(), mode).map(|()| written),
        );
    }
    wire.send(&result)?;
    wire.close().await
}

/// A temporary file beside its target, removed unless committed.
struct Target {
    file: File,
    temporary: Option<PathBuf>,
}

impl Target {
    fn create(path: &ByteString, mode: u32) -> Reply<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        if mode > 0o7777 {
            return Err(invalid(format!("file mode {mode:o} is beyond 7777")));
        }
        let path = path.as_path();
        let Some(name) = path.file_name() else {
            return Err(invalid(format!("{} is no file name", path.display())));
        };
        if path.is_dir() {
            return Err(GuestError {
                errno: libc::EISDIR,
                message: format!("{} is a directory", path.display()),
            });
        }
        // Cut, so that a name of the greatest length still has a temporary one.
        let stem = String::from_utf8_lossy(&name.as_bytes()[..name.len().min(60)]).into_owned();
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let temporary =
            path.with_file_name(format!(".{stem}.{}.{serial}.mayfly", std::process::id()));
        let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        let file = reply(format_args!("create {}", temporary.display()), created)?;
        Ok(Self { file, temporary: Some(temporary) })
    }

    fn commit(&mut self, path: &Path, mode: u32) -> io::Result<()> {
        self.file.set_permissions(Permissions::from_mode(mode))?;
        if let Some(temporary) = &self.temporary {
            std::fs::rename(temporary, path)?;
        }
        self.temporary = None;
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

/// Serves a List stream.
pub async fn list(mut wire: Wire, path: &ByteString) -> Result<(), FrameError> {
    let entries = reply(format_args!("list {path}"), std::fs::read_dir(path.as_path()));
    let mut entries = match entries {
        Ok(entries) => entries,
        Err(error) => {
            wire.send(&Reply::<Vec<DirEntry>>::Err(error))?;
            return wire.close().await;
        }
    };
    loop {
        let batch: io::Result<Vec<DirEntry>> =
            entries.by_ref().take(ENTRIES_PER_FRAME).map(entry).collect();
        let batch = reply(format_args!("list {path}"), batch);
        let last = !matches!(&batch, Ok(entries) if !entries.is_empty());
        wire.send_now(&batch).await?;
        if last {
            return wire.close().await;
        }
    }
}

fn entry(entry: io::Result<std::fs::DirEntry>) -> io::Result<DirEntry> {
    let entry = entry?;
    let kind = entry.file_type()?;
    Ok(DirEntry { name: entry.file_name().into(), kind: kind_of(kind) })
}

fn kind_of(kind: std::fs::FileType) -> FileKind {
    if kind.is_file() {
        FileKind::File
    } else if kind.is_dir() {
        FileKind::Directory
    } else if kind.is_symlink() {
        FileKind::Symlink
    } else {
        debug_assert!(
            kind.is_char_device() || kind.is_block_device() || kind.is_fifo() || kind.is_socket()
        );
        FileKind::Other
    }
}

fn convert(metadata: &std::fs::Metadata, target: Option<ByteString>) -> Metadata {
    Metadata {
        kind: kind_of(metadata.file_type()),
        size: metadata.size(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime_ns: metadata
            .mtime()
            .saturating_mul(1_000_000_000)
            .saturating_add(metadata.mtime_nsec()),
        target,
    }
}

/// Describes a path, as lstat(2) does.
pub fn stat(path: &ByteString) -> Reply<Metadata> {
    let metadata = reply(format_args!("stat {path}"), std::fs::symlink_metadata(path.as_path()))?;
    let target = match metadata.file_type().is_symlink() {
        true => Some(
            reply(format_args!("read link {path}"), std::fs::read_link(path.as_path()))?.into(),
        ),
        false => None,
    };
    Ok(convert(&metadata, target))
}

/// Makes a directory as mkdir(2) does, with parents if asked for.
pub fn mkdir(path: &ByteString, mode: u32, parents: bool) -> Reply<()> {
    if mode > 0o7777 {
        return Err(invalid(format!("directory mode {mode:o} is beyond 7777")));
    }
    let existed = path.as_path().is_dir();
    reply(
        format_args!("make directory {path}"),
        DirBuilder::new().recursive(parents).mode(mode).create(path.as_path()),
    )?;
    if existed {
        return Ok(());
    }
    // The umask has no say in a mode that was asked for.
    reply(
        format_args!("set mode of {path}"),
        std::fs::set_permissions(path.as_path(), Permissions::from_mode(mode)),
    )
}

/// Removes a path: unlink(2), rmdir(2), or all of a directory. A symbolic link is removed, never
/// followed.
pub fn remove(path: &ByteString, recursive: bool) -> Reply<()> {
    let target = path.as_path();
    let is_directory =
        reply(format_args!("remove {path}"), std::fs::symlink_metadata(target))?.is_dir();
    let removed = match (is_directory, recursive) {
        (true, true) => std::fs::remove_dir_all(target),
        (true, false) => std::fs::remove_dir(target),
        (false, _) => std::fs::remove_file(target),
    };
    reply(format_args!("remove {path}"), removed)
}

/// Renames a path, as rename(2) does.
pub fn rename(from: &ByteString, to: &ByteString) -> Reply<()> {
    reply(format_args!("rename {from} to {to}"), std::fs::rename(from.as_path(), to.as_path()))
}
