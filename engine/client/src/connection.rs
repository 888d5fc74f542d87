//! HTTP connections: one, and the idle ones that are kept.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::endpoint::Endpoint;
use super::error::ClientError;

/// Idle connections that are kept at most.
const MAX_IDLE: usize = 64;

/// The body of a request.
pub(super) type RequestBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// A connection. Dropping it closes it, whatever is under way.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<RequestBody>,
    _driver: AbortOnDropHandle<()>,
}

impl Connection {
    pub async fn open(endpoint: &Endpoint) -> Result<Self, ClientError> {
        let stream = endpoint
            .connect()
            .await
            .map_err(|cause| ClientError::Connect { endpoint: endpoint.clone(), cause })?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to the daemon");
            }
        });
        Ok(Self { sender, _driver: AbortOnDropHandle::new(driver) })
    }

    pub async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, ClientError> {
        Ok(self.sender.send_request(request).await?)
    }

    /// As [`Connection::send`], but gives the request back when nothing of it was sent.
    async fn try_send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Unsent> {
        self.sender.try_send_request(request).await.map_err(|mut error| {
            match error.take_message() {
                Some(request) => Unsent::Again(request),
                None => Unsent::Failed(error.into_error().into()),
            }
        })
    }
}

enum Unsent {
    Again(Request<RequestBody>),
    Failed(ClientError),
}

/// Connections that wait for the next call.
#[derive(Debug, Default)]
pub(super) struct Idle {
    connections: Mutex<Vec<Connection>>,
}

impl Idle {
    /// Sends over a kept connection, or a new one. The daemon closes connections that were idle for
    /// long, which shows only in the use; nothing was sent then, and the next connection is tried.
    pub async fn send(
        &self,
        endpoint: &Endpoint,
        mut request: Request<RequestBody>,
    ) -> Result<(Connection, Response<Incoming>), ClientError> {
        while let Some(mut connection) = self.take() {
            match connection.try_send(request).await {
                Ok(response) => return Ok((connection, response)),
                Err(Unsent::Again(unsent)) => request = unsent,
                Err(Unsent::Failed(error)) => return Err(error),
            }
        }
        let mut connection = Connection::open(endpoint).await?;
        let response = connection.send(request).await?;
        Ok((connection, response))
    }

    /// Keeps a connection whose answer was read to its end.
    pub async fn keep(&self, mut connection: Connection) {
        if connection.sender.ready().await.is_ok() {
            let mut connections = self.connections();
            if connections.len() < MAX_IDLE {
                connections.push(connection);
            }
        }
    }

    fn take(&self) -> Option<Connection> {
        let mut connections = self.connections();
        // The last one put back is the least likely to be closed.
        while let Some(connection) = connections.pop() {
            if !connection.sender.is_closed() {
                return Some(connection);
            }
        }
        None
    }

    fn connections(&self) -> parking_lot::MutexGuard<'_, Vec<Connection>> {
        self.connections.lock()
    }
}
