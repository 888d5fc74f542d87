//! Files of a session.

use bytes::Bytes;
use futures::TryStreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, header};
use mayfly_api::{Change, Entry, FileStat, Listing, Written};
use mayfly_protocol::ByteString;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use super::call::{Client, empty, full};
use super::connection::{Connection, RequestBody};
use super::error::ClientError;
use super::lines::Lines;
use super::sessions::session_path;

/// An absolute path of a guest, in whatever bytes.
pub type GuestPath = ByteString;

/// Content on its way from the daemon. Dropping it ends the transfer.
#[derive(Debug)]
pub struct Download {
    body: Incoming,
    _connection: Connection,
}

/// A watch. Dropping it ends it.
#[derive(Debug)]
pub struct Watching {
    lines: Lines,
}

impl Client {
    /// Streams a file: at most `limit` bytes from `offset` on.
    ///
    /// # Errors
    /// [`ClientError::Refused`], `not_found` when there is no such file.
    pub async fn read_file(
        &self,
        id: &str,
        path: impl Into<GuestPath>,
        offset: u64,
        limit: Option<u64>,
    ) -> Result<Download, ClientError> {
        let mut query = file(id, "/content", &path.into());
        query += &format!("&offset={offset}");
        if let Some(limit) = limit {
            query += &format!("&limit={limit}");
        }
        self.download(&query).await
    }

    /// Writes a file with these permission bits: all of it appears at once, or nothing does.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn write_file(
        &self,
        id: &str,
        path: impl Into<GuestPath>,
        mode: u32,
        content: impl Into<Bytes>,
    ) -> Result<u64, ClientError> {
        self.upload(&format!("{}&mode={mode:o}", file(id, "/content", &path.into())), full(content))
            .await
    }

    /// Writes a file as [`Client::write_file`] does, of whatever length.
    ///
    /// # Errors
    /// [`ClientError::Refused`], and [`ClientError::Http`] when `from` fails.
    pub async fn write_file_from<R: AsyncRead + Send + 'static>(
        &self,
        id: &str,
        path: impl Into<GuestPath>,
        mode: u32,
        from: R,
    ) -> Result<u64, ClientError> {
        self.upload(
            &format!("{}&mode={mode:o}", file(id, "/content", &path.into())),
            streamed(from),
        )
        .await
    }

    /// Lists a directory, by name.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn list(
        &self,
        id: &str,
        path: impl Into<GuestPath>,
    ) -> Result<Vec<Entry>, ClientError> {
        self.get::<Listing>(file(id, "/list", &path.into())).await.map(|listing| listing.entries)
    }

    /// Looks at a path, without following a last symbolic link.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn stat(
        &self,
        id: &str,
        path: impl Into<GuestPath>,
    ) -> Result<FileStat, ClientError> {
        self.get(file(id, "/stat", &path.into())).await
    }

    /// Makes a directory; with `parents` also those above it.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn mkdir(
        &self,
        id: &str,
        path: impl Into<GuestPath>,
        mode: u32,
        parents: bool,
    ) -> Result<(), ClientError> {
        let query = format!("{}&mode={mode:o}&parents={parents}", file(id, "/mkdir", &path.into()));
        self.done(self.request(Method::POST, query), empty()).await
    }

    /// Renames a path, as rename(2) does.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn rename(
        &self,
        id: &str,
        from: impl Into<GuestPath>,
        to: impl Into<GuestPath>,
    ) -> Result<(), ClientError> {
        let query =
            format!("/files/rename?from={}&to={}", encoded(&from.into()), encoded(&to.into()));
        self.done(self.request(Method::POST, session_path(id, &query)), empty()).await
    }

    /// Removes a path; with `recursive` also what is in a directory.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn remove(
        &self,
        id: &str,
        path: impl Into<GuestPath>,
        recursive: bool,
    ) -> Result<(), ClientError> {
        let query = format!("{}&recursive={recursive}", file(id, "", &path.into()));
        self.done(self.request(Method::DELETE, query), empty()).await
    }

    /// Streams a file or a tree as a tar archive, whose names begin with the last component of
    /// `path`.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn read_tar(
        &self,
        id: &str,
        path: impl Into<GuestPath>,
    ) -> Result<Download, ClientError> {
        self.download(&file(id, "/tar", &path.into())).await
    }

    /// Unpacks a tar archive below a directory that is there; returns the bytes of file content.
    ///
    /// # Errors
    /// [`ClientError::Refused`], and [`ClientError::Http`] when `from` fails.
    pub async fn write_tar<R: AsyncRead + Send + 'static>(
        &self,
        id: &str,
        path: impl Into<GuestPath>,
        from: R,
    ) -> Result<u64, ClientError> {
        self.upload(&file(id, "/tar", &path.into()), streamed(from)).await
    }

    /// Watches a directory or a file; returns when the watch is in place.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn watch(
        &self,
        id: &str,
        path: impl Into<GuestPath>,
        recursive: bool,
    ) -> Result<Watching, ClientError> {
        let query = format!("{}&recursive={recursive}", file(id, "/watch", &path.into()));
        let mut lines = Lines::new(self.open(self.request(Method::GET, query), empty()).await?);
        match lines.next().await? {
            Some(Change::Watching) => Ok(Watching { lines }),
            other => Err(ClientError::protocol(format_args!("a watch that begins with {other:?}"))),
        }
    }

    async fn download(&self, path: &str) -> Result<Download, ClientError> {
        let (connection, response) = self.open(self.request(Method::GET, path), empty()).await?;
        Ok(Download { body: response.into_body(), _connection: connection })
    }

    async fn upload(&self, path: &str, body: RequestBody) -> Result<u64, ClientError> {
        let call = self
            .request(Method::PUT, path)
            .header(header::CONTENT_TYPE, "application/octet-stream");
        self.json::<Written>(call, body).await.map(|written| written.bytes)
    }
}

impl Download {
    /// Returns the next piece; `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Http`] when the transfer breaks: what came is not all.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(bytes) = frame?.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// Copies all of it; returns the bytes copied.
    ///
    /// # Errors
    /// As [`Download::next`], and [`ClientError::Io`] when `to` fails.
    pub async fn copy_to<W: AsyncWrite + Unpin>(mut self, to: &mut W) -> Result<u64, ClientError> {
        let mut copied = 0;
        while let Some(bytes) = self.next().await? {
            to.write_all(&bytes).await?;
            copied += bytes.len() as u64;
        }
        to.flush().await?;
        Ok(copied)
    }

    /// Collects all of it, when it is at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Download::next`], and [`ClientError::Protocol`] when it is longer.
    pub async fn collect(mut self, limit: usize) -> Result<Vec<u8>, ClientError> {
        let mut content = Vec::new();
        while let Some(bytes) = self.next().await? {
            if content.len() + bytes.len() > limit {
                return Err(ClientError::protocol(format_args!(
                    "content of more than {limit} bytes"
                )));
            }
            content.extend_from_slice(&bytes);
        }
        Ok(content)
    }
}

impl Watching {
    /// Returns the next change, always a [`Change::Change`]; `None` when the watched path is gone.
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the watch is lost, in the daemon's words.
    pub async fn next(&mut self) -> Result<Option<Change>, ClientError> {
        loop {
            match self.lines.next().await? {
                Some(Change::Heartbeat | Change::Watching) => {}
                Some(Change::Error { code, message }) => {
                    return Err(ClientError::told(code, message));
                }
                change => return Ok(change),
            }
        }
    }
}

fn file(id: &str, resource: &str, path: &GuestPath) -> String {
    session_path(id, &format!("/files{resource}?path={}", encoded(path)))
}

fn encoded(path: &GuestPath) -> String {
    percent_encode(path.as_bytes(), NON_ALPHANUMERIC).to_string()
}

fn streamed<R: AsyncRead + Send + 'static>(from: R) -> RequestBody {
    StreamBody::new(ReaderStream::with_capacity(from, 64 << 10).map_ok(Frame::data)).boxed_unsync()
}
