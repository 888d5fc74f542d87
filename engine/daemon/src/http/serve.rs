//! Connections: where they come in, how many there may be, how they end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mayfly_host::time_scale::scaled;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::auth::Peer;
use super::connections::{Connections, Place, TurnedAway};
use super::front_end::FrontEnd;
use super::router;
use super::socket::{SocketError, UnixSocket};
use super::tls::{Tls, TlsError};
use crate::service::Service;

/// Bound on the time from the first byte of a request, or an idle connection, to the end of the
/// request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(60);
/// Bound on the head of a request in bytes, and on what is buffered of a connection.
const BUFFER_LIMIT: usize = 128 << 10;
/// What requests under way may take after all sessions are gone.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Reason why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The Unix socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// TCP without any token: whoever reaches the port would be root on this host.
    #[error(
        "refusing to listen on {address} without bearer tokens: configure [[tenants]] with token_blake3"
    )]
    NoTokens {
        /// Address on which it was to listen.
        address: SocketAddr,
    },
    /// The certificate of the TCP port cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The TCP port cannot be had.
    #[error("cannot listen on {address}: {cause}")]
    Tcp {
        /// Address of the port.
        address: SocketAddr,
        /// Cause of the failure.
        cause: std::io::Error,
    },
}

/// Sockets on which the API is served.
#[derive(Debug, Default)]
pub struct Listeners {
    unix: Option<UnixSocket>,
    tcp: Option<Tcp>,
}

/// A TCP port.
#[derive(Debug)]
struct Tcp {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
}

impl Listeners {
    /// Creates listeners that listen nowhere yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a Unix socket, whose owner needs no token. A socket that nobody serves any more is
    /// replaced.
    ///
    /// # Errors
    /// [`ServeError::Socket`].
    pub async fn unix(mut self, path: &std::path::Path) -> Result<Self, ServeError> {
        self.unix = Some(UnixSocket::bind(path).await?);
        Ok(self)
    }

    /// Adds a TCP port, with the certificate that `service`'s configuration names, if any; every
    /// request over it needs one of its bearer tokens.
    ///
    /// # Errors
    /// [`ServeError::NoTokens`], [`ServeError::Tls`], [`ServeError::Tcp`].
    pub async fn tcp(mut self, address: SocketAddr, service: &Service) -> Result<Self, ServeError> {
        if service.config().tenants.is_empty() {
            return Err(ServeError::NoTokens { address });
        }
        let tls = service.config().tls.as_ref().map(Tls::load).transpose()?;
        let bound = async {
            let listener = TcpListener::bind(address).await?;
            let address = listener.local_addr()?;
            Ok(Tcp { listener, address, tls })
        };
        self.tcp = Some(bound.await.map_err(|cause| ServeError::Tcp { address, cause })?);
        Ok(self)
    }

    /// Returns the path of the Unix socket.
    pub fn socket(&self) -> Option<&std::path::Path> {
        self.unix.as_ref().map(UnixSocket::path)
    }

    /// Returns the TCP address, with the port that was chosen where 0 was asked for.
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().map(|tcp| tcp.address)
    }

    /// Returns whether the TCP port speaks TLS.
    pub fn is_secure(&self) -> bool {
        self.tcp.as_ref().is_some_and(|tcp| tcp.tls.is_some())
    }
}

/// Serves the API, and `front_ends` beside it, until `shutdown` resolves. Then no connection is accepted any more, the service
/// is shut down, which discards every session, and what is under way may end.
pub async fn serve(
    service: Service,
    listeners: Listeners,
    front_ends: Vec<FrontEnd>,
    shutdown: impl Future<Output = ()>,
) {
    let server = Server {
        router: router::router(service.clone()),
        front_ends: front_ends.into(),
        places: Connections::new(service.config().connections.clone()),
        connections: TaskTracker::new(),
        drain: CancellationToken::new(),
        abort: CancellationToken::new(),
    };
    let mut accepting = JoinSet::new();
    let socket = listeners.unix.map(|unix| {
        let (listener, name) = unix.into_parts();
        accepting.spawn(server.clone().accept_local(listener));
        name
    });
    if let Some(Tcp { listener, tls, .. }) = listeners.tcp {
        // Small messages go both ways: waiting to fill a segment would only delay them.
        let listener =
            axum::serve::ListenerExt::tap_io(listener, |stream: &mut tokio::net::TcpStream| {
                let _ = stream.set_nodelay(true);
            });
        if let Some(tls) = tls.clone() {
            accepting.spawn(tls.follow());
        }
        accepting.spawn(server.clone().accept_remote(listener, tls));
    }
    shutdown.await;
    accepting.shutdown().await;
    drop(socket);
    service.shutdown().await;
    server.finish().await;
}

#[derive(Clone)]
struct Server {
    router: Router,
    front_ends: Arc<[FrontEnd]>,
    places: Arc<Connections>,
    connections: TaskTracker,
    drain: CancellationToken,
    abort: CancellationToken,
}

impl Server {
    async fn accept_local(self, mut listener: impl Listener) {
        loop {
            let place = self.places.local().await;
            // Failures of accept(2) are waited out in there.
            let (stream, _) = listener.accept().await;
            self.connections.spawn(self.clone().connection(stream, Peer::Local, place));
        }
    }

    async fn accept_remote(
        self,
        mut listener: impl Listener<Io = tokio::net::TcpStream, Addr = SocketAddr>,
        tls: Option<Arc<Tls>>,
    ) {
        loop {
            let (stream, address) = listener.accept().await;
            let place = self.places.unknown(address.ip());
            match tls.clone() {
                Some(tls) => self.connections.spawn(self.clone().secure(stream, tls, place)),
                None => {
                    self.connections.spawn(self.clone().connection(stream, Peer::Remote, place))
                }
            };
        }
    }

    /// Makes the handshake of TLS first, for which there is as much time as without a token.
    async fn secure(self, stream: tokio::net::TcpStream, tls: Arc<Tls>, place: Arc<Place>) {
        let stream = tokio::select! {
            stream = tls.accept(stream) => stream,
            _ = place.turned_away() => return,
            () = self.drain.cancelled() => return,
        };
        match stream {
            Ok(stream) => self.connection(stream, Peer::Remote, place).await,
            Err(error) => tracing::debug!(%error, "no TLS"),
        }
    }

    async fn connection<S>(self, stream: S, peer: Peer, place: Arc<Place>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (router, front_ends) = (&self.router, &self.front_ends);
        let of_requests = place.clone();
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(of_requests.clone());
            let (head, body) = request.into_parts();
            let router = FrontEnd::route(front_ends, router, &head).clone();
            router.oneshot(hyper::Request::from_parts(head, Body::new(body)))
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .max_buf_size(BUFFER_LIMIT)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        tokio::pin!(connection);
        let outcome = tokio::select! {
            outcome = connection.as_mut() => outcome,
            why = place.turned_away() => {
                tracing::debug!(?why, "a connection without a token ends");
                if why == TurnedAway::Displaced {
                    return;
                }
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    outcome = connection => outcome,
                    () = place.still_unknown(scaled(DRAIN_LIMIT)) => return,
                    () = self.abort.cancelled() => return,
                }
            }
            () = self.drain.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    outcome = connection => outcome,
                    () = self.abort.cancelled() => return,
                }
            }
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, "connection");
        }
    }

    async fn finish(self) {
        self.drain.cancel();
        self.connections.close();
        if tokio::time::timeout(scaled(DRAIN_LIMIT), self.connections.wait()).await.is_err() {
            tracing::debug!(
                connections = self.connections.len(),
                "closing connections that did not end"
            );
            self.abort.cancel();
            self.connections.wait().await;
        }
    }
}
