//! Servers in a session: its Docker daemon and its TCP ports, over HTTP and over upgraded
//! connections.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::upgrade::Upgraded;
use hyper::{Method, StatusCode, header};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::call::{Client, empty, full};
use super::connection::Connection;
use super::error::ClientError;
use super::sessions::session_path;

/// An upgraded connection: bytes both ways.
#[derive(Debug)]
pub struct Tunnel {
    stream: TokioIo<Upgraded>,
    _connection: Connection,
}

impl Client {
    /// Asks the session's Docker daemon, such as `GET` `/_ping`; the answer as it is, whatever its
    /// status.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer at all.
    pub async fn docker(
        &self,
        id: &str,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Response<Bytes>, ClientError> {
        let call = self.request(method, session_path(id, &format!("/docker{path}")));
        self.whole(call.header(header::CONTENT_TYPE, "application/json").body(full(body))?).await
    }

    /// Upgrades a connection to the session's Docker daemon, as `docker attach` and `docker exec`
    /// do.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when it does not upgrade.
    pub async fn docker_upgrade(
        &self,
        id: &str,
        path: &str,
        protocol: &str,
        body: impl Into<Bytes>,
    ) -> Result<Tunnel, ClientError> {
        let call = self.request(Method::POST, session_path(id, &format!("/docker{path}")));
        let call = call.header(header::CONTENT_TYPE, "application/json");
        self.upgrade(
            call.header(header::CONNECTION, "Upgrade")
                .header(header::UPGRADE, protocol)
                .body(full(body))?,
        )
        .await
    }

    /// Asks a server on a TCP port of the session. `request` needs a path; its answer comes as it
    /// is.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer at all.
    pub async fn port(
        &self,
        id: &str,
        port: u16,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, ClientError> {
        self.whole(self.to_port(id, port, request)?).await
    }

    /// Connects to a TCP port of the session, on its loopback interface. Shutting the writing half
    /// down ends that direction alone; dropping the tunnel ends both.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `connection_refused` when nothing listens there, and when there
    /// is no such session, or it is over.
    pub async fn connect_tcp(&self, id: &str, port: u16) -> Result<Tunnel, ClientError> {
        let call = self.request(Method::GET, session_path(id, &format!("/tcp/{port}")));
        let call = call.header(header::CONNECTION, "Upgrade").header(header::UPGRADE, "tcp");
        self.upgrade(call.body(empty())?).await
    }

    fn to_port(
        &self,
        id: &str,
        port: u16,
        request: Request<Bytes>,
    ) -> Result<Request<super::connection::RequestBody>, ClientError> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let call = self.request(parts.method, session_path(id, &format!("/ports/{port}{path}")));
        let mut request = call.body(full(body))?;
        for (name, value) in &parts.headers {
            if name != header::HOST && name != header::AUTHORIZATION {
                request.headers_mut().append(name, value.clone());
            }
        }
        Ok(request)
    }

    async fn upgrade(
        &self,
        request: Request<super::connection::RequestBody>,
    ) -> Result<Tunnel, ClientError> {
        let (connection, mut response) = self.exchange(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (parts, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            return Err(ClientError::refused(parts.status, &parts.headers, &body));
        }
        let stream = TokioIo::new(hyper::upgrade::on(&mut response).await?);
        Ok(Tunnel { stream, _connection: connection })
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
