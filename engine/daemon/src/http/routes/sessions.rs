//! Sessions: create, list, look at, extend, kill.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use mayfly_api::{CreateSession, ErrorBody, Extend, SessionInfo, SessionList};
use serde::Deserialize;
use utoipa::IntoParams;

use super::attach;
use crate::http::counted;
use crate::http::described::{NoSession, OfSession};
use crate::http::error::ApiError;
use crate::http::extract::{Body, Counted, IdempotencyKey, Live, Params, SessionId, Tenant};
use crate::service::Service;

/// Query that says how a session is created.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CreateParams {
    /// Binds the session to this connection: the answer is NDJSON, the session first, then signs of
    /// life, at last its end. When the client goes away, the session is discarded. Not together
    /// with an idempotency key.
    #[serde(default)]
    attach: bool,
}

/// Create a session
///
/// A request that waits for its turn is withdrawn when its client goes away.
#[utoipa::path(
    post, path = "/v1/sessions", tag = "sessions",
    params(
        CreateParams,
        ("Idempotency-Key" = Option<String>, Header, description = "The same request with the same key gets the same session"),
    ),
    request_body = CreateSession,
    responses(
        (status = 201, description = "The session; with `attach` a stream of NDJSON that begins with it", body = SessionInfo),
        (status = 404, description = "No such golden image", body = ErrorBody),
        (status = 409, description = "The idempotency key was used for another request", body = ErrorBody),
        (status = 422, description = "The request cannot be met", body = ErrorBody),
        (status = 429, description = "Not now: queue full, tenant busy, rate limit or host under pressure; see Retry-After", body = ErrorBody),
        (status = 503, description = "The daemon shuts down", body = ErrorBody),
        (status = 504, description = "It was not its turn within the deadline", body = ErrorBody),
    )
)]
pub async fn create(
    State(service): State<Service>,
    Counted(tenant): Counted,
    IdempotencyKey(key): IdempotencyKey,
    Params(params): Params<CreateParams>,
    Body(request, _held): Body<CreateSession>,
) -> Result<Response, ApiError> {
    if params.attach && key.is_some() {
        // Two connections would hold one session, and the first to go would take it from the other.
        return Err(ApiError::bad_request(
            "attach and Idempotency-Key exclude each other: send one of them",
        ));
    }
    let session = service.create(&tenant, request, key).await?;
    // Nothing is awaited from here on: a client that goes away now loses the session when the
    // answer cannot be written.
    Ok(if params.attach {
        (StatusCode::CREATED, attach::attach(Live::of(session))).into_response()
    } else {
        (StatusCode::CREATED, Json(session.info())).into_response()
    })
}

/// List sessions
#[utoipa::path(get, path = "/v1/sessions", tag = "sessions", responses((status = 200, body = SessionList)))]
pub async fn list(
    State(service): State<Service>,
    Tenant(tenant): Tenant,
) -> Result<Response, ApiError> {
    let sessions = service.sessions(Some(&tenant));
    let described = sessions.into_iter().map(|session| session.info());
    Ok(counted::list(&service.bytes_of(&tenant), "sessions", described).await?)
}

/// Look at a session
#[utoipa::path(
    get, path = "/v1/sessions/{id}", tag = "sessions",
    params(OfSession),
    responses(
        (status = 200, body = SessionInfo),
        NoSession,
        (status = 410, description = "It is over", body = ErrorBody),
    )
)]
pub async fn get(live: Live) -> Json<SessionInfo> {
    Json(live.session.info())
}

/// Discard a session
///
/// Nothing of it is left when this answers.
#[utoipa::path(
    delete, path = "/v1/sessions/{id}", tag = "sessions",
    params(OfSession),
    responses(
        (status = 204, description = "It is gone"),
        NoSession,
        (status = 410, description = "It was over already", body = ErrorBody),
    )
)]
pub async fn kill(
    State(service): State<Service>,
    Tenant(tenant): Tenant,
    SessionId(id): SessionId,
) -> Result<StatusCode, ApiError> {
    service.kill(&tenant, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Give a session more time, or less
#[utoipa::path(
    post, path = "/v1/sessions/{id}/extend", tag = "sessions",
    params(OfSession),
    request_body = Extend,
    responses(
        (status = 200, body = SessionInfo),
        NoSession,
        (status = 410, description = "It is over", body = ErrorBody),
        (status = 422, description = "More than the daemon allows", body = ErrorBody),
    )
)]
pub async fn extend(
    State(service): State<Service>,
    Tenant(tenant): Tenant,
    SessionId(id): SessionId,
    Body(extend, _held): Body<Extend>,
) -> Result<Json<SessionInfo>, ApiError> {
    Ok(Json(service.extend(&tenant, &id, Duration::from_secs(extend.ttl_seconds))?))
}
