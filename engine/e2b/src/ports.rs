//! Servers in a sandbox, for whoever knows its id, or has its token where its ports are private.

use std::sync::Arc;

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use mayfly_daemon::http::connections::Place;
use mayfly_daemon::http::error::ApiError;
use mayfly_daemon::http::extract::Live;
use mayfly_daemon::http::guest::with_guest;
use mayfly_daemon::http::proxy::{self, Origin, Target};
use serde_json::json;

use crate::sandboxes::{Sandbox, Sandboxes};

const TRAFFIC_TOKEN: HeaderName = HeaderName::from_static("e2b-traffic-access-token");
/// What `maskRequestHost` may have in place of the port.
const PORT: &str = "${PORT}";

/// Answers with what the server at `port` of sandbox `id` says.
pub(crate) async fn answer(
    sandboxes: &Sandboxes,
    id: &str,
    port: u16,
    by_name: bool,
    request: Request,
) -> Response {
    let Some(sandbox) = sandboxes.find(id) else { return not_found(id) };
    if let Err(refusal) = admit(&sandbox, request.headers()) {
        return *refusal;
    }
    match forward(sandboxes, &sandbox, port, by_name, request).await {
        Ok(response) => response,
        Err(error) => failed(&sandbox, port, error),
    }
}

/// The answer for a sandbox that is not there; SDKs look at its words.
pub(crate) fn not_found(id: &str) -> Response {
    let message = "The sandbox was not found";
    let body = json!({ "sandboxId": id, "message": message, "code": 502 });
    (StatusCode::BAD_GATEWAY, nosniff(), Json(body)).into_response()
}

/// Counts the connection for the sandbox's tenant.
///
/// # Errors
/// [`ApiError`] `too_many_connections`.
pub(crate) fn count(
    sandboxes: &Sandboxes,
    sandbox: &Sandbox,
    request: &Request,
) -> Result<Option<Arc<Place>>, ApiError> {
    let place = request.extensions().get::<Arc<Place>>().cloned();
    if let Some(place) = &place {
        let tenant = sandbox.session.tenant();
        place.belongs_to(tenant, || sandboxes.service.connections_of(tenant))?;
    }
    Ok(place)
}

fn admit(sandbox: &Sandbox, headers: &HeaderMap) -> Result<(), Box<Response>> {
    if sandbox.asked.lock().network.is_public() {
        return Ok(());
    }
    let token = headers.get(TRAFFIC_TOKEN).and_then(|token| token.to_str().ok());
    if token.is_some_and(|token| sandbox.is_traffic_token(token)) {
        return Ok(());
    }
    let message = "the ports of this sandbox are private: send its trafficAccessToken in the header \
                   E2B-Traffic-Access-Token";
    let body = json!({ "sandboxId": sandbox.session.id(), "message": message, "code": 403 });
    Err(Box::new((StatusCode::FORBIDDEN, nosniff(), Json(body)).into_response()))
}

async fn forward(
    sandboxes: &Sandboxes,
    sandbox: &Sandbox,
    port: u16,
    by_name: bool,
    mut request: Request,
) -> Result<Response, ApiError> {
    let place = count(sandboxes, sandbox, &request)?;
    let session = sandbox.session.clone();
    let stream = with_guest(&session, session.session().guest().connect_tcp(port)).await?;
    for name in [TRAFFIC_TOKEN, crate::destination::ID, crate::destination::PORT] {
        request.headers_mut().remove(name);
    }
    strip_token(sandboxes, request.headers_mut());
    let host = host(sandbox, port, by_name, request.headers());
    let origin = if by_name { Origin::Own } else { Origin::Daemons };
    let target = Target { prefix_segments: 0, host, origin };
    let mut response =
        proxy::forward(Live { place, ..Live::of(session) }, stream, request, &target).await?;
    if !by_name {
        response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    }
    Ok(response)
}

/// Takes off a tenant's token, which a client may have sent although no port needs it. What else is
/// in its place is the server's own.
fn strip_token(sandboxes: &Sandboxes, headers: &mut HeaderMap) {
    let is_token = |value: &HeaderValue| {
        let token = value.to_str().ok().and_then(|value| value.split_once(' '));
        token.is_some_and(|(_, token)| {
            sandboxes.service.config().tenant_of_token(token.trim()).is_some()
        })
    };
    // There may be several.
    if headers.get_all(header::AUTHORIZATION).iter().any(is_token) {
        headers.remove(header::AUTHORIZATION);
    }
}

/// The `Host` that the server gets: what its user wants, or else the name by which it was asked for.
fn host(sandbox: &Sandbox, port: u16, by_name: bool, headers: &HeaderMap) -> String {
    if let Some(mask) = &sandbox.asked.lock().network.mask_request_host {
        return mask.replace(PORT, &port.to_string());
    }
    let asked = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    match asked {
        Some(host) if by_name => host.to_owned(),
        _ => format!("localhost:{port}"),
    }
}

fn failed(sandbox: &Sandbox, port: u16, error: ApiError) -> Response {
    let id = sandbox.session.id();
    match error.code() {
        "session_gone" => not_found(id),
        "connection_refused" => {
            let message = "The sandbox is running but port is not open";
            let body = json!({ "sandboxId": id, "message": message, "port": port, "code": 502 });
            (StatusCode::BAD_GATEWAY, nosniff(), Json(body)).into_response()
        }
        _ => error.into_response(),
    }
}

const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");

fn nosniff() -> [(HeaderName, HeaderValue); 1] {
    [(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF)]
}
