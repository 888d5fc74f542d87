//! `GET /files`: the content of a file.

use axum::Json;
use axum::body::Body;
use axum::extract::RawQuery;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::{Stream, StreamExt as _, stream};
use mayfly_daemon::http::transfer;
use serde_json::json;
use std::io::Write as _;
use url::form_urlencoded;

use super::call::In;
use super::filesystem::path_of;
use super::guest_user;
use crate::connect::{Code, ConnectError};

/// What a request for a file names in its query.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Named {
    pub path: Option<String>,
    pub user: Option<String>,
}

impl Named {
    pub fn parse(query: Option<&str>) -> Result<Self, ConnectError> {
        let mut named = Self::default();
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            match &*name {
                "path" => named.path = Some(value.into_owned()),
                "username" => named.user = guest_user::checked(value.into_owned())?,
                _ => {}
            }
        }
        Ok(named)
    }
}

/// Error of a request for a file: the status once more in the body, and a message.
#[derive(Debug)]
pub(super) struct FileError(pub ConnectError);

impl<E: Into<ConnectError>> From<E> for FileError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for FileError {
    fn into_response(self) -> Response {
        if self.0.is_gone() {
            return self.0.into_response();
        }
        let status = match self.0.code() {
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::ResourceExhausted if self.0.is_disk_full() => StatusCode::INSUFFICIENT_STORAGE,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::InvalidArgument | Code::FailedPrecondition | Code::AlreadyExists => {
                StatusCode::BAD_REQUEST
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let body = json!({ "code": status.as_u16(), "message": self.0.message() });
        (status, Json(body)).into_response()
    }
}

/// Part of a file that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Range {
    /// From this byte to that, the last one included.
    FromTo(u64, u64),
    From(u64),
    /// So many at the end.
    Last(u64),
}

impl Range {
    /// Reads the header `Range` (RFC 9110, section 14.2). What is no single range of bytes is no
    /// range, which is allowed.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(header::RANGE)?.to_str().ok()?;
        let (from, to) = text.strip_prefix("bytes=")?.trim().split_once('-')?;
        match (from, to) {
            ("", last) => Some(Self::Last(last.parse().ok()?)),
            (from, "") => Some(Self::From(from.parse().ok()?)),
            (from, to) => {
                let (from, to) = (from.parse().ok()?, to.parse().ok()?);
                (from <= to).then_some(Self::FromTo(from, to))
            }
        }
    }

    /// The first byte and the number of bytes, of a file of `size`; `None` beyond its end.
    fn within(self, size: u64) -> Option<(u64, u64)> {
        let (from, end) = match self {
            Self::FromTo(from, to) => (from, to.saturating_add(1).min(size)),
            Self::From(from) => (from, size),
            Self::Last(count) => (size.saturating_sub(count), size),
        };
        (from < end).then(|| (from, end - from))
    }
}

pub(crate) async fn download(call: In, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    match content(call, query.as_deref(), &headers).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn content(
    call: In,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response, FileError> {
    let named = Named::parse(query)?;
    let path = named.path.ok_or_else(|| ConnectError::invalid("the query has no path"))?;
    let user = guest_user::resolve(&call, named.user).await?;
    let path = path_of(&path, &user)?;
    let range = Range::of(headers);
    let size = match range {
        Some(_) => Some(call.ask(call.guest().stat_with(path.clone(), FOLLOWED)).await?),
        None => None,
    };
    let size = size.map(|found| found.followed.map_or(found.size, |followed| followed.size));
    let part = match (range, size) {
        (Some(range), Some(size)) => match range.within(size) {
            Some(part) => Some((part, size)),
            None => return Ok(not_within(size)),
        },
        _ => None,
    };
    let ((from, limit), _) = part.unwrap_or(((0, u64::MAX), 0));
    let (_, reader) = call.ask(call.guest().open_read(path, from, limit)).await?;
    let mut response = transfer::download(call.live, "application/octet-stream", reader)
        .map_err(ConnectError::from)?;
    let told = response.headers_mut();
    told.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(((from, length), size)) = part {
        let value = format!("bytes {from}-{}/{size}", from + length - 1);
        if let Ok(value) = HeaderValue::try_from(value) {
            told.insert(header::CONTENT_RANGE, value);
        }
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    } else if wants_gzip(headers) {
        told.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        let (parts, body) = response.into_parts();
        return Ok(Response::from_parts(parts, Body::from_stream(zipped(body.into_data_stream()))));
    }
    Ok(response)
}

const FOLLOWED: mayfly_guest::channel::StatOptions =
    mayfly_guest::channel::StatOptions { follow: true, xattrs: false };

fn not_within(size: u64) -> Response {
    let range = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
    let body = json!({ "code": 416, "message": "the file has no such range" });
    (StatusCode::RANGE_NOT_SATISFIABLE, range, Json(body)).into_response()
}

/// Whether a client asks for gzip alone. Most add it to what they accept without wishing for it, and
/// it costs more time than a connection nearby.
fn wants_gzip(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT_ENCODING).is_some_and(|value| value == "gzip")
}

/// Compresses a stream as it comes. What breaks off stays broken off.
fn zipped<E: Send + 'static>(
    pieces: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, E>> + Send {
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    stream::unfold(Some((Box::pin(pieces), encoder)), |state| async move {
        let (mut pieces, mut encoder) = state?;
        loop {
            match pieces.next().await {
                Some(Ok(bytes)) => {
                    // Into memory, which does not fail.
                    let _ = encoder.write_all(&bytes);
                    if !encoder.get_ref().is_empty() {
                        let out = std::mem::take(encoder.get_mut());
                        return Some((Ok(out.into()), Some((pieces, encoder))));
                    }
                }
                Some(Err(error)) => return Some((Err(error), None)),
                None => return Some((Ok(encoder.finish().unwrap_or_default().into()), None)),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_range_is_a_part_of_the_file() {
        let part = |text: &'static str, size| {
            let headers = [(header::RANGE, HeaderValue::from_static(text))].into_iter().collect();
            Range::of(&headers).map(|range| range.within(size))
        };
        assert_eq!(part("bytes=0-0", 5), Some(Some((0, 1))));
        assert_eq!(part("bytes=2-", 5), Some(Some((2, 3))));
        assert_eq!(part("bytes=-2", 5), Some(Some((3, 2))));
        assert_eq!(part("bytes=-9", 5), Some(Some((0, 5))));
        assert_eq!(part("bytes=3-99", 5), Some(Some((3, 2))));
        assert_eq!(part("bytes=0-18446744073709551615", 5), Some(Some((0, 5))));
        for beyond in ["bytes=5-", "bytes=9-10", "bytes=-0"] {
            assert_eq!(part(beyond, 5), Some(None), "{beyond}");
        }
        for none in ["bytes=3-2", "bytes=0-1,3-4", "bytes=x-", "items=0-1", "bytes=-"] {
            assert_eq!(part(none, 5), None, "{none}");
        }
    }

    #[tokio::test]
    async fn what_is_zipped_comes_back() {
        let pieces = [vec![b'a'; 100_000], vec![], b"end".to_vec()];
        let whole = pieces.concat();
        let source = stream::iter(pieces.map(|piece| Ok::<_, ()>(Bytes::from(piece))));
        let zipped: Vec<_> = zipped(source).map(Result::unwrap).collect().await;
        let zipped = zipped.concat();
        let mut back = Vec::new();
        flate2::read::GzDecoder::new(&zipped[..]).read_to_end(&mut back).unwrap();
        assert!(back == whole && zipped.len() < 1000);
        let broken = stream::iter([Ok(Bytes::from_static(b"x")), Err(())]);
        assert!(super::zipped(broken).any(|piece| async move { piece.is_err() }).await);
    }
}
