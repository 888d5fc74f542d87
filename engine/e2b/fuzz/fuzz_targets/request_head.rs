//! Heads of requests: names of hosts, headers and queries of signed links; and a guest's passwd(5).
#![no_main]

use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use libfuzzer_sys::fuzz_target;
use mayfly_e2b::destination::Destination;
use mayfly_e2b::envd::passwd;
use mayfly_e2b::envd::signature::Signed;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(3, |byte| *byte == 0);
    let mut next = || parts.next().unwrap_or_default();
    let (uri, host, rest) = (next(), next(), next());
    let mut headers = HeaderMap::new();
    if let Ok(host) = HeaderValue::from_bytes(host) {
        headers.insert(header::HOST, host);
    }
    if let Ok(id) = HeaderValue::from_bytes(rest) {
        headers.insert("e2b-sandbox-id", id);
    }
    if let Ok(uri) = Uri::try_from(uri) {
        match Destination::of(&uri, &headers) {
            Destination::Port { id, by_name: true, .. } => {
                assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()));
            }
            Destination::Port { id, .. } => assert!(id.chars().count() <= 64),
            Destination::Signed | Destination::Api => {}
        }
        if let Some(signed) = Signed::of(&Method::GET, &uri) {
            // Nobody has the token.
            assert!(!signed.is_by("0123456789abcdef0123456789abcdef"));
            let _ = signed.is_over();
        }
    }
    if let (Ok(user), home) = (std::str::from_utf8(host), "/home/user") {
        if let Some(home) = passwd::home_of(rest, user) {
            assert!(home.len() <= rest.len());
        }
        assert!(passwd::absolute(user, home).starts_with('/'));
    }
});
