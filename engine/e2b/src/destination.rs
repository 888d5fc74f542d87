//! For which sandbox and port a request is.
//!
//! A client names them by the host, `PORT-ID.anything`, or, where all sandboxes are behind one
//! address, by two headers. Links that are signed for one file name no sandbox there: their
//! signature does.

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Uri, header};

use crate::ENVD_PORT;

pub(crate) const ID: HeaderName = HeaderName::from_static("e2b-sandbox-id");
pub(crate) const PORT: HeaderName = HeaderName::from_static("e2b-sandbox-port");

/// Digits of the id of a sandbox, which is that of its session.
const ID_DIGITS: usize = 16;
/// Longest text in place of an id that an answer repeats, in bytes.
const ID_SHOWN: usize = 64;

/// Paths of the REST API, and of envd, up to a slash or their end.
const PATHS: [&str; 12] = [
    "/sandboxes",
    "/v2/sandboxes",
    "/templates",
    "/v2/templates",
    "/v3/templates",
    "/snapshots",
    "/volumes",
    "/secrets",
    "/files",
    "/health",
    "/process.Process",
    "/filesystem.Filesystem",
];

/// Where a request is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// To a port of a sandbox; to envd, where it is [`ENVD_PORT`].
    Port {
        /// What stands in place of the sandbox's id.
        id: String,
        /// The port.
        port: u16,
        /// Whether the host's name says so, so that browsers see an origin of its own.
        by_name: bool,
    },
    /// To envd of the sandbox for which it is signed.
    Signed,
    /// To the REST API.
    Api,
}

/// Returns whether a request is for E2B's API, or for a sandbox.
pub fn is_ours(head: &Parts) -> bool {
    Destination::of(&head.uri, &head.headers) != Destination::Api || is_path(head.uri.path())
}

fn is_path(path: &str) -> bool {
    PATHS.iter().any(|own| {
        path.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

impl Destination {
    /// Reads it from the head of a request.
    pub fn of(uri: &Uri, headers: &HeaderMap) -> Self {
        // The target of a request can name a host, too, which then counts (RFC 9112, section 3.2.2).
        let host = uri.host().or_else(|| headers.get(header::HOST)?.to_str().ok());
        if let Some((port, id)) = host.and_then(by_name) {
            return Self::Port { id, port, by_name: true };
        }
        if let Some(id) = headers.get(ID) {
            let id = String::from_utf8_lossy(id.as_bytes()).chars().take(ID_SHOWN).collect();
            let port = headers.get(PORT).and_then(|port| port.to_str().ok()?.parse().ok());
            return Self::Port { id, port: port.unwrap_or(ENVD_PORT), by_name: false };
        }
        if uri.path() == "/files" { Self::Signed } else { Self::Api }
    }
}

/// Reads `PORT-ID.anything`, with any port of the host behind it.
fn by_name(host: &str) -> Option<(u16, String)> {
    let (label, _) = host.split_once('.')?;
    let (port, id) = label.split_once('-')?;
    let is_id = id.len() == ID_DIGITS && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
    (is_id && is_port).then_some(())?;
    // Names of hosts have no case.
    Some((port.parse().ok()?, id.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const SANDBOX: &str = "0123456789abcdef";

    fn of(uri: &str, pairs: &[(&'static str, &str)]) -> Destination {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        Destination::of(&uri.parse().unwrap(), &headers)
    }

    fn port(id: &str, port: u16, by_name: bool) -> Destination {
        Destination::Port { id: id.into(), port, by_name }
    }

    #[test]
    fn the_host_names_port_and_sandbox() {
        for (host, wanted) in [
            ("8000-0123456789abcdef.sandbox.example", port(SANDBOX, 8000, true)),
            ("49983-0123456789ABCDEF.localhost:7070", port(SANDBOX, ENVD_PORT, true)),
            ("8000-0123456789abcdef", Destination::Api),
            ("8000-0123456789abcde.example", Destination::Api),
            ("99999-0123456789abcdef.example", Destination::Api),
            ("+80-0123456789abcdef.example", Destination::Api),
            ("-0123456789abcdef.example", Destination::Api),
            ("8000-0123456789abcde%.example", Destination::Api),
            ("7070-build.example", Destination::Api),
            ("localhost:7070", Destination::Api),
        ] {
            assert_eq!(of("/", &[("host", host)]), wanted, "{host}");
        }
        let absolute = format!("http://80-{SANDBOX}.example/x");
        assert_eq!(of(&absolute, &[("host", "other.example")]), port(SANDBOX, 80, true));
    }

    #[test]
    fn headers_name_it_where_the_host_does_not() {
        let named =
            [("host", "127.0.0.1:7070"), ("e2b-sandbox-id", "x"), ("e2b-sandbox-port", "80")];
        assert_eq!(of("/", &named), port("x", 80, false));
        assert_eq!(of("/health", &named[..2]), port("x", ENVD_PORT, false));
        let host = format!("80-{SANDBOX}.example");
        let both = [("host", &*host), ("e2b-sandbox-id", "x"), ("e2b-sandbox-port", "81")];
        assert_eq!(of("/", &both), port(SANDBOX, 80, true));
    }

    #[test]
    fn paths_of_e2b_are_taken_and_those_of_the_daemon_are_not() {
        let taken = |path: &str| is_path(path);
        for ours in ["/sandboxes", "/v2/sandboxes/x/connect", "/files", "/process.Process/Start"] {
            assert!(taken(ours), "{ours}");
        }
        for other in ["/", "/v1/sessions", "/healthz", "/metrics", "/filesystem", "/sandboxesx"] {
            assert!(!taken(other), "{other}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_host_says_an_id_is_one(host in "\\PC{0,80}") {
            if let Some((_, id)) = by_name(&host) {
                prop_assert!(id.len() == ID_DIGITS);
                prop_assert!(id.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase()));
            }
        }
    }
}
