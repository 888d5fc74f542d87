//! Answers of servers in a guest, made harmless for the origin of the daemon.
//!
//! A browser takes what the daemon passes on for the daemon's own. So a guest's page gets an origin
//! of its own, and headers that act on more than the answer they come with are taken off: on the
//! origin and its other answers, on what the browser keeps for it, or on a proxy before the daemon.

use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Gives a page an origin of its own, whose scripts cannot use the API in the name of who looks at
/// it (CSP Level 3, section 6.3.2).
const SANDBOX: HeaderValue =
    HeaderValue::from_static("sandbox allow-scripts allow-forms allow-popups allow-modals");

/// Answers of many parts, of which each has headers of its own: browsers take cookies from them.
const PARTS: &str = "multipart/x-mixed-replace";
/// What no browser shows.
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Headers that act on more than their own answer.
const NAMES: [&str; 28] = [
    // Cookies, and everything else that a browser has stored.
    "set-cookie",
    "set-cookie2",
    "clear-site-data",
    // Which part of the origin a service worker may control.
    "service-worker-allowed",
    // Where the origin is served from, how long, with which keys.
    "alt-svc",
    "strict-transport-security",
    "public-key-pins",
    "public-key-pins-report-only",
    "expect-ct",
    // Who is told of the origin's errors and of its policies' violations.
    "nel",
    "report-to",
    "reporting-endpoints",
    // What the browser sends with later requests, and under which login.
    "accept-ch",
    "critical-ch",
    "accept-ch-lifetime",
    "use-as-dictionary",
    "set-login",
    "sec-session-registration",
    "secure-session-registration",
    "secure-session-challenge",
    // With which others the origin shares a process, and which trials it takes part in.
    "origin-agent-cluster",
    "origin-trial",
    // What the browser loads in advance for the origin.
    "speculation-rules",
    // Asks for credentials, which never reach the guest that asks (RFC 9110, section 11.6.1).
    "www-authenticate",
    "proxy-authenticate",
    "authentication-info",
    "proxy-authentication-info",
    // Moves the tab elsewhere, whatever the answer is.
    "refresh",
];

/// Orders to a proxy before the daemon: nginx, Apache, lighttpd, Perlbal, LiteSpeed.
const ORDERS: [&str; 10] = [
    "x-accel-redirect",
    "x-accel-expires",
    "x-accel-charset",
    "x-sendfile",
    "x-litespeed-location",
    "x-litespeed-purge",
    "x-litespeed-cache-control",
    "x-lighttpd-send-file",
    "x-reproxy-url",
    "surrogate-control",
];

/// Makes the head of an answer harmless that a browser could show.
pub fn tame(headers: &mut HeaderMap) {
    strip(headers);
    headers.append(header::CONTENT_SECURITY_POLICY, SANDBOX);
    hide_parts(headers);
}

/// Makes bytes of parts, which have heads of their own that nothing is taken off.
fn hide_parts(headers: &mut HeaderMap) {
    if headers.get_all(header::CONTENT_TYPE).iter().any(is_parts) {
        headers.insert(header::CONTENT_TYPE, BYTES);
    }
}

/// Makes the head of an answer harmless that a browser shows under a name of its own, and so with
/// an origin of its own: taken off is what acts on other names, or on a proxy before the daemon.
pub fn tame_own(headers: &mut HeaderMap) {
    for name in ORDERS {
        headers.remove(HeaderName::from_static(name));
    }
    // A cookie with a domain is for all names below it (RFC 6265, section 5.2.3): those of other
    // sessions, and the daemon's own.
    let cookies: Vec<_> = headers.get_all(header::SET_COOKIE).iter().cloned().collect();
    headers.remove(header::SET_COOKIE);
    for cookie in cookies.into_iter().filter(|cookie| !has_domain(cookie)) {
        headers.append(header::SET_COOKIE, cookie);
    }
    hide_parts(headers);
}

fn has_domain(cookie: &HeaderValue) -> bool {
    let mut attributes = cookie.as_bytes().split(|byte| *byte == b';').skip(1);
    attributes.any(|attribute| {
        let name = attribute.split(|byte| *byte == b'=').next().unwrap_or_default();
        name.trim_ascii().eq_ignore_ascii_case(b"domain")
    })
}

/// Takes off all that acts on more than the answer itself.
pub fn strip(headers: &mut HeaderMap) {
    for name in NAMES.iter().chain(&ORDERS) {
        headers.remove(HeaderName::from_static(name));
    }
}

fn is_parts(value: &HeaderValue) -> bool {
    // Anywhere: browsers differ in which type counts when a value lists several.
    let value = value.as_bytes().to_ascii_lowercase();
    value.windows(PARTS.len()).any(|window| window == PARTS.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tamed(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        tame(&mut headers);
        headers
    }

    #[test]
    fn a_policy_of_the_guest_is_kept_beside_ours() {
        let headers = tamed(&[("content-security-policy", "default-src 'self'")]);
        let policies: Vec<_> = headers.get_all(header::CONTENT_SECURITY_POLICY).iter().collect();
        assert_eq!(policies, ["default-src 'self'", SANDBOX.to_str().unwrap()]);
    }

    #[test]
    fn nothing_is_left_of_headers_that_come_several_times() {
        let headers = tamed(&[("set-cookie", "a=1"), ("set-cookie", "b=2"), ("etag", "x")]);
        assert_eq!(headers.get(header::SET_COOKIE), None);
        assert_eq!(headers[header::ETAG], "x");
    }

    #[test]
    fn under_a_name_of_its_own_a_server_acts_on_no_other() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("set-cookie", "a=1; Path=/; HttpOnly"),
            ("set-cookie", "b=2; Domain=example.com"),
            ("set-cookie", "c=3;DOMAIN = .example.com; Path=/"),
            ("set-cookie", "domain=4"),
            ("x-accel-redirect", "/secret"),
            ("content-security-policy", "default-src 'self'"),
        ] {
            let value = HeaderValue::from_static(value);
            headers.append(HeaderName::from_static(name), value);
        }
        tame_own(&mut headers);
        let cookies: Vec<_> = headers.get_all(header::SET_COOKIE).iter().collect();
        assert_eq!(cookies, ["a=1; Path=/; HttpOnly", "domain=4"]);
        assert_eq!(headers.get("x-accel-redirect"), None);
        assert_eq!(headers[header::CONTENT_SECURITY_POLICY], "default-src 'self'");
    }

    #[test]
    fn answers_of_parts_are_bytes() {
        for parts in ["multipart/x-mixed-replace; boundary=x", " Multipart/X-Mixed-Replace"] {
            assert_eq!(tamed(&[("content-type", parts)])[header::CONTENT_TYPE], BYTES, "{parts}");
        }
        let two = tamed(&[("content-type", "text/html"), ("content-type", PARTS)]);
        assert_eq!(two.get_all(header::CONTENT_TYPE).iter().collect::<Vec<_>>(), [&BYTES]);
        let form = "multipart/form-data; boundary=x";
        assert_eq!(tamed(&[("content-type", form)])[header::CONTENT_TYPE], form);
    }
}
