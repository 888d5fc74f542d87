//! Authentication: the owner of the Unix socket, or the holder of a bearer token.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use mayfly_api::{TENANT_HEADER, TenantName};

use super::connections::Place;
use super::error::ApiError;
use crate::observe::tenant_lines;
use crate::service::{Service, ServiceConfig};

/// Origin of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The Unix socket, which only its owner can open: no token is needed.
    Local,
    /// TCP: every request needs a token.
    Remote,
}

/// Marks a request over the Unix socket that speaks for no tenant: the operator's, who may see what
/// is everybody's.
#[derive(Debug, Clone, Copy)]
pub struct Operator;

/// Finds out the tenant of a request and puts it into its extensions, or answers 401; a middleware.
pub async fn authenticate(
    State(service): State<Service>,
    mut request: Request,
    next: Next,
) -> Response {
    match identify(&service, &mut request) {
        Ok(tenant) => tenant_lines::on_behalf_of(tenant, next.run(request)).await,
        Err(error) => error.into_response(),
    }
}

/// Finds out the tenant of a request and puts it into its extensions. The connection counts as the
/// tenant's from then on.
///
/// The headers that could have proved it are taken off: no handler needs them.
///
/// # Errors
/// [`ApiError`] `unauthorized`, `bad_request` for what is no name of a tenant,
/// `too_many_connections`.
pub fn identify(service: &Service, request: &mut Request) -> Result<TenantName, ApiError> {
    // Without a listener's word a request counts as remote: the safe side.
    let peer = request.extensions().get::<Peer>().copied().unwrap_or(Peer::Remote);
    let tenant = match peer {
        Peer::Local => local_tenant(request.headers()),
        Peer::Remote => remote_tenant(service.config(), request.headers()),
    };
    let tenant = tenant?;
    if let Some(place) = request.extensions().get::<Arc<Place>>() {
        place.belongs_to(&tenant, || service.connections_of(&tenant))?;
    }
    if peer == Peer::Local && !request.headers().contains_key(TENANT_HEADER) {
        request.extensions_mut().insert(Operator);
    }
    request.headers_mut().remove(TENANT_HEADER);
    request.headers_mut().remove(header::AUTHORIZATION);
    request.extensions_mut().insert(tenant.clone());
    Ok(tenant)
}

fn local_tenant(headers: &HeaderMap) -> Result<TenantName, ApiError> {
    let Some(name) = headers.get(TENANT_HEADER) else {
        return Ok(TenantName::local());
    };
    let name = name
        .to_str()
        .map_err(|_| ApiError::bad_request(format!("{TENANT_HEADER}: not plain ASCII")))?;
    TenantName::new(name)
        .map_err(|error| ApiError::bad_request(format!("{TENANT_HEADER}: {error}")))
}

fn remote_tenant(config: &ServiceConfig, headers: &HeaderMap) -> Result<TenantName, ApiError> {
    let refuse = |why: &str| ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", why);
    let token = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.to_str().ok()?));
    let token = token.ok_or_else(|| refuse("send the header Authorization: Bearer TOKEN"))?;
    config.tenant_of_token(token).cloned().ok_or_else(|| refuse("this token is not known here"))
}

/// The token of an Authorization header. The scheme's name has no case (RFC 9110, 11.1).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn config() -> ServiceConfig {
        let tenant = |name: &str, token: &str| {
            let hash = blake3::hash(token.as_bytes());
            format!("[[tenants]]\nname = \"{name}\"\ntoken_blake3 = \"{hash}\"\n")
        };
        ServiceConfig::parse(&(tenant("red", "red-token") + &tenant("blue", "blue-token"))).unwrap()
    }

    fn asked(authorization: &str) -> Result<TenantName, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(authorization).unwrap());
        remote_tenant(&config(), &headers)
    }

    #[test]
    fn each_token_leads_to_its_tenant_and_no_other_does() {
        assert_eq!(asked("Bearer red-token").unwrap().as_str(), "red");
        assert_eq!(asked("bearer  blue-token").unwrap().as_str(), "blue");
        for wrong in [
            "Bearer red-toke",
            "Bearer red-token2",
            "Bearer RED-TOKEN",
            "Bearer ",
            "Bearer",
            "Basic red-token",
        ] {
            assert_eq!(asked(wrong).unwrap_err().code(), "unauthorized", "{wrong}");
        }
        assert_eq!(remote_tenant(&config(), &HeaderMap::new()).unwrap_err().code(), "unauthorized");
    }

    #[test]
    fn the_unix_socket_speaks_for_the_tenant_it_names() {
        let mut headers = HeaderMap::new();
        assert_eq!(local_tenant(&headers).unwrap(), TenantName::local());
        headers.insert(TENANT_HEADER, HeaderValue::from_static("red"));
        assert_eq!(local_tenant(&headers).unwrap().as_str(), "red");
        headers.insert(TENANT_HEADER, HeaderValue::from_static("not a name"));
        assert_eq!(local_tenant(&headers).unwrap_err().code(), "bad_request");
    }
}
