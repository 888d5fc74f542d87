//! Servers in a guest, over HTTP.

use axum::extract::Request;
use axum::response::Response;
use mayfly_api::ErrorBody;

use crate::http::described::{NoSession, OfSession};
use crate::http::error::ApiError;
use crate::http::extract::{GuestPort, Live};
use crate::http::guest::with_guest;
use crate::http::proxy::{self, Origin, Target};

/// Talk HTTP to a TCP port of the session
///
/// Everything behind the port goes to a server on the guest's loopback interface, WebSockets and
/// other upgrades too. `Host` becomes `localhost:PORT`; `X-Forwarded-Prefix` tells the server where
/// it is seen.
#[utoipa::path(
    method(get, head, post, put, delete, patch, options), path = "/v1/sessions/{id}/ports/{port}/{*path}", tag = "ports",
    params(
        OfSession,
        ("port" = u16, Path, description = "TCP port of the guest"),
        ("path" = String, Path, description = "Path on the server"),
    ),
    responses(
        (status = "default", description = "What the server answers"),
        NoSession,
        (status = 502, description = "Nothing listens there", body = ErrorBody),
    )
)]
pub async fn port(live: Live, port: GuestPort, request: Request) -> Result<Response, ApiError> {
    forward(live, port, request).await
}

/// Talk HTTP to a TCP port of the session: its root
#[utoipa::path(
    method(get, head, post, put, delete, patch, options), path = "/v1/sessions/{id}/ports/{port}/", tag = "ports",
    params(
        OfSession,
        ("port" = u16, Path, description = "TCP port of the guest"),
    ),
    responses(
        (status = "default", description = "What the server answers"),
        NoSession,
        (status = 502, description = "Nothing listens there", body = ErrorBody),
    )
)]
pub async fn port_root(
    live: Live,
    port: GuestPort,
    request: Request,
) -> Result<Response, ApiError> {
    forward(live, port, request).await
}

async fn forward(
    live: Live,
    GuestPort(port): GuestPort,
    request: Request,
) -> Result<Response, ApiError> {
    let stream =
        with_guest(&live.session, live.session.session().guest().connect_tcp(port)).await?;
    let target =
        Target { prefix_segments: 5, host: format!("localhost:{port}"), origin: Origin::Daemons };
    proxy::forward(live, stream, request, &target).await
}
