//! Files of the guest.

use super::client::RequestStream;
use super::{Channel, ChannelError, SetAside};
use mayfly_host::time_scale::scaled;
use mayfly_protocol::{
    ByteString, DirEntry, FileChunk, FilePath, ListOptions, MAX_CHUNK, MAX_XATTR_BYTES, MAX_XATTRS,
    Metadata, Request, StatOptions, WriteOptions, Written, is_relative_path,
};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Content that [`Channel::read_file`] holds at most, in bytes.
const CONTENT_LIMIT: usize = 64 << 20;

/// Entries of one directory; a hostile guest would list for ever.
const ENTRY_LIMIT: usize = 1 << 20;

/// How long a guest may take for the next sign of life while it is waited for. Its own file systems
/// may be frozen or hung, which is no reason to wait with it.
const ANSWER: Duration = Duration::from_secs(60);

/// How long it may take for what is one step here and many there, such as to remove a tree.
const LONG_ANSWER: Duration = Duration::from_mins(10);

/// Bytes that an entry takes beside those of its texts, in a list that may just have grown to twice
/// its length.
const ENTRY_BYTES: usize = 2 * size_of::<DirEntry>() + 32;

/// Bytes of the names of one directory, and of what is told of them: a million names may each have
/// 64 on average, `NAME_MAX` being 255.
const NAMES_LIMIT: usize = 64 << 20;

/// Entries of a directory, which count as held for the guest until this is dropped.
#[derive(Debug)]
pub struct Directory {
    /// In no order, without `.` and `..`.
    pub entries: Vec<DirEntry>,
    held: Option<SetAside>,
}

// Each path may be one of a user, see [`FilePath`]: an unknown user is [`ChannelError::Guest`] with
// ESRCH.
impl Channel {
    /// Reads a regular file as a whole.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot read it, [`ChannelError::TooLong`] beyond 64
    /// MiB.
    pub async fn read_file(&self, path: impl Into<FilePath>) -> Result<Vec<u8>, ChannelError> {
        let limit = CONTENT_LIMIT as u64 + 1;
        let (mut stream, _) = self.open_file(path.into(), 0, limit).await?;
        let mut content = Vec::new();
        while let Some(bytes) = next_chunk(&mut stream).await? {
            content.extend_from_slice(&bytes);
            if content.len() > CONTENT_LIMIT {
                return Err(ChannelError::TooLong { what: "file", limit: CONTENT_LIMIT });
            }
        }
        Ok(content)
    }

    /// Streams a regular file into `to`, at most `limit` bytes of it; returns the bytes copied.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot read it, [`ChannelError::Io`] when `to` fails.
    pub async fn read_file_to<W: AsyncWrite + Unpin>(
        &self,
        path: impl Into<FilePath>,
        limit: u64,
        to: &mut W,
    ) -> Result<u64, ChannelError> {
        self.read_file_range_to(path, 0, limit, to).await
    }

    /// Streams a part of a regular file into `to`: at most `limit` bytes from `offset` on. Returns
    /// the bytes copied, 0 when the file ends before `offset`.
    ///
    /// # Errors
    /// As for [`Channel::read_file_to`].
    pub async fn read_file_range_to<W: AsyncWrite + Unpin>(
        &self,
        path: impl Into<FilePath>,
        offset: u64,
        limit: u64,
        to: &mut W,
    ) -> Result<u64, ChannelError> {
        let (_, reader) = self.open_read(path, offset, limit).await?;
        reader.copy_to(to).await
    }

    /// Opens a regular file for reading at most `limit` bytes from `offset` on: what it is, and its
    /// content piece by piece. The guest's word about the size is no promise of how much will come.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot read it.
    pub async fn open_read(
        &self,
        path: impl Into<FilePath>,
        offset: u64,
        limit: u64,
    ) -> Result<(Metadata, FileReader), ChannelError> {
        let (stream, metadata) = self.open_file(path.into(), offset, limit).await?;
        Ok((metadata, FileReader::new(stream, limit, Excess::Protocol)))
    }

    /// Writes a file: all of it appears under `path` at once, with permission bits `mode`, or
    /// nothing changes. The owner of a file that was there is kept.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot write it.
    pub async fn write_file(
        &self,
        path: impl Into<FilePath>,
        mode: u32,
        content: &[u8],
    ) -> Result<(), ChannelError> {
        self.write_file_from(path, mode, &mut &content[..]).await.map(drop)
    }

    /// Streams `from` into a file; like [`Channel::write_file`]. Returns the bytes written.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot write it, [`ChannelError::Io`] when `from`
    /// fails.
    pub async fn write_file_from<R: AsyncRead + Unpin>(
        &self,
        path: impl Into<FilePath>,
        mode: u32,
        from: &mut R,
    ) -> Result<u64, ChannelError> {
        let options = WriteOptions { mode: Some(mode), ..WriteOptions::default() };
        self.write_with(path, options, from).await.map(|written| written.bytes)
    }

    /// Streams `from` into a file, in the way that `options` say. Without
    /// [`WriteOptions::in_place`], nothing changes when it fails; with it, what was written stays.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot write it, [`ChannelError::Io`] when `from`
    /// fails, [`ChannelError::NoAnswer`].
    pub async fn write_with<R: AsyncRead + Unpin>(
        &self,
        path: impl Into<FilePath>,
        options: WriteOptions,
        from: &mut R,
    ) -> Result<Written, ChannelError> {
        let mut stream = self.send(&Request::WriteFile { at: path.into(), options }).await?;
        answered(ANSWER, stream.reply::<()>()).await?;
        send_content(&mut stream, from).await?;
        answered(ANSWER, stream.reply()).await
    }

    /// Lists a directory, with names and types alone.
    ///
    /// # Errors
    /// As [`Channel::list_with`].
    pub async fn list(&self, path: impl Into<FilePath>) -> Result<Directory, ChannelError> {
        self.list_with(path, ListOptions::default()).await
    }

    /// Lists a directory, and those below it as far as `options` say. A directory comes before what
    /// is in it.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot, [`ChannelError::TooLong`] beyond a million
    /// entries or 64 MiB of names and the like, [`ChannelError::NoBuffers`] where not so much may be
    /// held, [`ChannelError::NoAnswer`]. Names that would lead out of the directory are
    /// [`ChannelError::Protocol`].
    pub async fn list_with(
        &self,
        path: impl Into<FilePath>,
        options: ListOptions,
    ) -> Result<Directory, ChannelError> {
        let mut stream = self.send(&Request::List { at: path.into(), options }).await?;
        let mut listed = Directory { entries: Vec::new(), held: self.driver().set_aside(0)? };
        let mut texts = 0;
        loop {
            let batch: Vec<DirEntry> = answered(ANSWER, stream.reply()).await?;
            if batch.is_empty() {
                return Ok(listed);
            }
            if let Some(bad) = batch.iter().find(|entry| !is_entry(entry, options)) {
                return Err(ChannelError::Protocol {
                    reason: format!("directory entry named {:?}", bad.name),
                });
            }
            let of_batch = batch.iter().map(bytes_of).sum::<usize>();
            texts += of_batch;
            if texts > NAMES_LIMIT {
                return Err(ChannelError::TooLong {
                    what: "names of directory entries",
                    limit: NAMES_LIMIT,
                });
            }
            let bytes = of_batch + ENTRY_BYTES * batch.len();
            if listed.held.as_mut().is_some_and(|held| !held.grow(bytes)) {
                return Err(ChannelError::NoBuffers);
            }
            listed.entries.extend(batch);
            if listed.entries.len() > ENTRY_LIMIT {
                return Err(ChannelError::TooLong {
                    what: "directory entries",
                    limit: ENTRY_LIMIT,
                });
            }
        }
    }

    /// Describes a path, as lstat(2) does.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot.
    pub async fn stat(&self, path: impl Into<FilePath>) -> Result<Metadata, ChannelError> {
        self.stat_with(path, StatOptions::default()).await
    }

    /// Describes a path, with what `options` ask for.
    ///
    /// # Errors
    /// As [`Channel::stat`].
    pub async fn stat_with(
        &self,
        path: impl Into<FilePath>,
        options: StatOptions,
    ) -> Result<Metadata, ChannelError> {
        checked(answered(ANSWER, self.call(&Request::Stat { at: path.into(), options })).await?)
    }

    /// Makes a directory; with `parents` also the ones above it, and one that is there already is
    /// fine. Returns whether it was made.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot.
    pub async fn mkdir(
        &self,
        path: impl Into<FilePath>,
        mode: u32,
        parents: bool,
    ) -> Result<bool, ChannelError> {
        answered(ANSWER, self.call(&Request::Mkdir { at: path.into(), mode, parents })).await
    }

    /// Removes a file, a link or an empty directory; with `recursive` also a directory and all in
    /// it. With `force` it is fine that there is nothing.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot.
    pub async fn remove(
        &self,
        path: impl Into<FilePath>,
        recursive: bool,
        force: bool,
    ) -> Result<(), ChannelError> {
        let request = Request::Remove { at: path.into(), recursive, force };
        answered(LONG_ANSWER, self.call(&request)).await
    }

    /// Renames a path, as rename(2) does; with `parents`, missing directories above the new one are
    /// made. Both paths are of the user of the first.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot.
    pub async fn rename(
        &self,
        from: impl Into<FilePath>,
        to: impl Into<ByteString>,
        parents: bool,
    ) -> Result<(), ChannelError> {
        let request = Request::Rename { from: from.into(), to: to.into(), parents };
        answered(ANSWER, self.call(&request)).await
    }

    async fn open_file(
        &self,
        at: FilePath,
        offset: u64,
        limit: u64,
    ) -> Result<(RequestStream, Metadata), ChannelError> {
        let mut stream = self.send(&Request::ReadFile { at, offset, limit }).await?;
        let metadata = checked(answered(ANSWER, stream.reply()).await?)?;
        Ok((stream, metadata))
    }
}

/// Refuses a description with more than an agent tells: in memory an attribute takes many times what
/// it takes in a frame.
fn checked(metadata: Metadata) -> Result<Metadata, ChannelError> {
    let attributes = metadata.xattrs.as_ref().map_or(&[][..], |xattrs| &xattrs.attributes);
    let bytes: usize =
        attributes.iter().map(|it| it.name.as_bytes().len() + it.value.as_bytes().len()).sum();
    if attributes.len() > MAX_XATTRS || bytes > MAX_XATTR_BYTES {
        return Err(ChannelError::TooLong { what: "extended attributes", limit: MAX_XATTR_BYTES });
    }
    Ok(metadata)
}

/// Waits for a guest, but not longer than `limit` on a host of usual speed.
pub(super) async fn answered<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, ChannelError>>,
) -> Result<T, ChannelError> {
    let limit = scaled(limit);
    let answer = tokio::time::timeout(limit, work).await;
    answer.unwrap_or(Err(ChannelError::NoAnswer { after: limit }))
}

/// Waits for the result of work whose parts cannot be seen here.
pub(super) async fn answered_late<T>(
    work: impl Future<Output = Result<T, ChannelError>>,
) -> Result<T, ChannelError> {
    answered(LONG_ANSWER, work).await
}

/// Waits for the first answer to a request.
pub(super) async fn answered_soon<T>(
    work: impl Future<Output = Result<T, ChannelError>>,
) -> Result<T, ChannelError> {
    answered(ANSWER, work).await
}

/// Whether an entry lies below the directory, no deeper than was asked for.
fn is_entry(entry: &DirEntry, options: ListOptions) -> bool {
    let name = entry.name.as_bytes();
    let level = name.iter().filter(|byte| **byte == b'/').count() + 1;
    is_relative_path(name) && u32::try_from(level).is_ok_and(|level| level <= options.depth)
}

/// Bytes of the texts of an entry.
fn bytes_of(entry: &DirEntry) -> usize {
    let Some(metadata) = &entry.metadata else { return entry.name.as_bytes().len() };
    let paths = [&entry.name, &metadata.path]
        .into_iter()
        .chain(&metadata.target)
        .chain(metadata.followed.as_ref().map(|followed| &followed.path));
    let names = metadata.owner.iter().chain(&metadata.group).map(String::len);
    let xattrs = metadata.xattrs.iter().flat_map(|xattrs| &xattrs.attributes);
    let xattrs = xattrs.map(|xattr| {
        size_of_val(xattr) + xattr.name.as_bytes().len() + xattr.value.as_bytes().len()
    });
    let texts = paths.map(|path| path.as_bytes().len()).chain(names).chain(xattrs);
    size_of_val(&**metadata) + texts.sum::<usize>()
}

/// What it means that the guest sends more than the limit.
#[derive(Clone, Copy, Debug)]
pub(super) enum Excess {
    /// It was told the limit.
    Protocol,
    /// The limit is ours, for content of this name.
    TooLong(&'static str),
}

/// Content on its way from the guest. Dropping it tells the guest to stop.
#[derive(Debug)]
pub struct FileReader {
    stream: RequestStream,
    limit: u64,
    left: u64,
    excess: Excess,
    ended: bool,
}

impl FileReader {
    pub(super) fn new(stream: RequestStream, limit: u64, excess: Excess) -> Self {
        Self { stream, limit, left: limit, excess, ended: false }
    }

    /// Waits for the next piece, of 1 byte to 64 KiB; `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest fails in the middle. [`ChannelError::Protocol`] when
    /// it sends more than the limit it was given, [`ChannelError::TooLong`] when a tar is longer
    /// than the caller's limit. Nothing follows an error.
    pub async fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, ChannelError> {
        if self.ended {
            return Ok(None);
        }
        let chunk = next_chunk(&mut self.stream).await;
        self.ended = !matches!(chunk, Ok(Some(_)));
        let Some(bytes) = chunk? else { return Ok(None) };
        if let Some(left) = self.left.checked_sub(bytes.len() as u64) {
            self.left = left;
            Ok(Some(bytes))
        } else {
            self.ended = true;
            Err(match self.excess {
                Excess::Protocol => ChannelError::Protocol {
                    reason: format!("more than the {} bytes asked for", self.limit),
                },
                Excess::TooLong(what) => ChannelError::TooLong {
                    what,
                    limit: usize::try_from(self.limit).unwrap_or(usize::MAX),
                },
            })
        }
    }

    pub(super) async fn copy_to<W: AsyncWrite + Unpin>(
        mut self,
        to: &mut W,
    ) -> Result<u64, ChannelError> {
        while let Some(bytes) = self.next_chunk().await? {
            to.write_all(&bytes).await?;
        }
        to.flush().await?;
        Ok(self.limit - self.left)
    }
}

/// Sends all of `from` as chunks.
pub(super) async fn send_content<R: AsyncRead + Unpin>(
    stream: &mut RequestStream,
    from: &mut R,
) -> Result<(), ChannelError> {
    let mut buffer = vec![0; MAX_CHUNK];
    loop {
        match from.read(&mut buffer).await? {
            0 => return answered(ANSWER, stream.send(&FileChunk::End)).await,
            count => {
                let chunk = FileChunk::Data(buffer[..count].to_vec());
                answered(ANSWER, stream.send(&chunk)).await?;
            }
        }
    }
}

async fn next_chunk(stream: &mut RequestStream) -> Result<Option<Vec<u8>>, ChannelError> {
    match answered(ANSWER, stream.next::<FileChunk>()).await? {
        // An empty piece would bring nobody nearer to a limit, for ever.
        FileChunk::Data(bytes) if bytes.is_empty() || bytes.len() > MAX_CHUNK => {
            Err(ChannelError::Protocol {
                reason: format!("a piece of {} bytes of content", bytes.len()),
            })
        }
        FileChunk::Data(bytes) => Ok(Some(bytes)),
        FileChunk::End => Ok(None),
        FileChunk::Failed(error) => Err(error.into()),
    }
}
