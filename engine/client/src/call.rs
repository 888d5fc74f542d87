//! Calls: a request, and its one answer or the beginning of one that goes on.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::http::request::Builder;
use hyper::{Method, Request, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::connection::{Connection, Idle, RequestBody};
use super::endpoint::Endpoint;
use super::error::ClientError;

/// The longest answer that is held in memory, in bytes.
const ANSWER_LIMIT: usize = 256 << 20;

/// A client of one daemon. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    authorization: Option<HeaderValue>,
    idle: Idle,
}

impl Client {
    /// Creates a client of the daemon at a Unix socket. Nothing is opened yet.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::over(Endpoint::Unix(path.into()), None)
    }

    /// Creates a client of the daemon at `HOST:PORT`, with a bearer token. The connection is not
    /// encrypted: use it on networks that are trusted, or through a proxy that encrypts.
    ///
    /// # Errors
    /// [`ClientError::Request`] for a token that no header can hold.
    pub fn tcp(address: impl Into<String>, token: &str) -> Result<Self, ClientError> {
        Self::new(Endpoint::Tcp(address.into()), Some(token))
    }

    /// Creates a client of the daemon at an endpoint, with a token where it needs one.
    ///
    /// # Errors
    /// [`ClientError::Request`] for a token that no header can hold.
    pub fn new(endpoint: Endpoint, token: Option<&str>) -> Result<Self, ClientError> {
        let authorization = match token {
            None => None,
            Some(token) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                    .map_err(hyper::http::Error::from)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self::over(endpoint, authorization))
    }

    /// Returns where the daemon is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    /// Returns whether a daemon answers.
    pub async fn is_up(&self) -> bool {
        self.text(self.request(Method::GET, "/healthz")).await.is_ok()
    }

    fn over(endpoint: Endpoint, authorization: Option<HeaderValue>) -> Self {
        Self { inner: Arc::new(Inner { endpoint, authorization, idle: Idle::default() }) }
    }

    /// A request with everything but its body.
    pub(super) fn request(&self, method: Method, path: impl AsRef<str>) -> Builder {
        let mut builder = Request::builder()
            .method(method)
            .uri(path.as_ref())
            .header(header::HOST, self.inner.endpoint.authority());
        if let Some(value) = &self.inner.authorization {
            builder = builder.header(header::AUTHORIZATION, value);
        }
        builder
    }

    /// Calls without a body, for JSON.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: impl AsRef<str>,
    ) -> Result<T, ClientError> {
        self.json(self.request(Method::GET, path), empty()).await
    }

    /// Calls with a JSON body, for JSON.
    pub(super) async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: impl AsRef<str>,
        body: &B,
    ) -> Result<T, ClientError> {
        self.json(
            self.request(Method::POST, path).header(header::CONTENT_TYPE, JSON),
            json_body(body)?,
        )
        .await
    }

    /// Calls for JSON.
    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        request: Builder,
        body: RequestBody,
    ) -> Result<T, ClientError> {
        let bytes = self.bytes(request, body).await?;
        serde_json::from_slice(&bytes).map_err(ClientError::protocol)
    }

    /// Calls for nothing but success.
    pub(super) async fn done(
        &self,
        request: Builder,
        body: RequestBody,
    ) -> Result<(), ClientError> {
        self.bytes(request, body).await.map(drop)
    }

    /// Calls for text.
    pub(super) async fn text(&self, request: Builder) -> Result<String, ClientError> {
        let bytes = self.bytes(request, empty()).await?;
        String::from_utf8(bytes.into()).map_err(ClientError::protocol)
    }

    async fn bytes(&self, request: Builder, body: RequestBody) -> Result<Bytes, ClientError> {
        let response = self.whole(request.body(body)?).await?;
        success(response)
    }

    /// Any call, for its whole answer, whatever its status.
    pub(super) async fn whole(
        &self,
        request: Request<RequestBody>,
    ) -> Result<Response<Bytes>, ClientError> {
        let (connection, response) = self.inner.idle.send(&self.inner.endpoint, request).await?;
        let response = collect(response).await?;
        self.inner.idle.keep(connection).await;
        Ok(response)
    }

    /// A call whose answer goes on: it has a connection of its own, and dropping that ends the
    /// call.
    pub(super) async fn open(
        &self,
        request: Builder,
        body: RequestBody,
    ) -> Result<(Connection, Response<Incoming>), ClientError> {
        let (connection, response) = self.exchange(request.body(body)?).await?;
        if response.status().is_success() {
            return Ok((connection, response));
        }
        let response = collect(response).await?;
        Err(ClientError::refused(response.status(), response.headers(), response.body()))
    }

    /// Sends a request over a new connection, for the head of its answer.
    pub(super) async fn exchange(
        &self,
        request: Request<RequestBody>,
    ) -> Result<(Connection, Response<Incoming>), ClientError> {
        let mut connection = Connection::open(&self.inner.endpoint).await?;
        let response = connection.send(request).await?;
        Ok((connection, response))
    }
}

/// Media type of JSON.
pub(super) const JSON: &str = "application/json";

pub(super) fn success(response: Response<Bytes>) -> Result<Bytes, ClientError> {
    if response.status().is_success() {
        return Ok(response.into_body());
    }
    Err(ClientError::refused(response.status(), response.headers(), response.body()))
}

async fn collect(response: Response<Incoming>) -> Result<Response<Bytes>, ClientError> {
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_LIMIT).collect().await.map_err(|error| {
        match error.downcast() {
            Ok(error) => ClientError::Http(*error),
            Err(error) => ClientError::protocol(error),
        }
    })?;
    Ok(Response::from_parts(parts, body.to_bytes()))
}

/// No body.
pub(super) fn empty() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that is there as a whole.
pub(super) fn full(bytes: impl Into<Bytes>) -> RequestBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(super) fn json_body<B: Serialize>(body: &B) -> Result<RequestBody, ClientError> {
    serde_json::to_vec(body).map(full).map_err(ClientError::protocol)
}
