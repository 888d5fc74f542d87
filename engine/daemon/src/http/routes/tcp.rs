//! Raw TCP to a port of the guest, over an upgraded connection.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{self, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mayfly_api::ErrorBody;
use mayfly_guest::channel::GuestStream;
use mayfly_guest::hop_by_hop;

use crate::http::described::{NoSession, OfSession};
use crate::http::error::ApiError;
use crate::http::extract::{GuestPort, Live};
use crate::http::guest::with_guest;

/// What a client is to name as the protocol, as docker does for its own streams.
const PROTOCOL: HeaderValue = HeaderValue::from_static("tcp");

/// Connect to a TCP port of the session
///
/// The request has `Connection: Upgrade` and `Upgrade: tcp`. After 101 the connection carries bytes
/// to and from the port, on the guest's loopback interface, with half-close both ways. The session
/// counts as used until it ends.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/tcp/{port}", tag = "ports",
    params(
        OfSession,
        ("port" = u16, Path, description = "TCP port of the guest"),
    ),
    responses(
        (status = 101, description = "The connection is the port's from here on"),
        NoSession,
        (status = 410, description = "The session is over", body = ErrorBody),
        (status = 426, description = "Not an upgrade to `tcp`", body = ErrorBody),
        (status = 502, description = "Nothing listens there", body = ErrorBody),
    )
)]
pub async fn tcp(
    live: Live,
    GuestPort(port): GuestPort,
    mut request: Request,
) -> Result<Response, ApiError> {
    if !is_asked_for(request.headers()) {
        return Ok(not_asked_for());
    }
    let connect = live.session.session().guest().connect_tcp(port);
    let stream = with_guest(&live.session, connect).await?;
    let client = hyper::upgrade::on(&mut request);
    tokio::spawn(carry(live, client, stream));
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    hop_by_hop::set_upgrade(answer.headers_mut(), PROTOCOL);
    Ok(answer)
}

fn is_asked_for(headers: &HeaderMap) -> bool {
    let protocol = hop_by_hop::upgrade(headers);
    protocol.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(PROTOCOL.as_bytes()))
}

/// RFC 9110, section 15.5.22: 426 names the protocol.
fn not_asked_for() -> Response {
    let message = "this route carries bytes, no HTTP: ask with `Connection: Upgrade` and `Upgrade: tcp`; for HTTP use \
                   ports/PORT/ instead";
    let error = ApiError::new(StatusCode::UPGRADE_REQUIRED, "upgrade_needed", message);
    let mut response = error.into_response();
    response.headers_mut().insert(header::UPGRADE, PROTOCOL);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response
}

/// Moves bytes both ways until both directions have ended, one end is gone, or the session is over.
async fn carry(live: Live, client: OnUpgrade, mut stream: GuestStream) {
    let moved = async {
        // The client's end is ours only after our answer was sent.
        let client = client.await.map_err(std::io::Error::other)?;
        tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut stream).await
    };
    tokio::select! {
        moved = moved => if let Err(error) = moved {
            tracing::debug!(session = live.session.id(), %error, "a TCP connection to a guest");
        },
        _ = live.session.ended() => {}
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    #[test]
    fn only_an_upgrade_to_tcp_is_one() {
        let asked = |pairs: &[(&'static str, &'static str)]| {
            let pairs = pairs.iter().map(|(name, value)| {
                (HeaderName::from_static(name), HeaderValue::from_static(value))
            });
            is_asked_for(&pairs.collect())
        };
        assert!(asked(&[("connection", "keep-alive, Upgrade"), ("upgrade", "TCP")]));
        for not in [
            &[][..],
            &[("upgrade", "tcp")],
            &[("connection", "upgrade")],
            &[("connection", "upgrade"), ("upgrade", "websocket")],
        ] {
            assert!(!asked(not), "{not:?}");
        }
        assert_eq!(not_asked_for().status(), StatusCode::UPGRADE_REQUIRED);
    }
}
