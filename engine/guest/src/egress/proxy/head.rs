//! Head of a proxy request: the host and port that a client asks for.

use super::super::decision::{Refusal, Target};
use super::super::host::{Host, shorten};
use hyper::header::{self, HeaderMap};
use hyper::{Method, Request, StatusCode, Uri};

const HTTP: u16 = 80;

/// A request to a proxy.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// CONNECT.
    Tunnel(Target),
    /// A plain HTTP request in absolute form.
    Http(Target),
}

/// Finds out where a request is to go.
///
/// # Errors
/// A [`Refusal`] with status 400 when that is not clear.
pub(crate) fn wanted<B>(request: &Request<B>) -> Result<Wanted, Refusal> {
    let uri = request.uri();
    if request.method() == Method::CONNECT {
        let authority = uri.authority().ok_or_else(|| bad("CONNECT needs HOST:PORT"))?;
        let (host, port) = parse(authority.as_str())?;
        let port = port
            .ok_or_else(|| bad(format!("CONNECT {} needs a port", shorten(authority.as_str()))))?;
        return Ok(Wanted::Tunnel(Target { host, port }));
    }
    match uri.scheme_str() {
        Some("http") => {}
        Some(scheme) => {
            return Err(bad(format!(
                "this proxy takes http:// and CONNECT, not {}://",
                shorten(scheme)
            )));
        }
        None => return Err(bad("this is an HTTP proxy: the request must name a whole URL")),
    }
    let target = target(uri)?;
    agrees(request.headers(), &target)?;
    Ok(Wanted::Http(target))
}

fn target(uri: &Uri) -> Result<Target, Refusal> {
    let authority = uri.authority().ok_or_else(|| bad("the URL names no host"))?;
    let (host, port) = parse(authority.as_str())?;
    Ok(Target { host, port: port.unwrap_or(HTTP) })
}

/// `user@host` is no host, so it is refused here.
fn parse(authority: &str) -> Result<(Host, Option<u16>), Refusal> {
    Host::parse_with_port(authority).map_err(|error| bad(error.to_string()))
}

/// A server may look at the Host header alone, so it must name what was allowed.
fn agrees(headers: &HeaderMap, target: &Target) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let Some(host) = hosts.next() else { return Ok(()) };
    let same = |(host, port): (Host, Option<u16>)| {
        host == target.host && port.unwrap_or(HTTP) == target.port
    };
    let named = host.to_str().ok().and_then(|host| Host::parse_with_port(host).ok());
    if hosts.next().is_some() || !named.is_some_and(same) {
        return Err(bad(format!(
            "the Host header does not name {target}, to which the request goes"
        )));
    }
    Ok(())
}

fn bad(message: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, message)
}

/// Checks a request's method, URL and Host header, for fuzzing: whether a request is understood at
/// all, never which.
pub fn check_head(method: &[u8], uri: &[u8], host: &[u8]) -> bool {
    let (Ok(method), Ok(uri)) = (Method::from_bytes(method), Uri::try_from(uri)) else {
        return false;
    };
    let request = Request::builder().method(method).uri(uri).header(header::HOST, host).body(());
    request.is_ok_and(|request| wanted(&request).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ask(method: &str, uri: &str, hosts: &[&str]) -> Result<Wanted, Refusal> {
        let mut request = Request::builder().method(method).uri(uri);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        wanted(&request.body(()).unwrap())
    }

    fn to(host: &str, port: u16) -> Target {
        Target { host: Host::parse(host).unwrap(), port }
    }

    #[test]
    fn the_two_forms_of_a_proxy_request_are_understood() {
        assert_eq!(
            ask("CONNECT", "A.example:443", &["whatever"]).unwrap(),
            Wanted::Tunnel(to("a.example", 443))
        );
        assert_eq!(ask("CONNECT", "[::1]:443", &[]).unwrap(), Wanted::Tunnel(to("::1", 443)));
        assert_eq!(
            ask("GET", "http://a.example/x", &["A.example"]).unwrap(),
            Wanted::Http(to("a.example", 80))
        );
        assert_eq!(
            ask("GET", "http://a.example:80/x", &["a.example"]).unwrap(),
            Wanted::Http(to("a.example", 80))
        );
        assert_eq!(ask("PUT", "http://a:81", &["a:81"]).unwrap(), Wanted::Http(to("a", 81)));
        assert_eq!(ask("GET", "http://a/", &[]).unwrap(), Wanted::Http(to("a", 80)));
    }

    #[test]
    fn what_is_not_clear_is_refused() {
        for (method, uri, hosts) in [
            ("GET", "/", &["a"][..]),
            ("GET", "https://a/", &["a"]),
            ("GET", "ftp://a/", &["a"]),
            ("GET", "http://a/", &["b"]),
            ("GET", "http://a/", &["a:81"]),
            ("GET", "http://a:81/", &["a"]),
            ("GET", "http://a/", &["a", "b"]),
            ("GET", "http://a/", &[""]),
            ("GET", "http://u@a/", &["a"]),
            ("GET", "http://u:p@a/", &["a"]),
            ("GET", "http://127.1/", &["127.1"]),
            ("CONNECT", "a.example:0", &[]),
            ("CONNECT", "u@a:443", &[]),
            ("OPTIONS", "*", &["a"]),
        ] {
            let refusal = ask(method, uri, hosts).unwrap_err();
            assert_eq!(refusal.status, StatusCode::BAD_REQUEST, "{method} {uri}");
            assert!(!refusal.message.contains('\n'), "{}", refusal.message);
        }
    }

    proptest! {
        #[test]
        fn no_head_makes_it_panic(method in "[A-Z]{1,8}", uri in "\\PC{0,40}", host in proptest::collection::vec(any::<u8>(), 0..40)) {
            check_head(method.as_bytes(), uri.as_bytes(), &host);
            check_head(b"CONNECT", uri.as_bytes(), &host);
            check_head(b"GET", format!("http://{uri}").as_bytes(), &host);
        }
    }
}
