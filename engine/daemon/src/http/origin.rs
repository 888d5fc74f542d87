//! Origins: requests that a browser sends for the page of another origin are refused, and answers
//! cannot be shown as pages of ours.
//!
//! Who opens the Unix socket, or a forward of it by SSH, needs no token. A browser on that host
//! would send the requests of any page there, so the daemon looks at what browsers tell of them:
//!
//! - `Origin` and `Sec-Fetch-Site` (Fetch, section 3.2; Fetch Metadata, section 2.3) name the page;
//! - `Host` is the name by which the page has found the daemon. DNS rebinding gives a page of
//!   another origin the daemon's address, but not its name.

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::auth::Peer;
use super::error::ApiError;
use crate::service::{Host, Service};

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// Names under which clients ask over the Unix socket that are no names of hosts: our own clients,
/// and docker's since 20.10 and since 24.0.5. A browser would add the forward's port to them.
const CLIENTS: [&str; 3] = ["mayfly", "docker", "api.moby.localhost"];

/// For answers without a policy of their own: a browser that shows one as a page runs nothing of it.
const NOTHING: HeaderValue =
    HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; sandbox");

/// Middleware in front of all routes: answers 403 to what a browser asks for a page of another
/// origin, and makes every answer one that a browser takes for what it says it is.
pub async fn guard(State(service): State<Service>, request: Request, next: Next) -> Response {
    // Without a listener's word a request counts as remote, as it does for authentication.
    let peer = request.extensions().get::<Peer>().copied().unwrap_or(Peer::Remote);
    let names = &service.config().allowed_hosts;
    let checked = check(peer, names, request.method(), request.uri(), request.headers());
    let mut response = match checked {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // The daemon's page and the answers of guests have one of their own.
    if !headers.contains_key(header::CONTENT_SECURITY_POLICY) {
        headers.insert(header::CONTENT_SECURITY_POLICY, NOTHING);
        headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
    }
    response
}

/// Whether a request may be answered. `names` are those of the configuration.
fn check(
    peer: Peer,
    names: &[Host],
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<(), ApiError> {
    let host = host(headers)?;
    // The target of a request can name a host, too, which then counts (RFC 9112, section 3.2.2).
    let target = uri.authority().map(|authority| parse(authority.as_str().as_bytes()));
    for asked in host.iter().chain(&target.transpose()?) {
        if !is_ours(peer, names, asked) {
            return Err(foreign_host(&String::from(asked.clone())));
        }
    }
    for origin in headers.get_all(header::ORIGIN) {
        if !is_same_origin(origin, host.as_ref(), names) {
            let origin = String::from_utf8_lossy(origin.as_bytes());
            let message = format!(
                "the request comes from a page of another origin, {origin:?}: call the API from the daemon's own page, \
                 or without a browser. A proxy before the daemon must pass Host on, or its name be in allowed_hosts"
            );
            return Err(foreign_origin(message));
        }
    }
    let own = |site: &HeaderValue| site == "same-origin" || site == "none";
    if !headers.get_all(FETCH_SITE).iter().all(own) && !is_view(method, uri, headers) {
        let message = "the browser says (Sec-Fetch-Site) that a page of another site has made this request: open the \
                       daemon's page by its address, or call the API without a browser";
        return Err(foreign_origin(message));
    }
    Ok(())
}

fn foreign_origin(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "foreign_origin", message)
}

fn foreign_host(host: &str) -> ApiError {
    let message = format!(
        "{host:?} is no name of this daemon: ask for http://localhost/ or, over the Unix socket, http://mayfly/; or add \
         the name to allowed_hosts in the daemon's configuration"
    );
    ApiError::new(StatusCode::FORBIDDEN, "foreign_host", message)
}

/// The host that is asked for. Browsers always name one; what does not is none.
fn host(headers: &HeaderMap) -> Result<Option<Host>, ApiError> {
    let mut values = headers.get_all(header::HOST).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) if value.is_empty() => Ok(None),
        (Some(value), None) => parse(value.as_bytes()).map(Some),
        (Some(_), Some(second)) => Err(foreign_host(&String::from_utf8_lossy(second.as_bytes()))),
    }
}

fn parse(host: &[u8]) -> Result<Host, ApiError> {
    let text = String::from_utf8_lossy(host);
    text.parse().map_err(|_| foreign_host(&text))
}

fn is_ours(peer: Peer, names: &[Host], asked: &Host) -> bool {
    if asked.name() == "localhost" || names.iter().any(|name| name.covers(asked)) {
        return true;
    }
    match (peer, asked.address()) {
        (Peer::Local, Some(address)) => address.is_loopback(),
        (Peer::Local, None) => asked.port().is_none() && CLIENTS.contains(&asked.name()),
        // A page that was found by an address was not rebound.
        (Peer::Remote, Some(_)) => true,
        // A page that was rebound has no token. Who adds one for it has to say its names.
        (Peer::Remote, None) => names.is_empty(),
    }
}

/// Whether a page of this origin is the daemon's own: it has found its way here by the same name.
fn is_same_origin(origin: &HeaderValue, host: Option<&Host>, names: &[Host]) -> bool {
    let text = origin.to_str().unwrap_or_default();
    // Default ports are not written (RFC 6454, section 6.2).
    let (page, default) = match text.split_once("://") {
        Some(("http", page)) => (page, 80),
        Some(("https", page)) => (page, 443),
        _ => return false,
    };
    let Ok(page) = page.parse::<Host>() else { return false };
    // A proxy may have put another name into Host. A name of the configuration without a port has
    // the default one here: other ports of a host are other origins.
    host.into_iter().chain(names).any(|own| own.is_same(&page, default))
}

/// Whether a request only shows something that is none of the API: the daemon's page, which holds
/// nothing, as the target of a link; or a server in a guest, whose pages are foreign here, so that
/// the links, pictures and scripts of its own are.
fn is_view(method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
    if method != Method::GET && method != Method::HEAD {
        return false;
    }
    let is = |name: &HeaderName, wanted: &str| {
        let mut values = headers.get_all(name).iter();
        values.next().is_some_and(|value| value == wanted) && values.next().is_none()
    };
    let of_port = || {
        let mut segments = uri.path().split('/').skip(1);
        let mut next = || segments.next().unwrap_or_default();
        (next(), next()) == ("v1", "sessions") && !next().is_empty() && next() == "ports"
    };
    match uri.path() {
        "/" => is(&FETCH_MODE, "navigate") && is(&FETCH_DEST, "document"),
        _ => of_port() && (is(&FETCH_MODE, "navigate") || is(&FETCH_MODE, "no-cors")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(peer: Peer, names: &[&str], target: &str, pairs: &[(&str, &str)]) -> &'static str {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers
                .append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let names: Vec<Host> = names.iter().map(|name| name.parse().unwrap()).collect();
        let (method, uri) = target.split_once(' ').unwrap();
        match check(peer, &names, &method.parse().unwrap(), &uri.parse().unwrap(), &headers) {
            Ok(()) => "",
            Err(error) => error.code(),
        }
    }

    #[test]
    fn over_the_unix_socket_the_host_is_a_name_of_this_daemon() {
        let host =
            |names: &[&str], host: &str| checked(Peer::Local, names, "GET /", &[("host", host)]);
        for ours in [
            "localhost",
            "LOCALHOST:7070",
            "localhost.:7070",
            "127.0.0.1:1",
            "127.1.2.3",
            "[::1]:7070",
            "[::1]",
            "mayfly",
            "docker",
            "api.moby.localhost",
            "",
        ] {
            assert_eq!(host(&[], ours), "", "{ours}");
        }
        for foreign in [
            "evil.example:7070",
            "x",
            "localhost.evil.example",
            "mayfly:7070",
            "docker:80",
            "evil.localhost",
            "192.0.2.1",
            "[fd00::1]",
            "0.0.0.0:7070",
            "[::]",
            "127.0.0.1.evil.example",
            "localhost@evil.example",
            "evil.example@localhost",
            "localhost:x",
            "lo calhost",
            "[::1",
        ] {
            assert_eq!(host(&[], foreign), "foreign_host", "{foreign}");
        }
        assert_eq!(host(&["Build.example"], "build.example:7070"), "");
        assert_eq!(host(&["build.example:7070"], "build.example:7070"), "");
        assert_eq!(host(&["build.example:7070"], "build.example:7071"), "foreign_host");
        assert_eq!(host(&["192.0.2.1"], "192.0.2.1:7070"), "");
        assert_eq!(checked(Peer::Local, &[], "GET /", &[]), "");
        let two = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(checked(Peer::Local, &[], "GET /", &two), "foreign_host");
        let absolute = "GET http://evil.example/v1/sessions";
        assert_eq!(checked(Peer::Local, &[], absolute, &[("host", "localhost")]), "foreign_host");
    }

    #[test]
    fn over_tcp_names_are_checked_once_there_are_some() {
        let host =
            |names: &[&str], host: &str| checked(Peer::Remote, names, "GET /", &[("host", host)]);
        for any in ["build.example:7070", "x", "192.0.2.1:7070"] {
            assert_eq!(host(&[], any), "", "{any}");
        }
        let names = &["build.example"];
        for ours in ["build.example", "192.0.2.1:7070", "[fd00::1]:7070", "localhost:7070"] {
            assert_eq!(host(names, ours), "", "{ours}");
        }
        assert_eq!(host(names, "evil.example:7070"), "foreign_host");
        assert_eq!(host(names, "mayfly"), "foreign_host");
    }

    #[test]
    fn a_page_of_another_origin_is_refused() {
        for peer in [Peer::Local, Peer::Remote] {
            let from = |host: &str, origin: &str| {
                checked(peer, &[], "POST /v1/sessions", &[("host", host), ("origin", origin)])
            };
            for (host, origin) in [
                ("localhost:7070", "http://localhost:7070"),
                ("LocalHost:7070", "http://localhost:7070"),
                ("localhost", "https://localhost"),
                ("localhost:80", "http://localhost"),
                ("127.0.0.1:7070", "http://127.0.0.1:7070"),
                ("[::1]:7070", "http://[::1]:7070"),
            ] {
                assert_eq!(from(host, origin), "", "{host} {origin}");
            }
            for (host, origin) in [
                ("localhost:7070", "http://localhost:3000"),
                ("localhost:7070", "http://localhost"),
                ("localhost:7070", "http://127.0.0.1:7070"),
                ("localhost:7070", "http://evil.example"),
                ("localhost:7070", "null"),
                ("localhost:7070", ""),
                ("localhost:7070", "file://"),
                ("localhost:7070", "chrome-extension://localhost:7070"),
                ("localhost:7070", "localhost:7070"),
            ] {
                assert_eq!(from(host, origin), "foreign_origin", "{host} {origin}");
            }
            let alone = [("origin", "http://localhost")];
            assert_eq!(checked(peer, &[], "GET /", &alone), "foreign_origin");
            let two = [
                ("host", "localhost"),
                ("origin", "http://localhost"),
                ("origin", "http://evil.example"),
            ];
            assert_eq!(checked(peer, &[], "GET /", &two), "foreign_origin");
        }
    }

    #[test]
    fn a_name_of_the_configuration_is_an_origin_behind_a_proxy_that_changes_the_host() {
        let from = |origin: &str| {
            let headers = [("host", "127.0.0.1:7070"), ("origin", origin)];
            checked(Peer::Remote, &["build.example", "ci.example:8443"], "GET /", &headers)
        };
        for ours in ["https://build.example", "http://build.example", "https://ci.example:8443"] {
            assert_eq!(from(ours), "", "{ours}");
        }
        for foreign in ["https://build.example:8443", "https://ci.example", "https://x.example"] {
            assert_eq!(from(foreign), "foreign_origin", "{foreign}");
        }
    }

    #[test]
    fn what_a_browser_says_of_another_site_is_believed() {
        let site = |target: &str, site: &str| {
            checked(Peer::Local, &[], target, &[("host", "localhost"), ("sec-fetch-site", site)])
        };
        for target in ["GET /", "GET /v1/sessions", "GET /v1/sessions/a/ports/80/", "GET /no"] {
            assert_eq!(site(target, "same-origin"), "");
            assert_eq!(site(target, "none"), "");
            for foreign in ["cross-site", "same-site", "Same-Origin", "", "anything"] {
                assert_eq!(site(target, foreign), "foreign_origin", "{target} {foreign}");
            }
        }
    }

    #[test]
    fn links_lead_to_the_page_and_guests_show_themselves() {
        let view = |target: &str, mode: &str, dest: &str| {
            let headers = [
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-mode", mode),
                ("sec-fetch-dest", dest),
            ];
            checked(Peer::Local, &[], target, &headers).is_empty()
        };
        assert!(view("GET /", "navigate", "document"));
        assert!(view("GET /v1/sessions/a/ports/80/", "navigate", "document"));
        assert!(view("GET /v1/sessions/a/ports/80/style.css", "no-cors", "style"));
        for (target, mode, dest) in [
            ("GET /", "navigate", "iframe"),
            ("GET /", "no-cors", "document"),
            ("POST /", "navigate", "document"),
            ("GET /v1/sessions", "navigate", "document"),
            ("GET /v1/sessions/a/logs", "navigate", "document"),
            ("GET /v1/sessions/a/docker/x", "navigate", "document"),
            ("GET /v1/sessions/a/files/content?path=/ports/", "navigate", "document"),
            ("GET /v1/sessions//ports/80/", "navigate", "document"),
            ("POST /v1/sessions/a/ports/80/", "navigate", "document"),
            ("GET /v1/sessions/a/ports/80/", "cors", "empty"),
            ("GET /v1/sessions/a/ports/80/", "websocket", "websocket"),
        ] {
            assert!(!view(target, mode, dest), "{target} {mode} {dest}");
        }
    }
}
