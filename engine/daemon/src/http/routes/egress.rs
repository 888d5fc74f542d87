//! What a session may reach outside: look at it, replace it.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use mayfly_api::{EgressPolicy, EgressStatus, ErrorBody};

use crate::http::counted;
use crate::http::described::{NoSession, OfSession};
use crate::http::error::ApiError;
use crate::http::extract::{Body, Live, SessionId, Tenant};
use crate::service::Service;

/// What a session may reach outside, and what it has used
#[utoipa::path(
    get, path = "/v1/sessions/{id}/egress", tag = "sessions",
    params(OfSession),
    responses(
        (status = 200, body = EgressStatus),
        NoSession,
        (status = 410, description = "It is over", body = ErrorBody),
    )
)]
pub async fn get(live: Live) -> Result<Response, ApiError> {
    Ok(counted::json(live.session.account(), &live.session.egress())?)
}

/// Replace what a session may reach outside
///
/// The body is the `egress` of a request for a session; `null` or `{}` takes all of it away.
/// Connections that are not allowed any more are cut off when this answers. What the session has
/// used counts for the new limits.
#[utoipa::path(
    put, path = "/v1/sessions/{id}/egress", tag = "sessions",
    params(OfSession),
    request_body = Option<EgressPolicy>,
    responses(
        (status = 200, body = EgressStatus),
        NoSession,
        (status = 410, description = "It is over", body = ErrorBody),
        (status = 422, description = "The policy cannot be", body = ErrorBody),
    )
)]
pub async fn put(
    State(service): State<Service>,
    Tenant(tenant): Tenant,
    SessionId(id): SessionId,
    Body(asked, _held): Body<Option<EgressPolicy>>,
) -> Result<Json<EgressStatus>, ApiError> {
    Ok(Json(service.set_egress(&tenant, &id, asked.as_ref()).await?))
}
