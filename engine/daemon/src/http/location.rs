//! Redirects of servers in a guest, kept below the path under which clients see the server.
//!
//! A server knows nothing of that path: its `/login` would be the daemon's. And a client that
//! follows a redirect to the same host sends its token along (RFC 9110, section 15.4, leaves that to
//! clients), so that a guest could lead it to any route of the API.

use std::net::IpAddr;

use url::{Position, Url};

use crate::service::Host;

/// Names that lead to this daemon, or by which the server was asked.
const OWN: [&str; 3] = ["localhost", "mayfly", "docker"];

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
    /// What a client is to be told in place of the server's `location`, in the one spelling that
    /// leaves nothing to interpret; `None` where browsers could make nothing of it.
    ///
    /// References are read as browsers do it (WHATWG URL, section 4.4), which take `\` for `/`,
    /// `%2e` for a dot and `0x7f.1` for an address, and see no tabs.
    pub fn tell(&self, location: &str) -> Option<String> {
        // A proxy before the daemon may have TLS: `https:x` is then a path, and `http:x` a host.
        let [plain, secure] = ["http", "https"].map(|scheme| {
            let page = Url::parse(&format!("{scheme}://localhost{}", self.path)).ok()?;
            page.join(location).ok()
        });
        let (plain, secure) = (plain?, secure?);
        if let Some(own) = [&plain, &secure].into_iter().find(|url| self.is_own(url)) {
            return Some(self.below(own));
        }
        Some(if plain.scheme() == secure.scheme() {
            plain.into()
        } else {
            format!("//{}", &plain[Position::BeforeUsername..])
        })
    }

    /// Its path and all behind it, below the server's.
    fn below(&self, url: &Url) -> String {
        let path = url.path();
        let below = path.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with('/'));
        let prefix = if below { "" } else { &self.prefix };
        format!("{prefix}{}", &url[Position::BeforePath..])
    }

    fn is_own(&self, url: &Url) -> bool {
        if !matches!(url.scheme(), "http" | "https") {
            return false;
        }
        let asked = self.host.as_ref().and_then(|host| url::Host::parse(host.name()).ok());
        match url.host() {
            Some(url::Host::Domain(name)) => {
                let name = name.strip_suffix('.').unwrap_or(name);
                OWN.contains(&name)
                    || name.ends_with(".localhost")
                    || asked == Some(url::Host::Domain(name.to_owned()))
            }
            Some(url::Host::Ipv4(address)) => {
                leads_here(address.into()) || asked == Some(url::Host::Ipv4(address))
            }
            Some(url::Host::Ipv6(address)) => {
                leads_here(address.into()) || asked == Some(url::Host::Ipv6(address))
            }
            None => false,
        }
    }
}

/// Whether whoever connects to an address reaches its own host: Linux takes the unspecified one for
/// that, too.
fn leads_here(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_loopback() || address.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(location: &str) -> Option<String> {
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
            let led = format!("/v1/sessions/a/ports/80{path}");
            assert_eq!(told(location), Some(led), "{location}");
        }
    }

    #[test]
    fn odd_spellings_of_this_host_are_seen_through() {
        for location in [
            "http://127.1:8000/x",
            "http://127.0.0.1./x",
            "http://127.8.9.10/x",
            "http://0x7f000001/x",
            "http://0x7f.1/x",
            "http://017700000001/x",
            "http://2130706433/x",
            "http://0/x",
            "http://0.0.0.0:8000/x",
            "http://[::]/x",
            "http://[0:0:0:0:0:0:0:1]/x",
            "http://[::ffff:127.0.0.1]:8000/x",
            "http://[::ffff:7f00:1]/x",
            "http://LOCALHOST.:8000/x",
            "http://app.localhost/x",
            "http://%6cocal%68ost/x",
            "http://127%2e0%2e0%2e1/x",
            "//localhost:8000/x",
            "//localhost:8000\\x",
            "\\\\localhost:8000\\x",
            "/\\/\\/localhost/x",
            "http:\\\\localhost\\x",
            "http:/\t/local\thost/x",
            "ht\ttp://localhost/x",
            "\thttp://localhost/x",
            "/\t/localhost/x",
            "HTTP://LocalHost/x",
            "http:////localhost/x",
            "http://example.org@localhost/x",
            "http://user:pass@BUILD.example./x",
            "https:/x",
        ] {
            let led = "/v1/sessions/a/ports/80/x".to_owned();
            assert_eq!(told(location), Some(led), "{location:?}");
        }
        // Of which it is a path where the page has that scheme.
        assert_eq!(told("https:x"), Some("/v1/sessions/a/ports/80/app/x".into()));
        let place = Place {
            prefix: "/p".into(),
            path: "/".into(),
            host: Some("[fd00::1]:7070".parse().unwrap()),
        };
        assert_eq!(place.tell("http://[FD00:0::1]/x"), Some("/p/x".into()));
    }

    #[test]
    fn what_has_no_meaning_is_not_passed_on() {
        for location in [
            "http://",
            "http://[::1/x",
            "http://local host/x",
            "http://127.0.0.256/x",
            "http://1.2.3.4.5/x",
            "http://localhost:99999/x",
            "http://local%00host/x",
            "http://a^b/x",
        ] {
            assert_eq!(told(location), None, "{location}");
        }
    }

    #[test]
    fn other_hosts_are_told_in_one_spelling() {
        for (location, plain) in [
            ("http://example.org\\@localhost/", "http://example.org/@localhost/"),
            ("\\\\example.org\\x", "//example.org/x"),
            ("http:\\\\EXAMPLE.org", "http://example.org/"),
            ("//u@example.org:8000/a/../b?c#d", "//u@example.org:8000/b?c#d"),
            ("http://0300.0.2.1/", "http://192.0.2.1/"),
        ] {
            assert_eq!(told(location).as_deref(), Some(plain), "{location}");
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
            assert_eq!(told(location).as_deref(), Some(location));
        }
    }
}
