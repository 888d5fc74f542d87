//! Contents of any length between a client and a guest, without holding them.

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{TryStreamExt, stream};
use mayfly_guest::channel::FileReader;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::io::StreamReader;

use super::error::ApiError;
use super::extract::Live;
use super::guest::with_guest;

/// Most bytes read of the body of a refused transfer, and the longest time for it.
const REFUSED_REST: u64 = 256 << 20;
const REFUSED_TIME: Duration = Duration::from_secs(10);

/// Answers with content of the guest. A failure in the middle breaks the connection, so that nobody
/// takes a part for the whole. The guest stops when the client goes away.
pub fn download(live: Live, media_type: &'static str, reader: FileReader) -> Response {
    let pieces = stream::try_unfold((live, reader), |(live, mut reader)| async move {
        match with_guest(&live.session, reader.next_chunk()).await {
            Ok(piece) => Ok(piece.map(|bytes| (Bytes::from(bytes), (live, reader)))),
            Err(error) => Err(io::Error::other(error.message().to_owned())),
        }
    });
    let headers = [
        (header::CONTENT_TYPE, media_type),
        (header::CACHE_CONTROL, "no-store"),
        // A browser saves it, and shows it by no means.
        (header::CONTENT_DISPOSITION, "attachment"),
    ];
    (headers, Body::from_stream(pieces)).into_response()
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
