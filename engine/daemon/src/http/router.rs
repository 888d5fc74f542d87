//! Router: all routes, and the OpenAPI document that describes them.

use axum::Router;
use axum::http::StatusCode;
use axum::middleware;
use mayfly_api::{AttachEvent, Change, ErrorBody, Exec, ExecMessage, Stream};
use utoipa::OpenApi as _;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, OpenApi, PathItem, Paths};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::authenticate;
use super::error::ApiError;
use super::origin::guard;
use super::routes::{
    background, daemon, docker, egress, exec, exec_socket, files, ports, sessions, stats, tar, tcp,
    watch,
};
use crate::service::Service;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "Mayfly", description = "Ephemeral microVM sessions with a warm Docker inside, restored from snapshots."),
    components(schemas(ErrorBody, AttachEvent, Change, Exec, ExecMessage, Stream)),
    tags(
        (name = "sessions", description = "Sessions: used once, then discarded"),
        (name = "commands", description = "Commands in a session"),
        (name = "files", description = "Files of a session"),
        (name = "docker", description = "The Docker daemon of a session"),
        (name = "ports", description = "Servers in a session"),
        (name = "daemon", description = "The daemon itself"),
    )
)]
struct Description;

/// Builds the whole API over a service.
pub fn router(service: Service) -> Router {
    let known = private().layer(middleware::from_fn_with_state(service.clone(), authenticate));
    let (router, _) = public().merge(known).split_for_parts();
    router
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(service.clone(), guard))
        .with_state(service)
}

/// Builds the OpenAPI document from the handlers themselves.
pub fn document() -> OpenApi {
    let (_, mut document) = OpenApiRouter::with_openapi(Description::openapi())
        .merge(public())
        .merge(private())
        .split_for_parts();
    let mut paths = Paths::new();
    for (path, mut item) in std::mem::take(&mut document.paths.paths) {
        // OpenAPI has no wildcards: there it is a parameter like others.
        let path = path.replace("{*", "{");
        name_operations(&path, &mut item);
        paths.paths.insert(path, item);
    }
    document.paths = paths;
    let token = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("Over TCP. Over the Unix socket no token is needed."))
        .build();
    let components = document.components.get_or_insert_with(|| ComponentsBuilder::new().build());
    components.add_security_scheme("token", SecurityScheme::Http(token));
    document
}

/// Names each operation by method and path, as `get_sessions_id`: generators of clients need names,
/// each once.
fn name_operations(path: &str, item: &mut PathItem) {
    let path = path.strip_prefix("/v1").unwrap_or(path);
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let name = words.collect::<Vec<_>>().join("_");
    let name = if name.is_empty() { "page".to_owned() } else { name };
    // A last slash makes another path of the same words.
    let name = if path.len() > 1 && path.ends_with('/') { name + "_root" } else { name };
    for (method, operation) in [
        ("get", &mut item.get),
        ("put", &mut item.put),
        ("post", &mut item.post),
        ("delete", &mut item.delete),
        ("options", &mut item.options),
        ("head", &mut item.head),
        ("patch", &mut item.patch),
    ] {
        if let Some(operation) = operation {
            operation.operation_id = Some(format!("{method}_{name}"));
        }
    }
}

async fn no_such_route() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "no_such_route", "no such route; see /openapi.json")
}

async fn no_such_method() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "no_such_method",
        "this route has no such method; see /openapi.json",
    )
}

/// Routes that tell nothing of anybody.
fn public() -> OpenApiRouter<Service> {
    OpenApiRouter::new()
        .routes(routes!(daemon::page))
        .routes(routes!(daemon::healthz))
        .routes(routes!(daemon::openapi))
}

/// Routes for those who are known.
fn private() -> OpenApiRouter<Service> {
    OpenApiRouter::new()
        .routes(routes!(daemon::status))
        .routes(routes!(daemon::goldens))
        .routes(routes!(daemon::metrics))
        .routes(routes!(sessions::create, sessions::list))
        .routes(routes!(sessions::get, sessions::kill))
        .routes(routes!(sessions::extend))
        .routes(routes!(egress::get, egress::put))
        .routes(routes!(stats::logs))
        .routes(routes!(stats::stats))
        .routes(routes!(exec::exec))
        .routes(routes!(exec_socket::stream))
        .routes(routes!(background::start, background::list))
        .routes(routes!(background::get, background::kill))
        .routes(routes!(background::output))
        .routes(routes!(exec_socket::attach))
        .routes(routes!(background::stdin))
        .routes(routes!(background::signal))
        .routes(routes!(background::resize))
        .routes(routes!(files::read, files::write))
        .routes(routes!(files::list))
        .routes(routes!(files::stat))
        .routes(routes!(files::mkdir))
        .routes(routes!(files::rename))
        .routes(routes!(files::remove))
        .routes(routes!(tar::pack, tar::unpack))
        .routes(routes!(watch::watch))
        .routes(routes!(docker::docker))
        .routes(routes!(ports::port))
        .routes(routes!(ports::port_root))
        .routes(routes!(tcp::tcp))
}
