//! The proxy process as sessions reach it from the engine.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use futures::future::BoxFuture;

use super::limits::Limits;
use super::link::Link;
use super::messages::Begin;

/// There is no proxy process, and none can be started.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the egress proxy cannot be started: {reason}")]
pub struct NoProxy {
    /// Cause of the failure.
    pub reason: String,
}

/// Link of a session to a proxy process.
#[derive(Debug)]
pub struct SessionLink {
    /// Our end of the link.
    pub link: Link,
    /// Id of the process.
    pub process: u32,
}

/// Source of links to the proxy process, which it starts when there is none.
pub trait Proxies: fmt::Debug + Send + Sync {
    /// Gives a session with these limits a link to the process.
    ///
    /// # Errors
    /// [`NoProxy`].
    fn connect(&self, limits: Limits) -> BoxFuture<'_, Result<SessionLink, NoProxy>>;

    /// Ends the process with this id, if it is still the one there is: it has broken the protocol,
    /// and may be somebody else's.
    fn distrust(&self, process: u32) -> BoxFuture<'_, ()>;
}

/// The engine's link to a proxy process. The process ends when it is dropped.
#[derive(Debug)]
pub struct ProxyProcess(Link);

impl ProxyProcess {
    /// Makes the link to a process that is to be started, and the process's end of it, for
    /// [`run`](super::proxy::run).
    ///
    /// # Errors
    /// When there are too many descriptors.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = Link::pair()?;
        Ok((Self(ours), theirs))
    }

    /// Waits until the process serves.
    ///
    /// # Errors
    /// When it has ended, or sends something else.
    pub async fn ready(&self) -> io::Result<()> {
        self.0.ready().await
    }

    /// Gives the process a session, with the end `link` of the session's link.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn begin(&self, limits: Limits, link: BorrowedFd<'_>) -> io::Result<()> {
        let Limits { max_connections, max_bytes, .. } = limits;
        self.0.send(&Begin { max_connections, max_bytes }, Some(link)).await
    }
}
