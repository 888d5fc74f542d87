//! Passes HTTP on to a server in a guest, upgraded connections too.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{StatusCode, Uri, Version};
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mayfly_guest::channel::{ChannelError, GuestStream};
use mayfly_guest::hop_by_hop;
use tokio_util::task::AbortOnDropHandle;

use super::error::ApiError;
use super::extract::Live;
use super::guest::with_guest;

/// Header that tells a server under which path it is seen (a common convention of reverse proxies).
const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// Pages of a guest are strangers on our origin: a browser gives them one of their own, so that
/// they cannot use the API in the name of who looks at them.
const SANDBOX: HeaderValue =
    HeaderValue::from_static("sandbox allow-scripts allow-forms allow-popups allow-modals");

/// The server behind the proxy.
#[derive(Debug)]
pub struct Target {
    /// Number of leading segments of the path that are ours.
    pub prefix_segments: usize,
    /// Value that it gets as `Host`.
    pub host: String,
    /// Whether a browser could show what it answers.
    pub foreign: bool,
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
    let upgrade = wanted_upgrade(request.headers())
        .map(|protocol| (protocol, hyper::upgrade::on(&mut request)));
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| refused(target, &error))?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "proxied connection");
        }
    }));
    let outgoing = outgoing(request, target, upgrade.as_ref().map(|(protocol, _)| protocol))?;
    let exchange = async { Ok::<_, ChannelError>(sender.send_request(outgoing).await) };
    let response =
        with_guest(&live.session, exchange).await?.map_err(|error| refused(target, &error))?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some((_, client)) = upgrade else {
            return Err(refused(target, &"it changed the protocol without being asked to"));
        };
        return Ok(switch(live, client, connection, response));
    }
    let (mut parts, body) = response.into_parts();
    strip(&mut parts.headers);
    parts.version = Version::HTTP_11;
    if target.foreign {
        parts.headers.append(header::CONTENT_SECURITY_POLICY, SANDBOX);
    }
    // The session is in use, and the connection open, until the last byte; a client that goes away
    // ends both.
    let held = (live, connection);
    let body = body.map_frame(move |frame| {
        let _ = &held;
        frame
    });
    Ok(Response::from_parts(parts, Body::new(body)))
}

/// Answers 101 and moves bytes both ways until one end closes, or the session is over.
fn switch(
    live: Live,
    client: OnUpgrade,
    connection: AbortOnDropHandle<()>,
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
    strip(&mut parts.headers);
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        parts.headers.insert(header::UPGRADE, protocol);
    }
    Response::from_parts(parts, Body::empty())
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
    strip(&mut parts.headers);
    // hyper answers it to our client by itself.
    parts.headers.remove(header::EXPECT);
    if let Some(protocol) = upgrade {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, protocol.clone());
    }
    let host = HeaderValue::from_str(&target.host)
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    parts.headers.insert(header::HOST, host);
    parts.headers.insert(FORWARDED_PREFIX, prefix);
    parts.version = Version::HTTP_11;
    // What our own layers noted about the request is not for the guest's connection.
    parts.extensions.clear();
    Ok(Request::from_parts(parts, body))
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

fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    connection_options(headers)
        .any(|option| option.eq_ignore_ascii_case("upgrade"))
        .then_some(())?;
    headers.get(header::UPGRADE).cloned()
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Removes the headers that belong to one connection, those that `Connection` names among them.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        connection_options(headers).filter_map(|option| option.parse().ok()).collect();
    for name in named.iter().chain(&hop_by_hop::NAMES) {
        headers.remove(name);
    }
}

fn refused(target: &Target, error: &dyn std::fmt::Display) -> ApiError {
    let message = format!("the server {} in the guest cannot be spoken to: {error}", target.host);
    ApiError::new(StatusCode::BAD_GATEWAY, "bad_gateway", message)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn what_belongs_to_the_connection_stays_with_it() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "Upgrade, X-Mine"),
            ("upgrade", "tcp"),
            ("x-mine", "1"),
            ("te", "x"),
            ("accept", "*/*"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        assert_eq!(wanted_upgrade(&headers).unwrap(), "tcp");
        strip(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), [header::ACCEPT]);
        assert_eq!(wanted_upgrade(&headers), None);
    }
}
