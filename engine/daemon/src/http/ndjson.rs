//! Answers that go on: one JSON document a line, as things happen.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use mayfly_guest::channel::MAX_CHUNK;
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc};

use crate::service::held;
use crate::service::shares::Share;

/// Media type of one JSON document a line.
pub const MEDIA_TYPE: &str = "application/x-ndjson";

/// Interval at which a stream gives a sign of life. A write is what shows that a client on a broken
/// network is gone.
pub const HEARTBEAT: Duration = Duration::from_secs(10);

/// Bytes of lines on their way to the client, until its socket has them; then whoever writes them
/// waits. A line with as many bytes of output as [`PIECE`] fits, and so does a change with two of
/// the longest paths.
const WINDOW: usize = 64 << 10;

/// Bytes of output that one line tells of at most. In JSON, a control character takes six.
pub const PIECE: usize = 8 << 10;

/// Bytes that an answer can hold: lines on their way, one that waits, and the longest piece of a
/// guest that it is made from.
pub const HELD: usize = 2 * WINDOW + MAX_CHUNK;

/// Lines that may wait until the connection takes them up; it has a queue of its own, which a
/// client that reads keeps empty.
const DEPTH: usize = 4;

/// Writer of the lines of one answer.
#[derive(Debug)]
pub struct Lines {
    lines: mpsc::Sender<Bytes>,
    room: Arc<Semaphore>,
    /// For what an answer can hold, where it counts for somebody.
    share: Option<Arc<Share>>,
}

/// The client of a stream has gone away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientGone;

/// Creates an answer whose lines are written elsewhere, and the way to write them. The answer ends
/// when the writer is dropped.
///
/// What a guest can make long is for [`counted::lines`](super::counted::lines) instead.
pub fn answer() -> (Lines, Response) {
    create(None)
}

/// Creates an answer for which [`HELD`] bytes were taken: they are given back after the last line.
pub(super) fn counted_answer(share: Share) -> (Lines, Response) {
    create(Some(Arc::new(share)))
}

fn create(share: Option<Arc<Share>>) -> (Lines, Response) {
    let (lines, receiver) = mpsc::channel(DEPTH);
    let body = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|line| (Ok::<_, Infallible>(line), receiver))
    });
    let headers = [(header::CONTENT_TYPE, MEDIA_TYPE), (header::CACHE_CONTROL, "no-store")];
    let lines = Lines { lines, room: Arc::new(Semaphore::new(WINDOW)), share };
    (lines, (headers, Body::from_stream(body)).into_response())
}

impl Lines {
    /// Writes one line; waits as long as the client does not read those before.
    ///
    /// # Errors
    /// [`ClientGone`] when nobody reads any more.
    pub async fn send<T: Serialize>(&self, value: &T) -> Result<(), ClientGone> {
        let line = line(value);
        // One beyond the window, which no guest can cause, goes alone.
        let bytes = u32::try_from(line.len().min(WINDOW)).unwrap_or(u32::MAX);
        let room = tokio::select! {
            // Nobody closes the semaphore.
            room = self.room.clone().acquire_many_owned(bytes) => room.map_err(|_| ClientGone)?,
            () = self.closed() => return Err(ClientGone),
        };
        let line = held::sent_with(line, (room, self.share.clone()));
        self.lines.send(line).await.map_err(|_| ClientGone)
    }

    /// Resolves when nobody reads any more.
    pub async fn closed(&self) {
        self.lines.closed().await;
    }
}

fn line<T: Serialize>(value: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).unwrap_or_else(|error| {
        // No type of ours has a map with keys other than strings, the one thing that JSON cannot
        // say.
        tracing::error!(%error, "cannot write a line of JSON");
        b"null".to_vec()
    });
    line.push(b'\n');
    // It grew to up to twice its length, and may wait.
    line.shrink_to_fit();
    line
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::StreamExt;
    use mayfly_api::{Blob, Change, ChangeKind, ExecMessage, TenantName};

    use super::*;
    use crate::http::counted;
    use crate::service::shares::Shares;

    /// The longest line of output: each byte of it takes six.
    fn longest() -> ExecMessage {
        ExecMessage::Stdout { data: Blob(vec![1; PIECE]) }
    }

    /// Writes what can be without waiting; the number of lines.
    fn fill(lines: &Lines, message: &ExecMessage) -> usize {
        (0..100).take_while(|_| lines.send(message).now_or_never().is_some()).count()
    }

    #[tokio::test]
    async fn lines_that_nobody_reads_are_bounded_by_their_bytes() {
        let (lines, response) = answer();
        let mut body = response.into_body().into_data_stream();
        let mut unread = Vec::new();
        // As a connection does whose socket takes nothing.
        loop {
            fill(&lines, &longest());
            match body.next().now_or_never() {
                Some(line) => unread.push(line.unwrap().unwrap()),
                None => break,
            }
            assert!(unread.iter().map(Bytes::len).sum::<usize>() <= WINDOW);
        }
        assert_eq!(unread.len(), 1);
        // Where one was read, the next goes.
        unread.clear();
        assert_eq!(fill(&lines, &ExecMessage::Heartbeat), DEPTH);
    }

    #[tokio::test]
    async fn an_answer_counts_from_its_start_until_its_last_line_is_sent() {
        let account = Shares::new(HELD + 1, []).account(&TenantName::local(), None);
        let (lines, response) = counted::lines(&account).unwrap();
        counted::lines(&account).unwrap_err();
        // Nothing is left to take, and the answer goes on all the same.
        let _rest = account.take(1).unwrap();
        let mut body = response.into_body().into_data_stream();
        let mut last = None;
        for _ in 0..10 {
            drop(last);
            lines.send(&longest()).await.unwrap();
            last = body.next().await;
        }
        drop(lines);
        assert!(body.next().await.is_none());
        drop(body);
        assert_eq!(account.held(), HELD + 1);
        drop(last);
        assert_eq!(account.held(), 1);
    }

    #[tokio::test]
    async fn a_client_that_goes_away_ends_what_waits_for_it() {
        let (lines, response) = answer();
        let mut body = response.into_body().into_data_stream();
        lines.send(&longest()).await.unwrap();
        // The socket never has it.
        let _sent = body.next().await.unwrap().unwrap();
        let message = longest();
        let mut waits = Box::pin(lines.send(&message));
        assert_eq!(futures::poll!(&mut waits), std::task::Poll::Pending);
        drop(body);
        assert_eq!(waits.await, Err(ClientGone));
    }

    #[test]
    fn the_longest_lines_that_a_guest_causes_fit() {
        let path = || Blob(vec![1; 4096 + 256]);
        let (kind, from) = (ChangeKind::Renamed, Some(path()));
        let change = line(&Change::Change { kind, path: path(), from, entry: None });
        let base64 = line(&ExecMessage::Stderr { data: Blob(vec![0xff; PIECE]) });
        // Of a guest's message, which is cut to 4096 characters, of at most 11 bytes in JSON.
        let error = ExecMessage::Error { code: "guest".into(), message: "x".repeat(11 * 4096) };
        for line in [line(&longest()), change, base64, line(&error)] {
            assert!(line.len() <= WINDOW && line.capacity() == line.len(), "{}", line.len());
        }
    }
}
