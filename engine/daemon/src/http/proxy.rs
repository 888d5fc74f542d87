//! Passes HTTP on to a server in a guest, upgraded connections too. No credentials pass in, and
//! nothing that acts on the daemon's origin passes out.

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{StatusCode, Uri, Version};
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::body::Frame;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mayfly_guest::channel::{ChannelError, GuestStream};
use mayfly_guest::{credentials, hop_by_hop};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::AbortOnDropHandle;

use super::error::ApiError;
use super::extract::Live;
use super::foreign;
use super::guest::with_guest;
use super::location::Place;

/// Header that tells a server under which path it is seen (a common convention of reverse proxies).
const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// Bound on the head of an answer, and on what is buffered of it and of a request, in bytes.
const BUFFER_LIMIT: usize = 128 << 10;

/// The server behind the proxy.
#[derive(Debug)]
pub struct Target {
    /// Number of leading segments of the path that are ours.
    pub prefix_segments: usize,
    /// Value that it gets as `Host`.
    pub host: String,
    /// Under which origin browsers see it.
    pub origin: Origin,
}

/// Origin under which browsers see a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The daemon's: nothing that acts on it passes out.
    Daemons,
    /// One of its own, by a name of its own.
    Own,
}

impl Origin {
    fn tame(self, headers: &mut HeaderMap) {
        match self {
            Self::Daemons => foreign::tame(headers),
            Self::Own => foreign::tame_own(headers),
        }
    }

    /// Takes credentials off a request. Those that a browser keeps for an origin of the server's own
    /// are the server's.
    fn strip_credentials(self, headers: &mut HeaderMap) {
        let own = match self {
            Self::Daemons => Vec::new(),
            Self::Own => [header::AUTHORIZATION, header::COOKIE]
                .into_iter()
                .flat_map(|name| {
                    let values: Vec<_> = headers.get_all(&name).iter().cloned().collect();
                    values.into_iter().map(move |value| (name.clone(), value))
                })
                .collect(),
        };
        credentials::strip(headers);
        for (name, value) in own {
            headers.append(name, value);
        }
    }

    fn strip(self, headers: &mut HeaderMap) {
        match self {
            Self::Daemons => foreign::strip(headers),
            Self::Own => foreign::tame_own(headers),
        }
    }
}

/// Sends `request` over `stream` and answers with what comes back.
///
/// # Errors
/// [`ApiError`] when the server cannot be spoken to, or the session ends.
pub async fn forward(
    live: Live,
    stream: GuestStream,
    mut request: Request,
    target: &Target,
) -> Result<Response, ApiError> {
    let upgrade = hop_by_hop::upgrade(request.headers())
        .map(|protocol| (protocol, hyper::upgrade::on(&mut request)));
    let (mut sender, connection) =
        handshake(stream).await.map_err(|error| refused(target, &error))?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "proxied connection");
        }
    }));
    let place = place(&request, target);
    let outgoing = outgoing(request, target, upgrade.as_ref().map(|(protocol, _)| protocol))?;
    let exchange = async { Ok::<_, ChannelError>(sender.send_request(outgoing).await) };
    let response =
        with_guest(&live.session, exchange).await?.map_err(|error| refused(target, &error))?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some((_, client)) = upgrade else {
            return Err(refused(target, &"it changed the protocol without being asked to"));
        };
        return Ok(switch(live, client, connection, target.origin, response));
    }
    let (mut parts, body) = response.into_parts();
    hop_by_hop::strip(&mut parts.headers);
    target.origin.tame(&mut parts.headers);
    lead_back(&mut parts.headers, &place);
    parts.version = Version::HTTP_11;
    // The session is in use, and the connection open, until the last byte; a client that goes away
    // ends both.
    let held = (live, connection);
    let body = without_trailers(body).map_frame(move |frame| {
        let _ = &held;
        frame
    });
    Ok(Response::from_parts(parts, Body::new(body)))
}

/// Begins to speak HTTP to a server, which can make us hold no more than [`BUFFER_LIMIT`].
async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
) -> hyper::Result<(SendRequest<Body>, http1::Connection<TokioIo<S>, Body>)> {
    http1::Builder::new().max_buf_size(BUFFER_LIMIT).handshake(TokioIo::new(stream)).await
}

/// Answers 101 and moves bytes both ways until one end closes, or the session is over.
fn switch(
    live: Live,
    client: OnUpgrade,
    connection: AbortOnDropHandle<()>,
    origin: Origin,
    mut response: hyper::Response<hyper::body::Incoming>,
) -> Response {
    let server = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        let moved = async {
            // The client's end is ours only after our answer was sent.
            let (client, server) =
                tokio::try_join!(client, server).map_err(std::io::Error::other)?;
            tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(server))
                .await
        };
        tokio::select! {
            outcome = moved => if let Err(error) = outcome {
                tracing::debug!(%error, "upgraded connection");
            },
            _ = live.session.ended() => {}
        }
        drop(connection);
    });
    let (mut parts, _) = response.into_parts();
    let protocol = parts.headers.get(header::UPGRADE).cloned();
    hop_by_hop::strip(&mut parts.headers);
    origin.strip(&mut parts.headers);
    if let Some(protocol) = protocol {
        hop_by_hop::set_upgrade(&mut parts.headers, protocol);
    }
    Response::from_parts(parts, Body::empty())
}

fn place(request: &Request, target: &Target) -> Place {
    let (prefix, rest) = split_path(request.uri(), target.prefix_segments);
    let path = rest.split('?').next().unwrap_or_default().to_owned();
    let host =
        request.headers().get(header::HOST).and_then(|host| host.to_str().ok()?.parse().ok());
    Place { prefix, path, host }
}

/// Keeps redirects below the server's path. What browsers could not read is taken off.
fn lead_back(headers: &mut HeaderMap, place: &Place) {
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        let Some(value) = headers.remove(&name) else { continue };
        let told = value.to_str().ok().and_then(|location| place.tell(location));
        if let Some(value) = told.and_then(|told| HeaderValue::try_from(told).ok()) {
            headers.insert(name, value);
        }
    }
}

/// The request as the server sees it.
fn outgoing(
    request: Request,
    target: &Target,
    upgrade: Option<&HeaderValue>,
) -> Result<Request, ApiError> {
    let (mut parts, body) = request.into_parts();
    let (prefix, rest) = split_path(&parts.uri, target.prefix_segments);
    let prefix =
        HeaderValue::from_str(&prefix).map_err(|error| ApiError::bad_request(error.to_string()))?;
    parts.uri = Uri::builder()
        .path_and_query(rest)
        .build()
        .map_err(|error| ApiError::bad_request(format!("the path cannot be passed on: {error}")))?;
    hop_by_hop::strip(&mut parts.headers);
    target.origin.strip_credentials(&mut parts.headers);
    // hyper answers it to our client by itself.
    parts.headers.remove(header::EXPECT);
    if let Some(protocol) = upgrade {
        hop_by_hop::set_upgrade(&mut parts.headers, protocol.clone());
    }
    let host = HeaderValue::from_str(&target.host)
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    parts.headers.insert(header::HOST, host);
    if prefix.is_empty() {
        // One that a client sends would lead the server's links elsewhere.
        parts.headers.remove(FORWARDED_PREFIX);
    } else {
        parts.headers.insert(FORWARDED_PREFIX, prefix);
    }
    parts.version = Version::HTTP_11;
    // What our own layers noted about the request is not for the guest's connection.
    parts.extensions.clear();
    Ok(Request::from_parts(parts, Body::new(without_trailers(body))))
}

/// A body without the headers behind it (trailers), which could hold what was taken off before it.
fn without_trailers<B: HttpBody>(body: B) -> impl HttpBody<Data = B::Data, Error = B::Error> {
    body.map_frame(|frame| match frame.into_trailers() {
        Ok(_) => Frame::trailers(HeaderMap::new()),
        Err(frame) => frame,
    })
}

/// The first `segments` segments of a path, and what is left with its query; percent-encoding stays
/// as it is.
fn split_path(uri: &Uri, segments: usize) -> (String, String) {
    let path = uri.path();
    let cut = path.match_indices('/').nth(segments).map_or(path.len(), |(at, _)| at);
    let (prefix, rest) = path.split_at(cut);
    let rest = if rest.is_empty() { "/" } else { rest };
    let rest = match uri.query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_owned(),
    };
    (prefix.to_owned(), rest)
}

fn refused(target: &Target, error: &dyn std::fmt::Display) -> ApiError {
    let message = format!("the server {} in the guest cannot be spoken to: {error}", target.host);
    ApiError::new(StatusCode::BAD_GATEWAY, "bad_gateway", message)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn of_a_head_without_an_end_no_more_than_the_bound_is_taken() {
        let (ours, mut server) = tokio::io::duplex(1 << 10);
        let (mut sender, connection) = handshake(ours).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder().uri("/").body(Body::empty()).unwrap();
        let answer = tokio::spawn(async move { sender.send_request(request).await });
        // An answer before the request would be none.
        server.read_exact(&mut [0; 5]).await.unwrap();
        server.write_all(b"HTTP/1.1 200 OK\r\nEndless: ").await.unwrap();
        let mut taken = 0;
        while server.write_all(&[b'x'; 1 << 10]).await.is_ok() {
            taken += 1 << 10;
            assert!(taken <= BUFFER_LIMIT + (16 << 10), "{taken} bytes were taken");
        }
        assert!(taken >= BUFFER_LIMIT / 2, "only {taken} bytes were taken");
        answer.await.unwrap().unwrap_err();
    }

    #[test]
    fn a_server_of_its_own_origin_gets_its_own_credentials_and_no_others() {
        let headers = || {
            let names = ["authorization", "cookie", "x-api-key", "mayfly-tenant", "accept"];
            let pair = |name| (HeaderName::from_static(name), HeaderValue::from_static("x"));
            names.map(pair).into_iter().collect::<HeaderMap>()
        };
        let left = |origin: Origin| {
            let mut headers = headers();
            origin.strip_credentials(&mut headers);
            let mut names: Vec<_> = headers.keys().map(ToString::to_string).collect();
            names.sort_unstable();
            names
        };
        assert_eq!(left(Origin::Daemons), ["accept"]);
        assert_eq!(left(Origin::Own), ["accept", "authorization", "cookie"]);
    }

    #[test]
    fn our_part_of_the_path_is_cut_off_and_nothing_else_changes() {
        for (uri, segments, prefix, rest) in [
            ("/v1/sessions/a/docker/v1.44/info", 4, "/v1/sessions/a/docker", "/v1.44/info"),
            ("/v1/sessions/a/docker/", 4, "/v1/sessions/a/docker", "/"),
            ("/v1/sessions/a/docker?x=1", 4, "/v1/sessions/a/docker", "/?x=1"),
            (
                "/v1/sessions/a/ports/80/a%2Fb//c?q=%2F",
                5,
                "/v1/sessions/a/ports/80",
                "/a%2Fb//c?q=%2F",
            ),
        ] {
            assert_eq!(split_path(&uri.parse().unwrap(), segments), (prefix.into(), rest.into()));
        }
    }
}
