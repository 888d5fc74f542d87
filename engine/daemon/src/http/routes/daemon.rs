//! The daemon itself: state, metrics, its page and its own description.

use std::sync::LazyLock;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use mayfly_api::{GoldenList, ServiceStatus};

use crate::http::extract::Viewer;
use crate::observe::CONTENT_TYPE;
use crate::service::Service;

/// The page: one file, shown by browsers without anything else.
const PAGE: &str = include_str!("../page.html");

/// State of the daemon
///
/// A tenant is told of its own sessions and requests, and of what was left of its own sessions.
#[utoipa::path(get, path = "/v1/status", tag = "daemon", responses((status = 200, body = ServiceStatus)))]
pub async fn status(State(service): State<Service>, Viewer(viewer): Viewer) -> Json<ServiceStatus> {
    Json(service.status(viewer.as_ref()))
}

/// List golden images
#[utoipa::path(get, path = "/v1/goldens", tag = "daemon", responses((status = 200, body = GoldenList)))]
pub async fn goldens(State(service): State<Service>) -> Json<GoldenList> {
    Json(GoldenList { goldens: service.goldens() })
}

/// Metrics for Prometheus
#[utoipa::path(
    get, path = "/metrics", tag = "daemon",
    responses((status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text"))
)]
pub async fn metrics(State(service): State<Service>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], service.metrics().encode())
}

/// Whether the daemon answers
///
/// Needs no token.
#[utoipa::path(
    get, path = "/healthz", tag = "daemon",
    responses((status = 200, description = "It does: `ok`", body = String, content_type = "text/plain"))
)]
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// The daemon's page
///
/// Needs no token: it holds nothing, and asks for one.
#[utoipa::path(
    get, path = "/", tag = "daemon",
    responses((status = 200, description = "HTML", body = String, content_type = "text/html"))
)]
pub async fn page() -> Response {
    // Only the two inline blocks of this very answer may run; nothing is loaded from anywhere else.
    let nonce = STANDARD_NO_PAD.encode(rand::random::<[u8; 16]>());
    let page = PAGE
        .replace("<script>", &format!("<script nonce=\"{nonce}\">"))
        .replace("<style>", &format!("<style nonce=\"{nonce}\">"));
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers: [(HeaderName, &str); 5] = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, &policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, page).into_response()
}

/// This document
///
/// Needs no token.
#[utoipa::path(
    get, path = "/openapi.json", tag = "daemon",
    responses((status = 200, description = "OpenAPI 3.1", body = Object))
)]
pub async fn openapi() -> impl IntoResponse {
    // It is dear to make, never changes, and whoever reaches the port may ask for it.
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
        // A document of plain data always has a text.
        serde_json::to_vec(&crate::http::router::document()).unwrap_or_default().into()
    });
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.clone())
}
