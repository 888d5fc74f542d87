//! Files of a session.

use bytes::Bytes;
use futures::TryStreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, header};
use mayfly_api::{Change, Entry, FileStat, Listing, Made, Written};
use mayfly_protocol::{ByteString, FilePath, ListOptions, StatOptions, WriteOptions};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use super::call::{Client, empty, full};
use super::connection::{Connection, RequestBody};
use super::error::ClientError;
use super::lines::Lines;
use super::sessions::session_path;

/// A path of a guest, in whatever bytes, and for whom it is used: absolute, or of a user.
pub type GuestPath = FilePath;

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
        let query = write_query(id, &path.into(), &with_mode(mode));
        self.upload(&query, full(content)).await.map(|written| written.bytes)
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
        self.write_with(id, path, &with_mode(mode), from).await.map(|written| written.bytes)
    }

    /// Writes a file in the way that `options` say, of whatever length.
    ///
    /// # Errors
    /// [`ClientError::Refused`], and [`ClientError::Http`] when `from` fails.
    pub async fn write_with<R: AsyncRead + Send + 'static>(
        &self,
        id: &str,
        path: impl Into<GuestPath>,
        options: &WriteOptions,
        from: R,
    ) -> Result<Written, ClientError> {
        self.upload(&write_query(id, &path.into(), options), streamed(from)).await
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
        self.list_with(id, path, ListOptions::default()).await
    }

    /// Lists a directory, and those below it as far as `options` say, by path.
    ///
    /// # Errors
    /// [`ClientError::Refused`], `too_large` for more than a million entries.
    pub async fn list_with(
        &self,
        id: &str,
        path: impl Into<GuestPath>,
        options: ListOptions,
    ) -> Result<Vec<Entry>, ClientError> {
        let mut query = file(id, "/list", &path.into());
        query += &format!("&depth={}", options.depth);
        if let Some(told) = options.stat {
            query += "&stat=true";
            query += &told_query(told);
        }
        self.get::<Listing>(query).await.map(|listing| listing.entries)
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
        self.stat_with(id, path, StatOptions::default()).await
    }

    /// Looks at a path as [`Client::stat`] does, and tells what `options` ask for.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn stat_with(
        &self,
        id: &str,
        path: impl Into<GuestPath>,
        options: StatOptions,
    ) -> Result<FileStat, ClientError> {
        self.get(file(id, "/stat", &path.into()) + &told_query(options)).await
    }

    /// Makes a directory; with `parents` also those above it. Returns whether it was made, or was
    /// there.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn mkdir(
        &self,
        id: &str,
        path: impl Into<GuestPath>,
        mode: u32,
        parents: bool,
    ) -> Result<bool, ClientError> {
        let query = format!("{}&mode={mode:o}&parents={parents}", file(id, "/mkdir", &path.into()));
        let made: Made = self.json(self.request(Method::POST, query), empty()).await?;
        Ok(made.made)
    }

    /// Renames a path, as rename(2) does; with `parents`, missing directories above the new path are
    /// made. Both paths are of the user of the first.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn rename(
        &self,
        id: &str,
        from: impl Into<GuestPath>,
        to: impl Into<ByteString>,
        parents: bool,
    ) -> Result<(), ClientError> {
        let from = from.into();
        let query = format!(
            "/files/rename?from={}&to={}&parents={parents}{}",
            encoded(from.path.as_bytes()),
            encoded(to.into().as_bytes()),
            of_user(&from)
        );
        self.done(self.request(Method::POST, session_path(id, &query)), empty()).await
    }

    /// Removes a path; with `recursive` also what is in a directory. With `force`, it is fine that
    /// there is nothing.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn remove(
        &self,
        id: &str,
        path: impl Into<GuestPath>,
        recursive: bool,
        force: bool,
    ) -> Result<(), ClientError> {
        let query = format!("{}&recursive={recursive}&force={force}", file(id, "", &path.into()));
        self.done(self.request(Method::DELETE, query), empty()).await
    }

    /// Streams a file or a tree as a tar archive, whose names begin with the last component of
    /// `path`. With `sparse`, holes of files are left out, in the old format of GNU tar.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn read_tar(
        &self,
        id: &str,
        path: impl Into<GuestPath>,
        sparse: bool,
    ) -> Result<Download, ClientError> {
        self.download(&format!("{}&sparse={sparse}", file(id, "/tar", &path.into()))).await
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
        let query = file(id, "/tar", &path.into());
        self.upload(&query, streamed(from)).await.map(|written| written.bytes)
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

    async fn upload(&self, path: &str, body: RequestBody) -> Result<Written, ClientError> {
        let call = self
            .request(Method::PUT, path)
            .header(header::CONTENT_TYPE, "application/octet-stream");
        self.json(call, body).await
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
    let query = format!("/files{resource}?path={}{}", encoded(path.path.as_bytes()), of_user(path));
    session_path(id, &query)
}

/// The parameters that say for whom it is.
fn of_user(path: &GuestPath) -> String {
    let Some(user) = &path.user else { return String::new() };
    format!("&user={}&as_root={}", encoded(user.as_bytes()), path.as_root)
}

fn with_mode(mode: u32) -> WriteOptions {
    WriteOptions { mode: Some(mode), ..WriteOptions::default() }
}

fn write_query(id: &str, path: &GuestPath, options: &WriteOptions) -> String {
    let mut query = file(id, "/content", path);
    query += &format!("&in_place={}&parents={}", options.in_place, options.parents);
    if let Some(mode) = options.mode {
        query += &format!("&mode={mode:o}");
    }
    if let Some(set) = &options.xattrs {
        query += &format!("&xattr_prefix={}", encoded(set.prefix.as_bytes()));
        for xattr in &set.attributes {
            let pair = [xattr.name.as_bytes(), b"=", xattr.value.as_bytes()].concat();
            query += &format!("&xattr={}", encoded(&pair));
        }
    }
    query
}

fn told_query(options: StatOptions) -> String {
    format!("&follow={}&xattrs={}", options.follow, options.xattrs)
}

fn encoded(bytes: &[u8]) -> String {
    percent_encode(bytes, NON_ALPHANUMERIC).to_string()
}

fn streamed<R: AsyncRead + Send + 'static>(from: R) -> RequestBody {
    StreamBody::new(ReaderStream::with_capacity(from, 64 << 10).map_ok(Frame::data)).boxed_unsync()
}
