//! Answers of one JSON document a line.

use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use super::connection::Connection;
use super::error::ClientError;

/// The longest line, in bytes: one with 1 MiB of output in base64 is longer than that output.
const LINE_LIMIT: usize = 16 << 20;

/// The lines of an answer. Dropping it closes its connection.
#[derive(Debug)]
pub(super) struct Lines {
    body: Incoming,
    buffer: BytesMut,
    /// Bytes of the buffer that were searched for an end of line already.
    searched: usize,
    _connection: Connection,
}

impl Lines {
    pub fn new((connection, response): (Connection, Response<Incoming>)) -> Self {
        Self {
            body: response.into_body(),
            buffer: BytesMut::new(),
            searched: 0,
            _connection: connection,
        }
    }

    /// Returns the next line; `None` at the end. Cancel-safe.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + at + 1);
                self.searched = 0;
                return serde_json::from_slice(&line).map(Some).map_err(ClientError::protocol);
            }
            self.searched = self.buffer.len();
            if self.searched > LINE_LIMIT {
                return Err(ClientError::protocol(format_args!(
                    "a line of more than {LINE_LIMIT} bytes"
                )));
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(bytes) = frame?.into_data() {
                        self.buffer.extend_from_slice(&bytes);
                    }
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(ClientError::protocol("an answer that ends within a line")),
            }
        }
    }
}
