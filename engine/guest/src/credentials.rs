//! Credentials in the headers of a request, which must not pass into a guest.
//!
//! A client gives them to the daemon, or to what stands before it. Clients send them to every
//! server they are configured for, such as docker with `HttpHeaders` in its `config.json`. Root of a
//! guest reads every request that reaches it, so it would hold them, too.

use hyper::header::{self, HeaderMap, HeaderName};

/// Headers that prove who asks: of HTTP, of API keys and tokens, and what login proxies add.
///
/// `X-Registry-Auth` and `X-Registry-Config` are not among them: docker addresses them to the
/// daemon that pulls.
pub const NAMES: [HeaderName; 28] = [
    // RFC 9110, section 11; RFC 6265, section 5.4; RFC 2965, section 3.3.5.
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    HeaderName::from_static("cookie2"),
    // Names in common use for keys and tokens.
    HeaderName::from_static("x-authorization"),
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("apikey"),
    HeaderName::from_static("x-auth-token"),
    HeaderName::from_static("x-access-token"),
    HeaderName::from_static("x-id-token"),
    HeaderName::from_static("private-token"),
    HeaderName::from_static("x-vault-token"),
    HeaderName::from_static("x-amz-security-token"),
    // Added by login proxies: oauth2-proxy, Cloudflare Access, Google IAP, AWS load balancers,
    // Azure App Service, Pomerium, Teleport, authentik.
    HeaderName::from_static("x-forwarded-access-token"),
    HeaderName::from_static("x-auth-request-access-token"),
    HeaderName::from_static("cf-access-jwt-assertion"),
    HeaderName::from_static("cf-access-client-secret"),
    HeaderName::from_static("x-goog-iap-jwt-assertion"),
    HeaderName::from_static("x-amzn-oidc-accesstoken"),
    HeaderName::from_static("x-amzn-oidc-data"),
    HeaderName::from_static("x-ms-token-aad-access-token"),
    HeaderName::from_static("x-ms-token-aad-id-token"),
    HeaderName::from_static("x-ms-token-aad-refresh-token"),
    HeaderName::from_static("x-pomerium-jwt-assertion"),
    HeaderName::from_static("teleport-jwt-assertion"),
    HeaderName::from_static("x-authentik-jwt"),
    // The daemon's own: which tenant asks over the Unix socket.
    HeaderName::from_static("mayfly-tenant"),
];

/// Removes all of [`NAMES`].
pub fn strip(headers: &mut HeaderMap) {
    for name in &NAMES {
        headers.remove(name);
    }
}
