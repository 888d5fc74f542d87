//! Serves one client of the guest: its requests, one after the other, or a tunnel.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::decision::Refusal;
use super::super::host::shorten;
use super::super::limits::Watched;
use super::super::record::Kind;
use super::body::Body;
use super::forward;
use super::head::{Wanted, wanted};
use super::outside::{Outside, Upstream};

/// For a head to be complete, from the moment in which the connection could take one.
const HEAD_LIMIT: Duration = Duration::from_secs(60);
/// A connection on which nothing moves for this long is ended.
const IDLE_LIMIT: Duration = Duration::from_secs(300);
const MAX_HEADERS: usize = 100;
/// Bounds the head of a request, too.
const BUFFER: usize = 64 << 10;

/// What a client is served.
pub(in super::super) enum Served {
    /// What it asks for, if it may.
    All,
    /// The answer that there are too many of them.
    TooMany,
}

/// A tunnel that begins when its answer was sent.
struct Tunnel {
    client: OnUpgrade,
    upstream: Upstream,
}

/// Serves one client until it is done, one end is gone, or nothing moves any more.
pub(in super::super) async fn serve<S>(stream: S, outside: Arc<Outside>, served: Served)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (stream, activity) = Watched::new(stream);
    let tunnel = Mutex::new(None);
    let work = async {
        let service = service_fn(|request| answer(request, &outside, &served, &tunnel));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .max_headers(MAX_HEADERS)
            .max_buf_size(BUFFER)
            // Clients such as netcat close their half before they read.
            .half_close(true)
            .keep_alive(matches!(served, Served::All))
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        if let Err(error) = connection.await {
            tracing::debug!(%error, "egress client");
        }
        let begun = tunnel.lock().take();
        if let Some(Tunnel { client, mut upstream }) = begun {
            let moved = match client.await {
                Ok(client) => {
                    tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut upstream.stream)
                        .await
                }
                Err(error) => Err(std::io::Error::other(error)),
            };
            if let Err(error) = moved {
                upstream.ending.ended(error);
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = activity.idle(IDLE_LIMIT) => tracing::debug!("an egress client was idle for {IDLE_LIMIT:?}"),
    }
}

async fn answer(
    request: Request<Incoming>,
    outside: &Outside,
    served: &Served,
    tunnel: &Mutex<Option<Tunnel>>,
) -> Result<Response<Body>, Infallible> {
    let answered = match served {
        Served::All => pass(request, outside, tunnel).await,
        Served::TooMany => {
            note(&request, outside, "too many connections at a time").await;
            let most = outside.limits().max_connections;
            let message =
                format!("egress is denied: this session may have {most} connections at a time");
            Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, message))
        }
    };
    Ok(answered.unwrap_or_else(|refusal| refuse(&refusal)))
}

async fn pass(
    mut request: Request<Incoming>,
    outside: &Outside,
    tunnel: &Mutex<Option<Tunnel>>,
) -> Result<Response<Body>, Refusal> {
    match wanted(&request) {
        Ok(Wanted::Tunnel(target)) => {
            let upstream = outside.open(Kind::Connect, &target).await?;
            let client = hyper::upgrade::on(&mut request);
            tunnel.lock().replace(Tunnel { client, upstream });
            Ok(Response::new(Empty::new().map_err(|never| match never {}).boxed()))
        }
        Ok(Wanted::Http(target)) => {
            let upstream = outside.open(Kind::Http, &target).await?;
            forward::forward(request, &target, upstream).await
        }
        Err(refusal) => {
            note(&request, outside, &refusal.message).await;
            Err(refusal)
        }
    }
}

/// Has a request logged that goes nowhere.
async fn note(request: &Request<Incoming>, outside: &Outside, reason: &str) {
    let kind = if request.method() == hyper::Method::CONNECT { Kind::Connect } else { Kind::Http };
    let authority = request.uri().authority().map_or("", |authority| authority.as_str());
    outside.note(kind, authority, reason).await;
}

fn refuse(refusal: &Refusal) -> Response<Body> {
    let text = format!("mayfly: {}\n", shorten_line(&refusal.message));
    let mut response =
        Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed());
    *response.status_mut() = refusal.status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    // Some clients show nothing of the body of a refused CONNECT.
    if let Ok(reason) = HeaderValue::from_str(&shorten_line(&refusal.message)) {
        response.headers_mut().insert("x-mayfly-egress", reason);
    }
    response
}

fn shorten_line(message: &str) -> String {
    if message.len() > 1000 { shorten(message) } else { message.replace(['\r', '\n'], " ") }
}
