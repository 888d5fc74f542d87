//! Redirects of servers in a guest, kept below the path under which clients see the server.
//!
//! A server knows nothing of that path: its `/login` would be the daemon's. And a client that
//! follows a redirect to the same host sends its token along (RFC 9110, section 15.4, leaves that to
//! clients), so that a guest could lead it to any route of the API.

use crate::service::Host;

/// Names that lead to this daemon, or by which the server was asked.
const OWN: [&str; 4] = ["localhost", "mayfly", "docker", "api.moby.localhost"];

/// Where a server is seen.
#[derive(Debug)]
pub struct Place {
    /// Path of its root, without a slash at the end.
    pub prefix: String,
    /// Path that it was asked for, from its root on.
    pub path: String,
    /// Host that the client has asked for.
    pub host: Option<Host>,
}

impl Place {
    /// What a client is to be told in place of the server's `location`; the same for what leads to
    /// another host.
    ///
    /// References are resolved as browsers do it (WHATWG URL, section 4.4), which also take `\` for
    /// `/` and `%2e` for a dot, and see no tabs.
    pub fn tell(&self, location: &str) -> String {
        let text = location.replace('\t', "");
        let text = text.trim();
        let end = text.find(['?', '#']).unwrap_or(text.len());
        let (reference, rest) = text.split_at(end);
        let reference = reference.replace('\\', "/");
        let (scheme, mut path) = match scheme(&reference) {
            Some((scheme, path)) => (Some(scheme), path),
            None => (None, reference.as_str()),
        };
        let web = scheme.is_none_or(|scheme| {
            scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")
        });
        if !web {
            return location.to_owned();
        }
        if path.starts_with("//") {
            let named = path.trim_start_matches('/');
            let (authority, root) = named.split_at(named.find('/').unwrap_or(named.len()));
            if !self.is_own(authority) {
                return location.to_owned();
            }
            path = if root.is_empty() { "/" } else { root };
        }
        let resolved = if path.is_empty() { self.path.clone() } else { resolve(&self.path, path) };
        let below = resolved.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with('/'));
        let prefix = if below { "" } else { &self.prefix };
        format!("{prefix}{resolved}{rest}")
    }

    fn is_own(&self, authority: &str) -> bool {
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let Ok(host) = host.parse::<Host>() else { return false };
        OWN.contains(&host.name())
            || host.address().is_some_and(|address| address.is_loopback())
            || self.host.as_ref().is_some_and(|asked| asked.name() == host.name())
    }
}

/// The scheme of a reference, and what is behind its colon (RFC 3986, section 3.1).
fn scheme(reference: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = reference.split_once(':')?;
    let valid = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    (scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(valid))
        .then_some((scheme, rest))
}

/// A path from the root on, without `.` and `..`; nothing is above the root.
fn resolve(base: &str, path: &str) -> String {
    let folder = if path.starts_with('/') { "" } else { &base[..base.rfind('/').unwrap_or(0)] };
    let mut segments: Vec<&str> = Vec::new();
    let whole = format!("{folder}/{}", path.strip_prefix('/').unwrap_or(path));
    let mut parts = whole.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let dots = part.to_ascii_lowercase().replace("%2e", ".");
        match dots.as_str() {
            "." | ".." => {
                if dots == ".." {
                    segments.pop();
                }
                if parts.peek().is_none() {
                    segments.push("");
                }
            }
            _ => segments.push(part),
        }
    }
    format!("/{}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(location: &str) -> String {
        let place = Place {
            prefix: "/v1/sessions/a/ports/80".into(),
            path: "/app/page".into(),
            host: Some("build.example:7070".parse().unwrap()),
        };
        place.tell(location)
    }

    #[test]
    fn redirects_stay_below_the_server() {
        for (location, path) in [
            ("/", "/"),
            ("/login?next=/v1#top", "/login?next=/v1#top"),
            ("next", "/app/next"),
            ("./", "/app/"),
            ("..", "/"),
            ("?page=2", "/app/page?page=2"),
            ("", "/app/page"),
            ("/v1/sessions", "/v1/sessions"),
            ("/v1/sessions/a/ports/8080/", "/v1/sessions/a/ports/8080/"),
            ("../../../../../v1/sessions", "/v1/sessions"),
            ("/v1/sessions/a/ports/80/../../../b", "/v1/sessions/b"),
            ("/v1/sessions/a/ports/80/%2E%2e/%2e./.%2E/b", "/v1/sessions/b"),
            ("\\v1\\sessions", "/v1/sessions"),
            ("/v1/sessions/a/ports/80/.\t./.\t./.\t./b", "/v1/sessions/b"),
            ("http:/v1/sessions", "/v1/sessions"),
            ("http:x", "/app/x"),
            ("http://localhost:80/x", "/x"),
            ("https://LOCALHOST.:80", "/"),
            ("//127.0.0.1/v1/sessions", "/v1/sessions"),
            ("/\\build.example:7070/v1/sessions", "/v1/sessions"),
            ("http:///mayfly/v1/sessions", "/v1/sessions"),
            ("http://u:p@[::1]:7070/v1/sessions?x", "/v1/sessions?x"),
        ] {
            assert_eq!(told(location), format!("/v1/sessions/a/ports/80{path}"), "{location}");
        }
    }

    #[test]
    fn what_is_right_already_and_other_hosts_stay_as_they_are() {
        for location in [
            "/v1/sessions/a/ports/80/login",
            "https://example.org/x",
            "//example.org/x",
            "http://localhost.example.org/x",
            "mailto:a@example.org",
        ] {
            assert_eq!(told(location), location);
        }
    }
}
