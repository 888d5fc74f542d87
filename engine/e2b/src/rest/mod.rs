//! The REST API: sandboxes of the tenant whose key is sent.

mod create;
mod error;
mod given;
mod list;
mod metrics;
pub(crate) mod network;
mod sandbox;
mod templates;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete, get, post, put};
use mayfly_api::TenantName;
use mayfly_daemon::http::auth::identify;
use mayfly_daemon::http::body;
use mayfly_daemon::http::error::ApiError;
use mayfly_daemon::http::origin::guard;
use mayfly_daemon::observe::tenant_lines;
use mayfly_daemon::service::shares::Share;
use serde::de::DeserializeOwned;

pub(crate) use error::RestError;

use crate::sandboxes::{Sandbox, Sandboxes};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Builds the REST API.
pub(crate) fn router(sandboxes: Arc<Sandboxes>) -> Router {
    let service = sandboxes.service.clone();
    let known = Router::new()
        .route("/sandboxes", post(create::create).get(list::list_all))
        .route("/v2/sandboxes", post(create::create).get(list::list))
        .route("/sandboxes/{id}", get(sandbox::get).delete(sandbox::kill))
        .route("/sandboxes/{id}/timeout", post(sandbox::timeout))
        .route("/sandboxes/{id}/refreshes", post(sandbox::refresh))
        .route("/sandboxes/{id}/connect", post(sandbox::connect))
        .route("/v2/sandboxes/{id}/connect", post(sandbox::connect))
        .route("/sandboxes/{id}/metrics", get(metrics::metrics))
        .route("/sandboxes/{id}/network", put(network::replace))
        .route("/sandboxes/{id}/pause", post(not_here))
        .route("/sandboxes/{id}/resume", post(not_here))
        .route("/sandboxes/{id}/fork", post(not_here))
        .route("/sandboxes/{id}/snapshots", post(not_here))
        .route("/templates/aliases/{name}", get(templates::alias))
        .route("/templates/{id}", delete(not_here).get(not_here).post(not_here).patch(not_here))
        .fallback(any(not_here))
        .layer(middleware::from_fn_with_state(sandboxes.clone(), authenticate))
        .with_state(sandboxes);
    Router::new()
        .route("/health", get(StatusCode::OK))
        .merge(known)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(service, guard))
}

/// Finds out whose key is sent. It is a tenant's token, in a header of E2B's.
async fn authenticate(
    State(sandboxes): State<Arc<Sandboxes>>,
    mut request: Request,
    next: Next,
) -> Response {
    let headers = request.headers_mut();
    if let Some(key) = headers.remove(API_KEY)
        && !headers.contains_key(header::AUTHORIZATION)
    {
        let bearer = [b"Bearer ", key.as_bytes()].concat();
        if let Ok(value) = HeaderValue::from_bytes(&bearer) {
            headers.insert(header::AUTHORIZATION, value);
        }
    }
    match identify(&sandboxes.service, &mut request) {
        Ok(tenant) => tenant_lines::on_behalf_of(tenant, next.run(request)).await,
        Err(error) if error.status() == StatusCode::UNAUTHORIZED => {
            let message = "send a token of this daemon's in the header X-API-Key (E2B_API_KEY)";
            RestError::new(StatusCode::UNAUTHORIZED, message).into_response()
        }
        Err(error) => RestError::from(error).into_response(),
    }
}

/// What E2B has and this front end has not.
async fn not_here(request: Request) -> RestError {
    let path = request.uri().path();
    let what = match path.rsplit('/').next().unwrap_or_default() {
        "pause" | "resume" => "a session cannot be paused yet",
        "fork" | "snapshots" => "a session cannot be made into a snapshot yet",
        _ if path.contains("/templates") => {
            "templates are golden images, built by `mayfly golden build`; name one in [e2b.templates] of the daemon's \
             configuration"
        }
        _ => "this part of E2B's API is not implemented",
    };
    RestError::new(StatusCode::NOT_IMPLEMENTED, format!("not implemented by Mayfly: {what}"))
}

async fn no_such_method() -> RestError {
    RestError::new(StatusCode::METHOD_NOT_ALLOWED, "this route has no such method")
}

/// The sandbox that the path names, of the tenant that asks.
pub(crate) struct Own(pub Arc<Sandbox>);

impl FromRequestParts<Arc<Sandboxes>> for Own {
    type Rejection = RestError;

    async fn from_request_parts(
        parts: &mut Parts,
        sandboxes: &Arc<Sandboxes>,
    ) -> Result<Self, RestError> {
        let Asking(tenant) = Asking::from_request_parts(parts, sandboxes).await?;
        let Path(id): Path<String> = Path::from_request_parts(parts, sandboxes)
            .await
            .map_err(|error| RestError::new(StatusCode::BAD_REQUEST, error.body_text()))?;
        sandboxes.of_tenant(&tenant, &id).map(Self).ok_or_else(|| RestError::no_sandbox(&id))
    }
}

/// The tenant that asks.
pub(crate) struct Asking(pub TenantName);

impl<S: Send + Sync> FromRequestParts<S> for Asking {
    type Rejection = RestError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, RestError> {
        // Only a route outside of the authenticated part could lack it.
        let unknown = || RestError::new(StatusCode::UNAUTHORIZED, "nobody is known to ask");
        parts.extensions.get::<TenantName>().cloned().map(Self).ok_or_else(unknown)
    }
}

/// A JSON body, and what counts its bytes. An empty one is an empty object.
pub(crate) struct Body<T>(pub T, pub Share);

impl<T: DeserializeOwned> FromRequest<Arc<Sandboxes>> for Body<T> {
    type Rejection = RestError;

    async fn from_request(request: Request, sandboxes: &Arc<Sandboxes>) -> Result<Self, RestError> {
        let (mut parts, body) = request.into_parts();
        let Asking(tenant) = Asking::from_request_parts(&mut parts, sandboxes).await?;
        let account = sandboxes.service.bytes_of(&tenant);
        let (bytes, held) = body::read(body, &account).await?.into_parts();
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        let value = serde_json::from_slice(text)
            .map_err(|error| RestError::new(StatusCode::BAD_REQUEST, format!("body: {error}")))?;
        Ok(Self(value, held))
    }
}

/// The error for JSON that was held in parts of a request.
fn too_much(error: mayfly_daemon::service::held::Full) -> RestError {
    RestError::from(ApiError::from(error))
}

/// A body of bytes that count for their tenant until its client has them.
fn json(body: mayfly_daemon::service::held::Held) -> Response {
    let bytes: Bytes = body.into_bytes();
    ([(header::CONTENT_TYPE, "application/json")], bytes).into_response()
}
