//! The client side: what the engine uses to attach sessions and to ask about them.
//!
//! Calls block for one round trip. The connection of an [`Attachment`] carries nothing but events
//! once it is attached, so its descriptor can be watched (poll, epoll, tokio's `AsyncFd`): when it
//! is readable, call [`Attachment::try_event`] until it returns `None`. Everything else goes over
//! short-lived connections of its own.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, setsockopt, socket,
        sockopt::ReceiveTimeout,
    },
    sys::time::{TimeVal, TimeValLike},
};

use crate::{
    protocol::{AttachRequest, FailureKind, ListenRequest, MAX_REPLY, Message, Reply, Request},
    stats::{HostStats, SessionStats},
    wire,
};

/// How long one answer may take unless [`PagerClient::answer_limit`] says otherwise. Opening an
/// image is the longest of it.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Reason why a request had no success.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No pager answers.
    #[error(
        "no pager at {path}: {error}: it starts with the first session, or with `mayfly pager serve`"
    )]
    Connect {
        /// Path of the socket.
        path: PathBuf,
        /// Error that the system reported.
        error: io::Error,
    },
    /// The pager refused.
    #[error("{0}")]
    Refused(String),
    /// The connection broke or the answer is not understood.
    #[error("the pager's answer is lost: {0}")]
    Lost(String),
}

/// A pager, by the path of its socket.
#[derive(Debug, Clone)]
pub struct PagerClient {
    path: PathBuf,
    answer_limit: Duration,
}

/// Answer to [`PagerClient::ping`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pong {
    /// Process id of the pager.
    pub pid: u32,
    /// Version of the pager.
    pub version: String,
    /// Number of sessions attached.
    pub sessions: u64,
}

/// Event in the life of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEvent {
    /// The session is not served any more: kill its VMM.
    Failed {
        /// Kind of failure.
        kind: FailureKind,
        /// Reason for the failure, in one line.
        reason: String,
    },
    /// The pager has died: kill the VMM, whose faults block for ever.
    PagerGone,
}

impl PagerClient {
    /// Creates a client of the pager at `path`. Does not connect yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), answer_limit: ANSWER_LIMIT }
    }

    /// Gives the pager so long for an answer, and for every reply on a connection of its sessions.
    #[must_use]
    pub fn answer_limit(mut self, limit: Duration) -> Self {
        self.answer_limit = limit;
        self
    }

    /// Returns the path of the pager's socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Pings until the pager answers or `limit` has passed.
    ///
    /// # Errors
    /// The error of the last attempt.
    pub fn wait_ready(&self, limit: Duration) -> Result<Pong, ClientError> {
        let start = Instant::now();
        loop {
            match self.ping() {
                Err(ClientError::Connect { .. }) if start.elapsed() < limit => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                other => return other,
            }
        }
    }

    /// Returns whether the pager answers.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ping(&self) -> Result<Pong, ClientError> {
        match self.ask(&Request::Ping {})? {
            Reply::Pong { pid, version, sessions } => Ok(Pong { pid, version, sessions }),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns all counters of the pager.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn host_stats(&self) -> Result<HostStats, ClientError> {
        match self.ask(&Request::HostStats {})? {
            Reply::HostStats { stats } => Ok(*stats),
            other => Err(unexpected(&other)),
        }
    }

    /// Evicts at least `bytes` of page cache if there is so much, coldest first. Returns the bytes
    /// freed.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn evict(&self, bytes: u64) -> Result<u64, ClientError> {
        self.freed(&Request::Evict { bytes })
    }

    /// Drops the page cache of a golden. Returns the bytes freed.
    ///
    /// # Errors
    /// [`ClientError::Refused`] while sessions use it.
    pub fn forget(&self, golden: &str) -> Result<u64, ClientError> {
        self.freed(&Request::Forget { golden: golden.to_owned() })
    }

    fn freed(&self, request: &Request) -> Result<u64, ClientError> {
        match self.ask(request)? {
            Reply::Freed { bytes } => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends the pager.
    ///
    /// # Errors
    /// [`ClientError::Refused`] while sessions are attached, unless `force`.
    pub fn shutdown(&self, force: bool) -> Result<(), ClientError> {
        match self.ask(&Request::Shutdown { force })? {
            Reply::Bye {} => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Attaches a session. Dropping the [`Attachment`] detaches it.
    ///
    /// # Errors
    /// [`ClientError::Refused`]: the golden cannot be opened.
    pub fn attach(&self, request: &AttachRequest) -> Result<Attachment, ClientError> {
        self.attachment(&Request::Attach { attach: request.clone() })
    }

    /// Attaches a session whose VMM will connect to a path (Firecracker's
    /// `mem_backend.backend_path`).
    ///
    /// # Errors
    /// [`ClientError::Refused`]: the golden cannot be opened, or the path cannot be listened on.
    pub fn listen(&self, request: &ListenRequest) -> Result<Attachment, ClientError> {
        self.attachment(&Request::Listen { listen: request.clone() })
    }

    fn attachment(&self, request: &Request) -> Result<Attachment, ClientError> {
        let connection = self.connect()?;
        let (reply, fds) = round_trip(&connection, request)?;
        let Reply::Attached { id, ram_bytes, chunk_bytes, ram_file, handshake } = reply else {
            return Err(unexpected(&reply));
        };
        let mut fds = fds.into_iter();
        let mut take = |there: bool| match there.then(|| fds.next()) {
            Some(None) => {
                Err(ClientError::Lost("a descriptor is missing: too many open files?".to_owned()))
            }
            fd => Ok(fd.flatten()),
        };
        let (ram_file, handshake) = (take(ram_file)?, take(handshake)?);
        Ok(Attachment {
            client: self.clone(),
            connection,
            id,
            ram_bytes,
            chunk_bytes,
            ram_file,
            handshake,
        })
    }

    fn ask(&self, request: &Request) -> Result<Reply, ClientError> {
        let connection = self.connect()?;
        round_trip(&connection, request).map(|(reply, _)| reply)
    }

    fn connect(&self) -> Result<OwnedFd, ClientError> {
        let attempt = || -> nix::Result<OwnedFd> {
            let fd =
                socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
            connect(fd.as_raw_fd(), &UnixAddr::new(&self.path)?)?;
            let limit = i64::try_from(self.answer_limit.as_millis()).unwrap_or(i64::MAX);
            setsockopt(&fd, ReceiveTimeout, &TimeVal::milliseconds(limit))?;
            Ok(fd)
        };
        attempt()
            .map_err(|errno| ClientError::Connect { path: self.path.clone(), error: errno.into() })
    }
}

fn unexpected(reply: &Reply) -> ClientError {
    ClientError::Lost(format!("unexpected reply {reply:?}: client and pager differ in version"))
}

fn round_trip(
    connection: &OwnedFd,
    request: &Request,
) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
    let lost = |errno: Errno| ClientError::Lost(errno.to_string());
    let json = serde_json::to_vec(request).map_err(|e| ClientError::Lost(e.to_string()))?;
    wire::send(connection.as_fd(), &json, &[], MsgFlags::empty()).map_err(lost)?;
    let mut buf = vec![0; MAX_REPLY];
    let got = wire::recv(connection.as_fd(), &mut buf, wire::RecvFlags::empty()).map_err(lost)?;
    if got.len == 0 {
        return Err(ClientError::Lost("the pager closed the connection".to_owned()));
    }
    match serde_json::from_slice(&buf[..got.len]).map_err(|e| ClientError::Lost(e.to_string()))? {
        Message::Reply(reply) => Ok((reply, got.fds)),
        Message::Error { error } => Err(ClientError::Refused(error)),
        Message::Event { reason, .. } => Err(ClientError::Refused(reason)),
    }
}

/// A session attached to the pager. Dropping it detaches the session; kill the VMM first, or its
/// faults block.
#[derive(Debug)]
pub struct Attachment {
    client: PagerClient,
    connection: OwnedFd,
    id: u64,
    ram_bytes: u64,
    chunk_bytes: u64,
    ram_file: Option<OwnedFd>,
    handshake: Option<OwnedFd>,
}

impl Attachment {
    /// Returns the identity of the session in its pager.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns the number of bytes of the RAM image.
    pub fn ram_bytes(&self) -> u64 {
        self.ram_bytes
    }

    /// Returns the number of bytes of a chunk.
    pub fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    /// Takes the read-only RAM file for the VMM to map `MAP_PRIVATE`: once, and in shared mode
    /// only.
    pub fn take_ram_file(&mut self) -> Option<OwnedFd> {
        self.ram_file.take()
    }

    /// Takes the VMM's end of the handshake socket: once, and only when attached without a path.
    /// Drop it as soon as the VMM has inherited it: the pager learns of the VMM's end when the last
    /// copy is closed.
    pub fn take_handshake(&mut self) -> Option<OwnedFd> {
        self.handshake.take()
    }

    /// Returns the next event, if one is there. After [`SessionEvent::PagerGone`] it is always that
    /// one.
    pub fn try_event(&self) -> Option<SessionEvent> {
        let mut buf = vec![0; MAX_REPLY];
        match wire::recv(self.connection.as_fd(), &mut buf, wire::RecvFlags::DONTWAIT) {
            Err(Errno::EAGAIN) => None,
            Ok(got) if got.len > 0 => match serde_json::from_slice(&buf[..got.len]) {
                Ok(Message::Event { kind, reason, .. }) => {
                    Some(SessionEvent::Failed { kind, reason })
                }
                other => Some(SessionEvent::Failed {
                    kind: FailureKind::Pager,
                    reason: format!(
                        "event not understood: {other:?}: client and pager differ in version"
                    ),
                }),
            },
            Ok(_) | Err(_) => Some(SessionEvent::PagerGone),
        }
    }

    /// Returns the state of the session. Also the last check of a finished session:
    /// [`SessionStats::failed`] is set when its memory cannot be trusted.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stats(&self) -> Result<SessionStats, ClientError> {
        match self.client.ask(&Request::Stats { id: Some(self.id) })? {
            Reply::Stats { stats } => Ok(*stats),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns the chunks touched so far, in order of first touch.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the session was not attached to record.
    pub fn recording(&self) -> Result<Vec<u32>, ClientError> {
        let mut all = Vec::new();
        loop {
            let request = Request::Recording { id: Some(self.id), from: all.len() as u64 };
            match self.client.ask(&request)? {
                Reply::Recording { chunks, total } => {
                    let end = chunks.is_empty();
                    all.extend(chunks);
                    if end || all.len() as u64 >= total {
                        return Ok(all);
                    }
                }
                other => return Err(unexpected(&other)),
            }
        }
    }
}

impl AsFd for Attachment {
    /// Readable when an event is there, or the pager has died.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl AsRawFd for Attachment {
    fn as_raw_fd(&self) -> RawFd {
        self.connection.as_raw_fd()
    }
}
