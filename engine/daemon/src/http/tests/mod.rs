//! The API over a real service without any session: who may ask, from which origin, what is refused,
//! what it says of itself.

mod access;
mod connections;
mod document;
mod input;
mod origin;
mod socket;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use mayfly_api::ErrorBody;
use mayfly_engine::Engine;
use mayfly_host::layout::Layout;
use tower::ServiceExt;

use super::auth::Peer;
use super::router::router;
use crate::http as api;
use crate::service::{Service, ServiceConfig};

/// Token of tenant `red`.
const TOKEN: &str = "a-token-for-tests";

/// A service with a home of its own, and no golden image.
struct Daemon {
    service: Service,
    dir: tempfile::TempDir,
}

impl Daemon {
    async fn start() -> Self {
        Self::start_in("", "").await
    }

    /// Starts one with further keys of the configuration.
    async fn start_with(keys: &str) -> Self {
        Self::start_in(keys, "").await
    }

    /// Starts one with more settings: of the tenant `red`, or tables.
    async fn with(settings: &str) -> Self {
        Self::start_in("", settings).await
    }

    async fn start_in(keys: &str, settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("home"), dir.path().join("run"));
        let hash = blake3::hash(TOKEN.as_bytes());
        let config = ServiceConfig::parse(&format!(
            "{keys}\n[[tenants]]\nname = \"red\"\ntoken_blake3 = \"{hash}\"\n{settings}\n"
        ))
        .unwrap();
        let engine = Arc::new(Engine::open(layout).await.unwrap());
        Self { service: Service::start(engine, config).await.unwrap(), dir }
    }

    fn router(&self) -> Router {
        router(self.service.clone())
    }

    /// Asks as the owner of the Unix socket.
    async fn ask(&self, method: Method, path: &str, body: impl Into<Body>) -> Response<Body> {
        let request =
            Request::builder().method(method).uri(path).header("content-type", "application/json");
        self.send(Peer::Local, request.body(body.into()).unwrap()).await
    }

    async fn send(&self, peer: Peer, mut request: Request<Body>) -> Response<Body> {
        request.extensions_mut().insert(peer);
        self.router().oneshot(request).await.unwrap()
    }
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap()
}

/// The status and the stable word of a refusal.
async fn refusal(response: Response<Body>) -> (StatusCode, String) {
    let status = response.status();
    let body = text(response).await;
    let error: ErrorBody =
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{status} {body}: {error}"));
    assert!(!error.message.is_empty());
    (status, error.code)
}
