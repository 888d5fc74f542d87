//! What E2B's agent in a sandbox, envd, answers: calls for processes and files, and contents of
//! files over plain HTTP.

mod call;
mod entry;
mod files;
mod filesystem;
mod guest_user;
pub mod multipart;
pub mod passwd;
mod process;
mod process_stream;
pub mod signature;
mod upload;
pub(crate) mod watchers;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use mayfly_daemon::observe::tenant_lines;

use crate::connect::{Code, ConnectError};
use crate::destination::Destination;
use crate::ports::{count, not_found};
use crate::sandboxes::{Sandbox, Sandboxes};
use signature::Signed;

const ACCESS_TOKEN: HeaderName = HeaderName::from_static("x-access-token");
/// For answers without a policy of their own: a browser that shows one as a page runs nothing of it.
const NOTHING: HeaderValue =
    HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; sandbox");

/// Builds envd's API.
pub(crate) fn router(sandboxes: Arc<Sandboxes>) -> Router {
    let admitted = Router::new()
        .route("/health", get(axum::http::StatusCode::NO_CONTENT))
        .route("/files", get(files::download).post(upload::upload))
        .route("/process.Process/Start", post(process::start))
        .route("/process.Process/Connect", post(process::connect))
        .route("/process.Process/List", post(process::list))
        .route("/process.Process/SendSignal", post(process::send_signal))
        .route("/process.Process/SendInput", post(process::send_input))
        .route("/process.Process/StreamInput", post(process::stream_input))
        .route("/process.Process/CloseStdin", post(process::close_stdin))
        .route("/process.Process/Update", post(process::update))
        .route("/filesystem.Filesystem/Stat", post(filesystem::stat))
        .route("/filesystem.Filesystem/MakeDir", post(filesystem::make_dir))
        .route("/filesystem.Filesystem/Move", post(filesystem::rename))
        .route("/filesystem.Filesystem/Remove", post(filesystem::remove))
        .route("/filesystem.Filesystem/ListDir", post(filesystem::list_dir))
        .route("/filesystem.Filesystem/WatchDir", post(watchers::watch_dir))
        .route("/filesystem.Filesystem/CreateWatcher", post(watchers::create))
        .route("/filesystem.Filesystem/GetWatcherEvents", post(watchers::events))
        .route("/filesystem.Filesystem/RemoveWatcher", post(watchers::remove));
    admitted
        .fallback(any(no_such_route))
        .layer(middleware::from_fn_with_state(sandboxes.clone(), admit))
        .with_state(sandboxes)
}

async fn no_such_route() -> ConnectError {
    ConnectError::new(Code::Unimplemented, "envd has no such route here")
}

/// Finds the sandbox, and out whether its client may use it; puts it into the request's extensions.
async fn admit(
    State(sandboxes): State<Arc<Sandboxes>>,
    mut request: Request,
    next: Next,
) -> Response {
    let mut response = match admitted(&sandboxes, &request) {
        Ok(sandbox) => match count(&sandboxes, &sandbox, &request) {
            Ok(_) => {
                let tenant = sandbox.session.tenant().clone();
                request.headers_mut().remove(ACCESS_TOKEN);
                request.extensions_mut().insert(sandbox);
                tenant_lines::on_behalf_of(tenant, next.run(request)).await
            }
            Err(error) => ConnectError::from(error).into_response(),
        },
        Err(refusal) => *refusal,
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, NOTHING);
    response
}

fn admitted(sandboxes: &Sandboxes, request: &Request) -> Result<Arc<Sandbox>, Box<Response>> {
    let is_files = request.uri().path() == "/files";
    let signed = is_files.then(|| Signed::of(request.method(), request.uri())).flatten();
    let refuse =
        |why: &str| Box::new(ConnectError::new(Code::Unauthenticated, why).into_response());
    let destination = request.extensions().get::<Destination>();
    let sandbox = if let Some(Destination::Port { id, .. }) = destination {
        sandboxes.find(id).ok_or_else(|| Box::new(not_found(id)))?
    } else {
        let signed = signed.as_ref().ok_or_else(|| {
            refuse("name the sandbox by the header E2b-Sandbox-Id or by PORT-ID.DOMAIN as the host")
        })?;
        // One hash for each sandbox that lives.
        let fits = |sandbox: &Arc<Sandbox>| signed.is_by(&sandbox.envd_token());
        sandboxes.all().into_iter().find(fits).ok_or_else(|| {
            refuse("the signature is of no sandbox that lives, or of another path or user")
        })?
    };
    if let Some(signed) = signed {
        if !signed.is_by(&sandbox.envd_token()) {
            return Err(refuse("the signature is not of this sandbox, path and user"));
        }
        return match signed.is_over() {
            true => Err(refuse("the signature has expired")),
            false => Ok(sandbox),
        };
    }
    if request.method() == Method::GET && request.uri().path() == "/health" {
        return Ok(sandbox);
    }
    let token = request.headers().get(ACCESS_TOKEN).and_then(|token| token.to_str().ok());
    if token.is_some_and(|token| sandbox.is_envd_token(token)) {
        return Ok(sandbox);
    }
    Err(refuse("send the sandbox's envdAccessToken in the header X-Access-Token"))
}
