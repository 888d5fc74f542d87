//! The session's Docker daemon over HTTP, for clients that cannot reach its Unix socket.

use axum::extract::Request;
use axum::response::Response;
use mayfly_api::ErrorBody;
use mayfly_guest::docker::GUEST_SOCKET;

use crate::http::described::{NoSession, OfSession};
use crate::http::error::ApiError;
use crate::http::extract::Live;
use crate::http::guest::with_guest;
use crate::http::proxy::{self, Origin, Target};

/// Talk to the session's Docker daemon
///
/// Everything behind `/docker` goes to the daemon as it is, hijacked connections (attach, exec,
/// build) too: `DOCKER_HOST=tcp://HOST:PORT/v1/sessions/ID/docker` works with stock clients, which
/// send a bearer token when it is among the `HttpHeaders` of their configuration. Give them one of
/// its own, as `mayfly docker` does: they send it to every host they are pointed to. The tenant's
/// credentials are removed.
#[utoipa::path(
    method(get, head, post, put, delete, patch, options), path = "/v1/sessions/{id}/docker/{*path}", tag = "docker",
    params(
        OfSession,
        ("path" = String, Path, description = "Path of the Docker Engine API"),
    ),
    responses(
        (status = "default", description = "What the Docker daemon answers"),
        NoSession,
        (status = 502, description = "The Docker daemon cannot be reached", body = ErrorBody),
    )
)]
pub async fn docker(live: Live, request: Request) -> Result<Response, ApiError> {
    let stream =
        with_guest(&live.session, live.session.session().guest().connect_unix(GUEST_SOCKET))
            .await?;
    proxy::forward(
        live,
        stream,
        request,
        &Target { prefix_segments: 4, host: "docker".into(), origin: Origin::Daemons },
    )
    .await
}
