//! Answers that go on: one JSON document a line, as things happen.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use serde::Serialize;
use tokio::sync::mpsc;

/// Media type of one JSON document a line.
pub const MEDIA_TYPE: &str = "application/x-ndjson";

/// Interval at which a stream gives a sign of life. A write is what shows that a client on a broken
/// network is gone.
pub const HEARTBEAT: Duration = Duration::from_secs(10);

/// Lines that may wait for the client; then whoever writes them waits.
const DEPTH: usize = 16;

/// Writer of the lines of one answer.
#[derive(Debug)]
pub struct Lines {
    lines: mpsc::Sender<Bytes>,
}

/// The client of a stream has gone away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientGone;

/// Creates an answer whose lines are written elsewhere, and the way to write them. The answer ends
/// when the writer is dropped.
pub fn answer() -> (Lines, Response) {
    let (lines, receiver) = mpsc::channel(DEPTH);
    let body = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|line| (Ok::<_, Infallible>(line), receiver))
    });
    let headers = [(header::CONTENT_TYPE, MEDIA_TYPE), (header::CACHE_CONTROL, "no-store")];
    (Lines { lines }, (headers, Body::from_stream(body)).into_response())
}

impl Lines {
    /// Writes one line.
    ///
    /// # Errors
    /// [`ClientGone`] when nobody reads any more.
    pub async fn send<T: Serialize>(&self, value: &T) -> Result<(), ClientGone> {
        self.lines.send(line(value)).await.map_err(|_| ClientGone)
    }

    /// Resolves when nobody reads any more.
    pub async fn closed(&self) {
        self.lines.closed().await;
    }
}

fn line<T: Serialize>(value: &T) -> Bytes {
    let mut line = serde_json::to_vec(value).unwrap_or_else(|error| {
        // No type of ours has a map with keys other than strings, the one thing that JSON cannot
        // say.
        tracing::error!(%error, "cannot write a line of JSON");
        b"null".to_vec()
    });
    line.push(b'\n');
    line.into()
}
