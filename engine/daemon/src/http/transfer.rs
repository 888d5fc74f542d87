//! Contents of any length between a client and a guest, without holding them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use mayfly_guest::channel::{FileReader, MAX_CHUNK};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Semaphore;
use tokio_util::io::StreamReader;

use super::error::ApiError;
use super::extract::Live;
use super::guest::with_guest;
use crate::service::held::{self, Full};
use crate::service::shares::Account;

/// Most bytes read of the body of a refused transfer, and the longest time for it.
const REFUSED_REST: u64 = 256 << 20;
const REFUSED_TIME: Duration = Duration::from_secs(10);

/// Bytes of a download that are held: a piece that the client's socket takes, and one that comes
/// from the guest meanwhile.
const HELD: usize = 2 * MAX_CHUNK;

/// The longest piece.
const LONGEST: u32 = 64 << 10;
const _: () = assert!(LONGEST as usize == MAX_CHUNK);

/// Answers with content of the guest, which counts for the tenant until the client's socket has it.
/// A failure in the middle breaks the connection, so that nobody takes a part for the whole. The
/// guest stops when the client goes away.
///
/// # Errors
/// [`ApiError`] when the tenant may not hold so much.
pub fn download(
    live: Live,
    media_type: &'static str,
    reader: FileReader,
) -> Result<Response, ApiError> {
    let account = live.session.account().clone();
    let pieces = stream::try_unfold((live, reader), |(live, mut reader)| async move {
        match with_guest(&live.session, reader.next_chunk()).await {
            Ok(piece) => Ok(piece.map(|bytes| (bytes, (live, reader)))),
            Err(error) => Err(io::Error::other(error.message().to_owned())),
        }
    });
    let body = counted(&account, pieces)?;
    let headers = [
        (header::CONTENT_TYPE, media_type),
        (header::CACHE_CONTROL, "no-store"),
        // A browser saves it, and shows it by no means.
        (header::CONTENT_DISPOSITION, "attachment"),
    ];
    Ok((headers, body).into_response())
}

/// A body of `pieces` of at most 64 KiB, of which no more than [`HELD`] bytes exist at a time.
fn counted(
    account: &Account,
    pieces: impl Stream<Item = io::Result<Vec<u8>>> + Send + 'static,
) -> Result<Body, Full> {
    let share = Arc::new(account.take(HELD).ok_or(Full)?);
    let (room, pieces) = (Arc::new(Semaphore::new(HELD)), Box::pin(pieces));
    let counted = stream::unfold((pieces, room, share), |(mut pieces, room, share)| async move {
        // For the longest there may be. Nobody closes the semaphore.
        let mut taken = room.clone().acquire_many_owned(LONGEST).await.ok()?;
        let piece = pieces.next().await?.map(|bytes| {
            drop(taken.split(MAX_CHUNK.saturating_sub(bytes.len())));
            held::sent_with(bytes, (taken, share.clone()))
        });
        Some((piece, (pieces, room, share)))
    });
    Ok(Body::from_stream(counted))
}

/// Returns a request's body to read from. It fails when the client goes away, so that a part is not
/// taken for the whole.
pub fn upload(body: Body) -> impl AsyncRead + Unpin + Send {
    StreamReader::new(Box::pin(body.into_data_stream().map_err(io::Error::other)))
}

/// Passes on what a transfer came to. Of one that was refused, it first reads the rest of the body,
/// up to a bound: a client that is still writing would see its connection break instead of the
/// reason.
///
/// # Errors
/// That of `outcome`.
pub async fn settled<T>(
    outcome: Result<T, ApiError>,
    from: &mut (impl AsyncRead + Unpin + Send),
) -> Result<T, ApiError> {
    if outcome.is_err() {
        let (mut rest, mut nowhere) = (from.take(REFUSED_REST), tokio::io::sink());
        let _ = tokio::time::timeout(REFUSED_TIME, tokio::io::copy(&mut rest, &mut nowhere)).await;
    }
    outcome
}

#[cfg(test)]
mod tests {
    use mayfly_api::TenantName;

    use super::*;
    use crate::service::shares::Shares;

    #[tokio::test]
    async fn what_a_client_does_not_read_of_a_download_is_bounded_and_counts() {
        let account = Shares::new(HELD + 1, []).account(&TenantName::local(), None);
        let pieces = |length| stream::repeat(()).map(move |()| Ok(vec![7; length]));
        for length in [1000, MAX_CHUNK] {
            let body = counted(&account, pieces(length)).unwrap();
            counted(&account, pieces(length)).unwrap_err();
            let mut body = body.into_data_stream();
            let mut unread = Vec::new();
            while let Some(piece) = futures::FutureExt::now_or_never(body.next()) {
                unread.push(piece.unwrap().unwrap());
                assert!(unread.len() * length <= HELD);
            }
            assert!((unread.len() + 1) * length > HELD - MAX_CHUNK, "{}", unread.len());
            // One that is read makes room for the next.
            unread.pop();
            unread.push(body.next().await.unwrap().unwrap());
            drop(body);
            assert_eq!(account.held(), HELD);
            drop(unread);
            assert_eq!(account.held(), 0);
        }
    }
}
