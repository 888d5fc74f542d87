//! Extractors: parts of a request that handlers take, with messages of our own when they are
//! missing.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Query, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use mayfly_api::{
    Blob, CreateSession, EgressPolicy, Exec, Extend, SignalBody, TenantName, Terminal,
};
use mayfly_guest::channel::{ByteString, FilePath, Xattr, XattrSet};
use percent_encoding::percent_decode;
use serde::de::DeserializeOwned;

use super::auth::Operator;
use super::body;
use super::connections::Place;
use super::error::ApiError;
use crate::service::held::Full;
use crate::service::shares::{Account, Share};
use crate::service::{ActivityGuard, LiveSession, Service};

/// A JSON body, and what counts it as it was read, for its tenant: to be kept as long as anything of
/// it is.
#[derive(Debug)]
pub struct Body<T>(pub T, pub Share);

impl<T: Parsed> FromRequest<Service> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, service: &Service) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            let message = "Expected request with `Content-Type: application/json`";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", message));
        }
        let account = account_of(&request, service);
        let (bytes, read) = body::read(request.into_body(), &account).await?.into_parts();
        let Json(value) = Json::<T>::from_bytes(&bytes).map_err(|error| bad_json(&error))?;
        drop(bytes);
        let held = instead(read, &account, value.held_bytes())?;
        Ok(Self(value, held))
    }
}

/// What the body of a request is read as.
pub trait Parsed: DeserializeOwned {
    /// Returns how many bytes of memory a request holds for it while it is handled, besides its
    /// own size. Who handles it may have to wait for long.
    fn held_bytes(&self) -> usize {
        0
    }
}

impl Parsed for Extend {}
impl Parsed for SignalBody {}
impl Parsed for Terminal {}

/// What the allocator keeps of each text at least, and beside a longer one.
const PER_TEXT: usize = 32;

/// Bytes of an entry of a map, whose nodes may be half empty.
const PER_ENTRY: usize = 2 * (size_of::<String>() + size_of::<String>() + PER_TEXT);

impl Parsed for Exec {
    fn held_bytes(&self) -> usize {
        let strings = self.argv.iter().chain(&self.cwd).map(|bytes| bytes.0.len());
        let texts = strings
            .chain([&self.user, &self.tag].into_iter().flatten().map(String::len))
            .map(|bytes| (bytes, PER_TEXT));
        let variables =
            self.env.iter().map(|(name, value)| (name.len() + value.0.len(), PER_ENTRY));
        // Once here, and once in the frame that waits to be sent to the guest.
        let sent: usize = texts.chain(variables).map(|(bytes, beside)| 2 * bytes + beside).sum();
        let stdin = self.stdin.as_ref().map_or(0, |stdin| stdin.0.capacity());
        sent + self.argv.capacity() * size_of::<Blob>() + stdin
    }
}

impl Parsed for CreateSession {
    fn held_bytes(&self) -> usize {
        let pairs = self.env.iter().chain(&self.metadata);
        let pairs: usize = pairs.map(|(name, value)| name.len() + value.len() + PER_ENTRY).sum();
        let texts = [&self.golden].into_iter().chain(&self.user);
        let texts: usize = texts.map(|text| text.len() + PER_TEXT).sum();
        pairs + texts + self.egress.held_bytes()
    }
}

impl Parsed for EgressPolicy {
    fn held_bytes(&self) -> usize {
        let hosts = self.allow.iter().chain(&self.deny).map(|host| host.len() + PER_TEXT);
        let lists = self.allow.capacity() + self.deny.capacity();
        hosts.sum::<usize>() + lists * size_of::<String>()
    }
}

impl<T: Parsed> Parsed for Option<T> {
    fn held_bytes(&self) -> usize {
        self.as_ref().map_or(0, T::held_bytes)
    }
}

/// Takes `bytes` instead of what was taken to read a body.
fn instead(read: Share, account: &Account, bytes: usize) -> Result<Share, Full> {
    // Beside it, so that nobody comes between; in its place where both do not fit.
    if let Some(held) = account.take(bytes) {
        return Ok(held);
    }
    drop(read);
    account.take(bytes).ok_or(Full)
}

/// The account of whoever sends a request.
pub fn account_of(request: &Request, service: &Service) -> Account {
    // Only a route outside of the authenticated part could lack it.
    let tenant = request.extensions().get().cloned().unwrap_or_else(TenantName::local);
    service.bytes_of(&tenant)
}

/// Whether a body is JSON: `application/json`, or a type that is written in it (RFC 6839, 3.1).
fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = value.and_then(|value| value.split(';').next()).unwrap_or_default();
    let kind = kind.trim().to_ascii_lowercase();
    let of_application = kind.strip_prefix("application/");
    of_application.is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
}

fn bad_json(rejection: &JsonRejection) -> ApiError {
    ApiError::new(rejection.status(), "bad_request", rejection.body_text())
}

/// A body as it is, within the limit for bodies that are held in memory. It counts for its tenant
/// until it is dropped.
#[derive(Debug)]
pub struct Raw(pub Bytes);

impl FromRequest<Service> for Raw {
    type Rejection = ApiError;

    async fn from_request(request: Request, service: &Service) -> Result<Self, ApiError> {
        let account = account_of(&request, service);
        Ok(Self(body::read(request.into_body(), &account).await?.into_bytes()))
    }
}

/// Query parameters.
#[derive(Debug)]
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        Query::<T>::from_request_parts(parts, state)
            .await
            .map(|Query(value)| Self(value))
            .map_err(|rejection: QueryRejection| ApiError::bad_request(rejection.body_text()))
    }
}

/// The query parameter `path` of the guest, percent-encoded, in whatever bytes, with `user` and
/// `as_root`.
#[derive(Debug)]
pub struct GuestPath(pub FilePath);

impl<S: Send + Sync> FromRequestParts<S> for GuestPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        file_path(parts.uri.query().unwrap_or_default(), "path").map(Self)
    }
}

/// The query parameters `from` and `to`, as [`GuestPath`]; both are of the same user.
#[derive(Debug)]
pub struct GuestPaths {
    /// `from`.
    pub from: FilePath,
    /// `to`.
    pub to: ByteString,
}

impl<S: Send + Sync> FromRequestParts<S> for GuestPaths {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let query = parts.uri.query().unwrap_or_default();
        Ok(Self { from: file_path(query, "from")?, to: file_path(query, "to")?.path })
    }
}

/// Longest name of a user in bytes.
const LONGEST_USER: usize = 256;

/// A path of the guest, and whose it is.
fn file_path(query: &str, name: &str) -> Result<FilePath, ApiError> {
    let path = parameters(query, name)
        .next()
        .ok_or_else(|| ApiError::bad_request(format!("the query parameter {name} is missing")))?;
    let user = parameters(query, "user").next().map(String::from_utf8).transpose();
    let user = user.ok().filter(|user| {
        user.as_ref().is_none_or(|user| {
            (1..=LONGEST_USER).contains(&user.len()) && !user.contains(char::is_control)
        })
    });
    let Some(user) = user else {
        return Err(ApiError::bad_request(format!(
            "the query parameter user must be a user of the guest, at most {LONGEST_USER} bytes"
        )));
    };
    let as_root = match parameters(query, "as_root").next().as_deref() {
        None | Some(b"false") => false,
        Some(b"true") => true,
        Some(_) => {
            return Err(ApiError::bad_request("the query parameter as_root is true or false"));
        }
    };
    let absolute = path.first() == Some(&b'/');
    if path.contains(&0) || path.is_empty() || (!absolute && user.is_none()) {
        return Err(ApiError::bad_request(format!(
            "the query parameter {name} must be a path without NUL; one that is not absolute needs \
             the parameter user, from whose home it starts"
        )));
    }
    Ok(FilePath { path: path.into(), user, as_root })
}

/// The query parameters `xattr` (`NAME=VALUE`, each as often as is wanted) and `xattr_prefix`.
#[derive(Debug)]
pub struct Xattrs(pub Option<XattrSet>);

impl<S: Send + Sync> FromRequestParts<S> for Xattrs {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        xattrs(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

fn xattrs(query: &str) -> Result<Option<XattrSet>, ApiError> {
    let attribute = |pair: Vec<u8>| {
        let at = pair.iter().position(|byte| *byte == b'=').filter(|at| *at > 0);
        let at = at.ok_or_else(|| {
            ApiError::bad_request("the query parameter xattr is NAME=VALUE, percent-encoded")
        })?;
        Ok(Xattr { name: pair[..at].into(), value: pair[at + 1..].into() })
    };
    let attributes: Vec<Xattr> =
        parameters(query, "xattr").map(attribute).collect::<Result<_, ApiError>>()?;
    match parameters(query, "xattr_prefix").next() {
        Some(prefix) => Ok(Some(XattrSet { prefix: prefix.into(), attributes })),
        None if attributes.is_empty() => Ok(None),
        None => Err(ApiError::bad_request(
            "xattr needs xattr_prefix: the extended attributes that begin so are replaced",
        )),
    }
}

/// Decodes the values of a parameter as application/x-www-form-urlencoded, but to bytes: names of
/// files need not be UTF-8.
fn parameters<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = Vec<u8>> + 'a {
    let values =
        query.split('&').filter_map(move |pair| pair.strip_prefix(name)?.strip_prefix('='));
    values.map(|value| percent_decode(value.replace('+', " ").as_bytes()).collect())
}

/// The session that the path names, of the tenant that asks. While this lives, the session is not
/// idle.
pub struct Live {
    /// The session.
    pub session: Arc<LiveSession>,
    /// Guard that holds off its idle timeout.
    pub activity: ActivityGuard,
    /// The place of the connection that asks, also when it has become a WebSocket or the like.
    pub place: Option<Arc<Place>>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("session", &self.session.id()).finish_non_exhaustive()
    }
}

impl Live {
    /// Takes the session's idle timeout off for as long as the returned value lives.
    pub fn of(session: Arc<LiveSession>) -> Self {
        Self { activity: session.active(), session, place: None }
    }
}

impl FromRequestParts<Service> for Live {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, service: &Service) -> Result<Self, ApiError> {
        let Tenant(tenant) = Tenant::from_request_parts(parts, service).await?;
        let id = path_parameter(parts, service, "id").await?;
        let place = parts.extensions.get::<Arc<Place>>().cloned();
        Ok(Self { place, ..Self::of(service.session(&tenant, &id)?) })
    }
}

/// The tenant that asks.
#[derive(Debug, Clone)]
pub struct Tenant(pub TenantName);

impl<S: Send + Sync> FromRequestParts<S> for Tenant {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // Only a route outside of the authenticated part could lack it.
        let unknown =
            || ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", "nobody is known to ask");
        parts.extensions.get::<TenantName>().cloned().map(Self).ok_or_else(unknown)
    }
}

/// The tenant that asks for a session. Its request is counted towards its rate when this is
/// extracted, which is to be the first: what is refused for another reason has cost work, too.
#[derive(Debug, Clone)]
pub struct Counted(pub TenantName);

impl FromRequestParts<Service> for Counted {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, service: &Service) -> Result<Self, ApiError> {
        let Tenant(tenant) = Tenant::from_request_parts(parts, service).await?;
        service.count_request(&tenant)?;
        Ok(Self(tenant))
    }
}

/// Whose view of the daemon is asked for: a tenant's, or the operator's when `None`.
#[derive(Debug, Clone)]
pub struct Viewer(pub Option<TenantName>);

impl<S: Send + Sync> FromRequestParts<S> for Viewer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Tenant(tenant) = Tenant::from_request_parts(parts, state).await?;
        Ok(Self(parts.extensions.get::<Operator>().is_none().then_some(tenant)))
    }
}

/// The id of a session in the path, not looked up.
#[derive(Debug, Clone)]
pub struct SessionId(pub String);

impl<S: Send + Sync> FromRequestParts<S> for SessionId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        path_parameter(parts, state, "id").await.map(Self)
    }
}

async fn path_parameter<S: Send + Sync>(
    parts: &mut Parts,
    state: &S,
    name: &str,
) -> Result<String, ApiError> {
    let parameters = RawPathParams::from_request_parts(parts, state)
        .await
        .map_err(|rejection| ApiError::bad_request(rejection.body_text()))?;
    let value = parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned());
    value.ok_or_else(|| ApiError::bad_request(format!("the path has no {name}")))
}

/// The number of a background command in the path.
#[derive(Debug, Clone, Copy)]
pub struct ExecNumber(pub u64);

impl<S: Send + Sync> FromRequestParts<S> for ExecNumber {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let text = path_parameter(parts, state, "n").await?;
        let parsed = text
            .parse()
            .map_err(|_| ApiError::bad_request(format!("{text} is not the number of a command")))?;
        Ok(Self(parsed))
    }
}

/// A TCP port of the guest in the path, 1 to 65535.
#[derive(Debug, Clone, Copy)]
pub struct GuestPort(pub u16);

impl<S: Send + Sync> FromRequestParts<S> for GuestPort {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let text = path_parameter(parts, state, "port").await?;
        match text.parse() {
            Ok(port @ 1..) => Ok(Self(port)),
            _ => Err(ApiError::bad_request(format!("{text} is not a port: 1 to 65535"))),
        }
    }
}

/// An `Idempotency-Key` header, where there is one.
#[derive(Debug, Clone)]
pub struct IdempotencyKey(pub Option<String>);

/// Longest idempotency key in bytes.
const LONGEST_KEY: usize = 255;

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let Some(value) = parts.headers.get("idempotency-key") else {
            return Ok(Self(None));
        };
        match value.to_str() {
            Ok(key) if !key.is_empty() && key.len() <= LONGEST_KEY => {
                Ok(Self(Some(key.to_owned())))
            }
            _ => Err(ApiError::bad_request(format!(
                "Idempotency-Key must be 1 to {LONGEST_KEY} characters of ASCII"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::shares::Shares;

    #[test]
    fn what_is_read_counts_for_all_that_is_made_of_it() {
        let stdin = Exec { stdin: Some("x".repeat(5000).as_str().into()), ..Exec::new(["a"]) };
        assert!((5000..5500).contains(&stdin.held_bytes()), "{}", stdin.held_bytes());
        // Empty arguments take memory as well, three bytes of the body each.
        let empty = Exec::new(vec![""; 10_000]);
        assert!(empty.held_bytes() >= 10_000 * size_of::<Blob>());
        let variables = |count: usize| {
            let env = (0..count).map(|n| (n.to_string(), "x".into())).collect();
            Exec { env, ..Exec::new(["a"]) }
        };
        assert!(variables(10_000).held_bytes() >= 10_000 * 2 * size_of::<String>());
        let env = [("A".to_owned(), "x".repeat(3000))].into();
        let create = CreateSession { env, ..CreateSession::default() };
        assert!((3000..4000).contains(&create.held_bytes()));
        // What is always small is answered however much is held.
        assert_eq!(SignalBody { number: 9 }.held_bytes(), 0);
    }

    #[test]
    fn json_is_known_by_its_type() {
        let is = |value: &str| {
            let headers = [(header::CONTENT_TYPE, value.parse().unwrap())];
            is_json(&HeaderMap::from_iter(headers))
        };
        for json in ["application/json", "Application/JSON; charset=utf-8", "application/a+json"] {
            assert!(is(json), "{json}");
        }
        for other in ["", "text/json", "application/jsonx", "application/", "json", "text/plain"] {
            assert!(!is(other), "{other}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }

    #[test]
    fn what_a_body_becomes_takes_its_place() {
        let account = Shares::new(1000, []).account(&TenantName::local(), None);
        let held = instead(account.passing().take(900).unwrap(), &account, 950).unwrap();
        assert_eq!((held.amount(), account.held()), (950, 950));
        drop(held);
        let read = account.passing().take(300).unwrap();
        assert_eq!(instead(read, &account, 1001).unwrap_err(), Full);
        assert_eq!(account.held(), 0);
        assert_eq!(instead(account.take(1000).unwrap(), &account, 0).unwrap().amount(), 0);
    }

    #[test]
    fn paths_keep_their_bytes() {
        let path = |query| file_path(query, "path").map(|at| at.path.as_bytes().to_vec());
        assert_eq!(path("limit=1&path=/a%20b%2Bc+d%FF").unwrap(), b"/a b+c d\xff");
        assert_eq!(path("path=%2Fetc%2F%26").unwrap(), b"/etc/&");
        for bad in ["", "path", "path=", "path=etc", "path=/a%00b", "xpath=/a", "pathx=/a"] {
            assert_eq!(path(bad).unwrap_err().code(), "bad_request", "{bad}");
        }
    }

    #[test]
    fn a_path_of_a_user_may_be_relative() {
        let at = |query| file_path(query, "path");
        assert_eq!(at("path=%7E/x&user=ann").unwrap(), FilePath::of_user("~/x", "ann"));
        let as_root = at("user=a%3Ab&path=x&as_root=true").unwrap();
        assert_eq!(as_root, FilePath::of_user("x", "a:b").as_root());
        assert_eq!(at("path=/x&as_root=false").unwrap(), "/x".into());
        let long = format!("path=/x&user={}", "u".repeat(LONGEST_USER + 1));
        for bad in
            ["path=&user=ann", "path=/x&user=", "path=/x&user=%FF", "path=x%00&user=a", &long]
        {
            assert_eq!(at(bad).unwrap_err().code(), "bad_request", "{bad}");
        }
        at("path=/x&user=a%00").unwrap_err();
        at("path=/x&as_root=1").unwrap_err();
    }

    #[test]
    fn attributes_need_their_prefix() {
        let set = xattrs("xattr=user.a%3Db%3Dc&path=/x&xattr=user.e=&xattr_prefix=user.").unwrap();
        let set = set.unwrap();
        assert_eq!(set.prefix, "user.".into());
        let pair = |name: &str, value: &str| Xattr { name: name.into(), value: value.into() };
        assert_eq!(set.attributes, [pair("user.a", "b=c"), pair("user.e", "")]);
        assert_eq!(xattrs("xattr_prefix=user.x.").unwrap().unwrap().attributes, []);
        assert_eq!(xattrs("path=/x").unwrap(), None);
        for bad in
            ["xattr=user.a%3Db", "xattr=user.a&xattr_prefix=user.", "xattr==x&xattr_prefix=u"]
        {
            assert_eq!(xattrs(bad).unwrap_err().code(), "bad_request", "{bad}");
        }
    }
}
