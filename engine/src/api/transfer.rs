//! Contents of any length between a client and a guest, without holding them.

use std::io;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{TryStreamExt, stream};
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;

use super::extract::Live;
use super::guest::with_guest;
use crate::channel::FileReader;

/// Answers with content of the guest. A failure in the middle breaks the connection, so that nobody takes a part for the
/// whole. The guest stops when the client goes away.
pub fn download(live: Live, media_type: &'static str, reader: FileReader) -> Response {
    let pieces = stream::try_unfold((live, reader), |(live, mut reader)| async move {
        match with_guest(&live.session, reader.next_chunk()).await {
            Ok(piece) => Ok(piece.map(|bytes| (Bytes::from(bytes), (live, reader)))),
            Err(error) => Err(io::Error::other(error.message().to_owned())),
        }
    });
    let headers = [(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(pieces)).into_response()
}

/// A request's body to read from. It fails when the client goes away, so that a part is not taken for the whole.
pub fn upload(body: Body) -> impl AsyncRead + Unpin + Send {
    StreamReader::new(Box::pin(body.into_data_stream().map_err(io::Error::other)))
}
