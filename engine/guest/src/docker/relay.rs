//! Connection of a docker client, carried to the guest's Docker daemon request by request.
//!
//! Bytes are not just copied: a client may hold credentials of others, and sends them with each
//! request of the connection. So each head is read, [`credentials`] are taken off, and the rest is
//! sent on. When both ends agree on another protocol (`docker attach`, `exec` and `build` ask for
//! it), bytes are copied from there on, in both directions and with half-close.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use futures::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

use crate::channel::{ChannelError, GuestStream};
use crate::{credentials, hop_by_hop};

/// Bound on the head of a request and of an answer, and on what is buffered of each, in bytes.
const BUFFER_LIMIT: usize = 128 << 10;

/// Opens connections to the guest's Docker daemon, at [`GUEST_SOCKET`](super::GUEST_SOCKET).
pub type Connect =
    Box<dyn Fn() -> BoxFuture<'static, Result<GuestStream, ChannelError>> + Send + Sync>;

/// Of a request or an answer.
type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// Carries a connection of a docker client until either end closes it. Dropping the future closes
/// both ends. A client that has closed its half still gets its answer; one that has closed the whole
/// takes its request back.
///
/// A guest that refuses the first connection ends the client's before any answer.
///
/// # Errors
/// [`ChannelError`] when the guest refuses, or either end breaks off in the middle of a message.
pub async fn relay(client: UnixStream, connect: Connect) -> Result<(), ChannelError> {
    let gone = HangUp::of(&client)?;
    let first = Guest::open(&connect).await?;
    let relay =
        Arc::new(Relay { connect, idle: Mutex::new(Some(first)), tunnel: Mutex::default() });
    let service = {
        let relay = relay.clone();
        hyper::service::service_fn(move |request| {
            let relay = relay.clone();
            async move { Ok::<_, std::convert::Infallible>(relay.answer(request).await) }
        })
    };
    let served = hyper::server::conn::http1::Builder::new()
        .auto_date_header(false)
        .half_close(true)
        .max_buf_size(BUFFER_LIMIT)
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(client), service)
        .with_upgrades();
    tokio::select! {
        // First what has come before the client went.
        biased;
        outcome = served => outcome.map_err(broken)?,
        outcome = gone.wait() => return Ok(outcome?),
    }
    let tunnel = relay.tunnel.lock().take();
    match tunnel {
        Some(tunnel) => tunnel.carry().await,
        None => Ok(()),
    }
}

/// A watch for the end of both halves of a client's connection. Reading cannot tell it from the end
/// of one: both are an end of the stream.
struct HangUp(AsyncFd<OwnedFd>);

impl HangUp {
    fn of(client: &UnixStream) -> io::Result<Self> {
        // The wakes of a descriptor of its own are none that reading and writing wait for.
        let own = client.as_fd().try_clone_to_owned()?;
        // SAFETY: an `OwnedFd` is an open descriptor, the same one until it is dropped, which is
        // when this is.
        Ok(Self(unsafe { AsyncFd::register_with_interest(own, Interest::WRITABLE) }?))
    }

    async fn wait(self) -> io::Result<()> {
        loop {
            let mut ready = self.0.writable().await?;
            if ready.ready().is_write_closed() {
                return Ok(());
            }
            ready.clear_ready();
        }
    }
}

struct Relay {
    connect: Connect,
    /// The connection to the guest, while no request uses it.
    idle: Mutex<Option<Guest>>,
    /// What is left to do once the client was told of the other protocol.
    tunnel: Mutex<Option<Tunnel>>,
}

impl Relay {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        self.exchange(request).await.unwrap_or_else(|error| failed(&error))
    }

    async fn exchange(
        &self,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, ChannelError> {
        let wanted = hop_by_hop::upgrade(request.headers())
            .map(|protocol| (protocol, hyper::upgrade::on(&mut request)));
        let mut guest = self.guest().await?;
        let outgoing = outgoing(request, wanted.as_ref().map(|(protocol, _)| protocol));
        let mut answer = guest.sender.send_request(outgoing).await.map_err(broken)?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some((_, client)) = wanted else {
                let reason = "it changed the protocol without being asked to".into();
                return Err(ChannelError::Closed { reason });
            };
            let protocol = answer.headers().get(header::UPGRADE).cloned();
            let of_guest = hyper::upgrade::on(&mut answer);
            *self.tunnel.lock() = Some(Tunnel { client, of_guest, guest });
            hop_by_hop::strip(answer.headers_mut());
            if let Some(protocol) = protocol {
                hop_by_hop::set_upgrade(answer.headers_mut(), protocol);
            }
        } else {
            hop_by_hop::strip(answer.headers_mut());
            *self.idle.lock() = Some(guest);
        }
        Ok(answer.map(BodyExt::boxed_unsync))
    }

    /// The connection that was used last, once its answer has been read, or a new one.
    async fn guest(&self) -> Result<Guest, ChannelError> {
        let idle = self.idle.lock().take();
        if let Some(mut guest) = idle
            && guest.sender.ready().await.is_ok()
        {
            return Ok(guest);
        }
        Guest::open(&self.connect).await
    }
}

/// A connection to the guest's Docker daemon. Dropping it closes it.
struct Guest {
    sender: SendRequest<Body>,
    _driver: AbortOnDropHandle<()>,
}

impl Guest {
    async fn open(connect: &Connect) -> Result<Self, ChannelError> {
        let stream = TokioIo::new(connect().await?);
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(BUFFER_LIMIT)
            .preserve_header_case(true)
            .handshake(stream)
            .await
            .map_err(broken)?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to a Docker daemon");
            }
        });
        Ok(Self { sender, _driver: AbortOnDropHandle::new(driver) })
    }
}

/// Two connections that speak another protocol now.
struct Tunnel {
    client: OnUpgrade,
    of_guest: OnUpgrade,
    guest: Guest,
}

impl Tunnel {
    async fn carry(self) -> Result<(), ChannelError> {
        let (client, of_guest) = tokio::try_join!(self.client, self.of_guest).map_err(broken)?;
        let (mut client, mut of_guest) = (TokioIo::new(client), TokioIo::new(of_guest));
        tokio::io::copy_bidirectional(&mut client, &mut of_guest).await?;
        drop(self.guest);
        Ok(())
    }
}

/// The request as the guest sees it.
fn outgoing(request: Request<Incoming>, upgrade: Option<&HeaderValue>) -> Request<Body> {
    let (mut parts, body) = request.into_parts();
    hop_by_hop::strip(&mut parts.headers);
    credentials::strip(&mut parts.headers);
    // hyper answers it to the client by itself.
    parts.headers.remove(header::EXPECT);
    if let Some(protocol) = upgrade {
        hop_by_hop::set_upgrade(&mut parts.headers, protocol.clone());
    }
    // A request of HTTP/1.0 may have none, one of HTTP/1.1 must.
    parts.headers.entry(header::HOST).or_insert(HeaderValue::from_static("docker"));
    if let Some(path) = parts.uri.path_and_query() {
        parts.uri = Uri::from(path.clone());
    }
    parts.version = Version::HTTP_11;
    // Headers behind the body (trailers) could hold what was taken off before it.
    let body = body.map_frame(|frame| match frame.into_trailers() {
        Ok(_) => hyper::body::Frame::trailers(HeaderMap::new()),
        Err(frame) => frame,
    });
    Request::from_parts(parts, body.boxed_unsync())
}

/// A failure as docker clients print it.
fn failed(error: &ChannelError) -> Response<Body> {
    let text = format!("the session's Docker daemon cannot be reached: {error}\n");
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

fn broken(error: hyper::Error) -> ChannelError {
    ChannelError::Io(io::Error::other(error))
}
