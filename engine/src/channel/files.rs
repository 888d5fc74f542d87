//! Files of the guest.

use super::client::RequestStream;
use super::{Channel, ChannelError};
use mayfly_protocol::{ByteString, DirEntry, FileChunk, MAX_CHUNK, Metadata, Request};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Content that [`Channel::read_file`] holds at most, in bytes.
const CONTENT_LIMIT: usize = 64 << 20;

/// Entries of one directory; a hostile guest would list for ever.
const ENTRY_LIMIT: usize = 1 << 20;

impl Channel {
    /// Reads a regular file as a whole.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot read it, [`ChannelError::TooLong`] beyond 64 MiB.
    pub async fn read_file(&self, path: impl Into<ByteString>) -> Result<Vec<u8>, ChannelError> {
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
        path: impl Into<ByteString>,
        limit: u64,
        to: &mut W,
    ) -> Result<u64, ChannelError> {
        let (mut stream, _) = self.open_file(path.into(), 0, limit).await?;
        let mut copied = 0_u64;
        while let Some(bytes) = next_chunk(&mut stream).await? {
            copied = copied.saturating_add(bytes.len() as u64);
            if copied > limit {
                return Err(ChannelError::Protocol { reason: format!("more than the {limit} bytes asked for") });
            }
            to.write_all(&bytes).await?;
        }
        to.flush().await?;
        Ok(copied)
    }

    /// Writes a file: all of it appears under `path` at once, with permission bits `mode`, or nothing changes.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot write it.
    pub async fn write_file(&self, path: impl Into<ByteString>, mode: u32, content: &[u8]) -> Result<(), ChannelError> {
        self.write_file_from(path, mode, &mut &content[..]).await.map(drop)
    }

    /// Streams `from` into a file; like [`Channel::write_file`]. Returns the bytes written.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot write it, [`ChannelError::Io`] when `from` fails.
    pub async fn write_file_from<R: AsyncRead + Unpin>(
        &self,
        path: impl Into<ByteString>,
        mode: u32,
        from: &mut R,
    ) -> Result<u64, ChannelError> {
        let mut stream = self.send(&Request::WriteFile { path: path.into(), mode }).await?;
        stream.reply::<()>().await?;
        let mut buffer = vec![0; MAX_CHUNK];
        loop {
            match from.read(&mut buffer).await? {
                0 => break,
                count => stream.send(&FileChunk::Data(buffer[..count].to_vec())).await?,
            }
        }
        stream.send(&FileChunk::End).await?;
        stream.reply().await
    }

    /// Lists a directory, in no order, without `.` and `..`.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot, [`ChannelError::TooLong`] beyond a million entries. Names that
    /// would lead out of the directory are [`ChannelError::Protocol`].
    pub async fn list(&self, path: impl Into<ByteString>) -> Result<Vec<DirEntry>, ChannelError> {
        let mut stream = self.send(&Request::List { path: path.into() }).await?;
        let mut entries = Vec::new();
        loop {
            let batch: Vec<DirEntry> = stream.reply().await?;
            if batch.is_empty() {
                return Ok(entries);
            }
            if let Some(bad) = batch.iter().find(|entry| !is_file_name(entry.name.as_bytes())) {
                return Err(ChannelError::Protocol { reason: format!("directory entry named {:?}", bad.name) });
            }
            entries.extend(batch);
            if entries.len() > ENTRY_LIMIT {
                return Err(ChannelError::TooLong { what: "directory entries", limit: ENTRY_LIMIT });
            }
        }
    }

    /// lstat(2).
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot.
    pub async fn stat(&self, path: impl Into<ByteString>) -> Result<Metadata, ChannelError> {
        self.call(&Request::Stat { path: path.into() }).await
    }

    /// Makes a directory; with `parents` also the ones above it, and one that is there already is fine.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot.
    pub async fn mkdir(&self, path: impl Into<ByteString>, mode: u32, parents: bool) -> Result<(), ChannelError> {
        self.call(&Request::Mkdir { path: path.into(), mode, parents }).await
    }

    /// Removes a file, a link or an empty directory; with `recursive` also a directory and all in it.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot.
    pub async fn remove(&self, path: impl Into<ByteString>, recursive: bool) -> Result<(), ChannelError> {
        self.call(&Request::Remove { path: path.into(), recursive }).await
    }

    /// rename(2).
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot.
    pub async fn rename(&self, from: impl Into<ByteString>, to: impl Into<ByteString>) -> Result<(), ChannelError> {
        self.call(&Request::Rename { from: from.into(), to: to.into() }).await
    }

    async fn open_file(
        &self,
        path: ByteString,
        offset: u64,
        limit: u64,
    ) -> Result<(RequestStream, Metadata), ChannelError> {
        let mut stream = self.send(&Request::ReadFile { path, offset, limit }).await?;
        let metadata = stream.reply().await?;
        Ok((stream, metadata))
    }
}

async fn next_chunk(stream: &mut RequestStream) -> Result<Option<Vec<u8>>, ChannelError> {
    match stream.next::<FileChunk>().await? {
        FileChunk::Data(bytes) => Ok(Some(bytes)),
        FileChunk::End => Ok(None),
        FileChunk::Failed(error) => Err(error.into()),
    }
}

fn is_file_name(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0)
}
