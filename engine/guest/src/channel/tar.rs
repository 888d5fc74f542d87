//! Tar archives of the guest's files, both ways.

use super::files::{Excess, FileReader, answered_late, answered_soon, send_content};
use super::{Channel, ChannelError};
use mayfly_protocol::{FilePath, Request};
use tokio::io::{AsyncRead, AsyncWrite};

impl Channel {
    /// Has the guest pack a file or a directory tree: the archive, piece by piece, of at most
    /// `limit` bytes.
    ///
    /// The names in it begin with the last component of `path`, as with `docker cp`. Regular files,
    /// directories, symbolic and hard links, modes, owners and times in seconds are kept; sockets,
    /// pipes and devices are left out, and other file systems below `path` are not entered. The
    /// archive is the guest's work: whoever unpacks it treats it as hostile. With `sparse`, holes of
    /// files are left out, in the old format of GNU tar.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when there is no such path.
    pub async fn open_tar(
        &self,
        path: impl Into<FilePath>,
        sparse: bool,
        limit: u64,
    ) -> Result<FileReader, ChannelError> {
        let mut stream = self.send(&Request::PackTar { at: path.into(), sparse }).await?;
        answered_soon(stream.reply::<()>()).await?;
        Ok(FileReader::new(stream, limit, Excess::TooLong("a tar archive")))
    }

    /// Streams the archive of [`Channel::open_tar`] into `to`, holes included; returns its bytes.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot pack it, [`ChannelError::TooLong`] beyond
    /// `limit` bytes (what `to` has then is cut), [`ChannelError::Io`] when `to` fails.
    pub async fn pack_tar<W: AsyncWrite + Unpin>(
        &self,
        path: impl Into<FilePath>,
        to: &mut W,
        limit: u64,
    ) -> Result<u64, ChannelError> {
        self.open_tar(path, false, limit).await?.copy_to(to).await
    }

    /// Streams a tar archive to the guest and unpacks it below a directory that is there, with the
    /// modes, owners and times in it; with the rights of a user, everything is that user's. Existing files are replaced, directories are kept. Returns
    /// the bytes of file content.
    ///
    /// Nothing outside of the directory is touched: a leading `/` is dropped; a name with `..`, one
    /// that leads out through a symbolic link, a device or a pipe ends it. What was unpacked before
    /// an error stays.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the guest cannot (`EINVAL` for a bad or refused archive, with
    /// the entry's name), [`ChannelError::Io`] when `from` fails.
    pub async fn unpack_tar<R: AsyncRead + Unpin>(
        &self,
        path: impl Into<FilePath>,
        from: &mut R,
    ) -> Result<u64, ChannelError> {
        let mut stream = self.send(&Request::UnpackTar { at: path.into() }).await?;
        answered_soon(stream.reply::<()>()).await?;
        send_content(&mut stream, from).await?;
        answered_late(stream.reply()).await
    }
}
