//! A stream of answers: an envelope each, as things happen, and one for the end.

use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use mayfly_daemon::service::held::{self, Full};
use mayfly_daemon::service::shares::{Account, Share};
use mayfly_guest::channel::MAX_CHUNK;
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc};

use super::error::ConnectError;
use super::{STREAM, envelope};

/// Bytes of envelopes on their way to the client, until its socket has them; then whoever writes
/// them waits. One with the longest piece of output fits, which takes four thirds in base64.
const WINDOW: usize = 128 << 10;
/// Bytes that an answer can hold: envelopes on their way, one that waits, and the piece of a guest
/// that it is made from.
const HELD: usize = 2 * WINDOW + MAX_CHUNK;
/// Envelopes that may wait until the connection takes them up.
const DEPTH: usize = 4;

/// Writer of the stream. When it is dropped before its end, the client sees its connection break.
#[derive(Debug)]
pub struct Answers {
    envelopes: mpsc::Sender<Piece>,
    room: Arc<Semaphore>,
    share: Arc<Share>,
}

#[derive(Debug)]
enum Piece {
    Envelope(Bytes),
    /// The last one.
    End(Bytes),
}

/// The client of a stream has gone away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientGone;

#[derive(Serialize)]
struct End<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a ConnectError>,
}

impl Answers {
    /// Creates an answer, and the way to write it. What it can hold is taken before anything is
    /// started: it never waits for room that others hold.
    ///
    /// # Errors
    /// [`Full`].
    pub fn new(account: &Account) -> Result<(Self, Response), Full> {
        let share = Arc::new(account.take(HELD).ok_or(Full)?);
        let (envelopes, receiver) = mpsc::channel(DEPTH);
        let body = stream::unfold(Some(receiver), |receiver| async move {
            let mut receiver = receiver?;
            match receiver.recv().await {
                Some(Piece::Envelope(bytes)) => Some((Ok(bytes), Some(receiver))),
                Some(Piece::End(bytes)) => Some((Ok(bytes), None)),
                // A stream that breaks off has no end that a client could take for one.
                None => Some((Err(io::Error::other("the stream broke off")), None)),
            }
        });
        let headers = [(header::CONTENT_TYPE, STREAM), (header::CACHE_CONTROL, "no-store")];
        let response = (headers, Body::from_stream(body)).into_response();
        Ok((Self { envelopes, room: Arc::new(Semaphore::new(WINDOW)), share }, response))
    }

    /// Writes one message; waits as long as the client does not read those before.
    ///
    /// # Errors
    /// [`ClientGone`] when nobody reads any more.
    pub async fn send(&self, message: &impl Serialize) -> Result<(), ClientGone> {
        let bytes = self.counted(envelope::encode(0, message)).await?;
        self.envelopes.send(Piece::Envelope(bytes)).await.map_err(|_| ClientGone)
    }

    /// Ends the stream, with the reason where it is an error.
    pub async fn end(self, outcome: Result<(), ConnectError>) {
        let error = outcome.as_ref().err();
        let Ok(bytes) = self.counted(envelope::encode(envelope::END, &End { error })).await else {
            return;
        };
        let _ = self.envelopes.send(Piece::End(bytes)).await;
    }

    /// Resolves when nobody reads any more.
    pub async fn closed(&self) {
        self.envelopes.closed().await;
    }

    async fn counted(&self, bytes: Vec<u8>) -> Result<Bytes, ClientGone> {
        let size = u32::try_from(bytes.len().min(WINDOW)).unwrap_or(u32::MAX);
        let room = tokio::select! {
            // Nobody closes the semaphore.
            room = self.room.clone().acquire_many_owned(size) => room.map_err(|_| ClientGone)?,
            () = self.closed() => return Err(ClientGone),
        };
        Ok(held::sent_with(bytes, (room, self.share.clone())))
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, StreamExt as _};
    use mayfly_api::TenantName;
    use mayfly_daemon::service::shares::Shares;
    use serde_json::json;

    use super::super::error::Code;
    use super::*;

    fn account() -> Account {
        Shares::new(HELD, []).account(&TenantName::local(), None)
    }

    #[tokio::test]
    async fn the_end_says_why_and_nothing_else_is_an_end() {
        let account = account();
        let (answers, response) = Answers::new(&account).unwrap();
        Answers::new(&account).unwrap_err();
        let mut body = response.into_body().into_data_stream();
        answers.send(&json!({"a": 1})).await.unwrap();
        answers.end(Err(ConnectError::new(Code::NotFound, "gone"))).await;
        let first = body.next().await.unwrap().unwrap();
        assert_eq!(&first[..], b"\0\0\0\0\x07{\"a\":1}");
        let last = body.next().await.unwrap().unwrap();
        assert_eq!(last[0], 2);
        let said: serde_json::Value = serde_json::from_slice(&last[5..]).unwrap();
        assert_eq!(said, json!({"error": {"code": "not_found", "message": "gone"}}));
        assert!(body.next().await.is_none());
        drop((first, last));
        assert_eq!(account.held(), 0);

        let (answers, response) = Answers::new(&account).unwrap();
        drop(answers);
        response.into_body().into_data_stream().next().await.unwrap().unwrap_err();
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_waited_for_and_one_that_goes_is_not() {
        let account = account();
        let (answers, response) = Answers::new(&account).unwrap();
        let piece = json!("x".repeat(WINDOW / 3));
        let sent = (0..100).take_while(|_| answers.send(&piece).now_or_never().is_some()).count();
        assert!((1..=3).contains(&sent), "{sent}");
        drop(response);
        assert_eq!(answers.send(&piece).await, Err(ClientGone));
    }
}
