//! E2B's REST API and envd's Connect RPC over a Mayfly service.
//!
//! Clients of E2B, such as its SDKs, speak two APIs: REST for sandboxes, and that of envd, E2B's
//! agent, for what is in one. [`front_end`] has both, on the daemon's listeners. A sandbox is a
//! session of the service; nothing of E2B runs in the guest.
//!
//! - [`destination`]: for which sandbox and port a request is, by headers or by the host's name;
//! - [`rest`]: sandboxes, with the API key that is a tenant's token;
//! - [`envd`]: processes, files, and the access token of each sandbox;
//! - [`connect`]: the framing of its calls;
//! - [`ports`]: servers in a sandbox;
//! - [`sandboxes`]: what is kept of each sandbox beside its session;
//! - [`settings`]: the table `[e2b]` of the daemon's configuration.

pub mod connect;
pub mod destination;
pub mod envd;
mod key;
mod ports;
mod rest;
mod sandboxes;
pub mod settings;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use mayfly_daemon::http::FrontEnd;
use mayfly_daemon::service::Service;
use tower::ServiceExt as _;

use destination::Destination;
use sandboxes::Sandboxes;
use settings::Settings;

pub use key::new_key;

/// Port of a sandbox at which clients look for envd.
pub const ENVD_PORT: u16 = 49983;
/// Version of envd whose behaviour clients are to expect.
const ENVD_VERSION: &str = "0.6.4";

/// Creates the front end of a service.
pub fn front_end(service: Service, settings: Settings) -> FrontEnd {
    let sandboxes = Sandboxes::new(service, settings);
    let apis = Apis {
        rest: rest::router(sandboxes.clone()),
        envd: envd::router(sandboxes.clone()),
        sandboxes,
    };
    let router = Router::new().fallback(answer).with_state(Arc::new(apis));
    FrontEnd::new(destination::is_ours, router)
}

struct Apis {
    rest: Router,
    envd: Router,
    sandboxes: Arc<Sandboxes>,
}

async fn answer(State(apis): State<Arc<Apis>>, mut request: Request) -> Response {
    let destination = Destination::of(request.uri(), request.headers());
    let router = match destination {
        Destination::Port { ref id, port, by_name } if port != ENVD_PORT => {
            return ports::answer(&apis.sandboxes, id, port, by_name, request).await;
        }
        Destination::Api => &apis.rest,
        Destination::Port { .. } | Destination::Signed => &apis.envd,
    };
    request.extensions_mut().insert(destination);
    match router.clone().oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
