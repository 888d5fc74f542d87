//! `POST /files`: files to write, one as the body itself or several in a form.

use std::io;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, Request};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use flate2::write::GzDecoder;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use mayfly_daemon::http::transfer;
use mayfly_daemon::service::held::Full;
use mayfly_guest::channel::{MAX_XATTR_BYTES, MAX_XATTRS, WriteOptions, Xattr, XattrSet};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write as _;
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;

use super::call::In;
use super::entry::{LABELS, held_bytes};
use super::files::{FileError, Named};
use super::filesystem::path_of;
use super::guest_user;
use super::multipart::{self, File, Form};
use crate::connect::ConnectError;

/// Headers whose names go on with that of a label.
const LABEL: &str = "x-metadata-";
/// Most files of one form.
const MOST_FILES: usize = 4096;
/// Bytes that one piece of compressed content may become before it is passed on.
const UNZIPPED: usize = 1 << 20;
/// Longest time for which the rest of a form is read that was refused.
const REFUSED_TIME: Duration = Duration::from_secs(10);

/// What a client is told of a file that was written.
#[derive(Debug, Serialize)]
struct WriteInfo {
    path: String,
    name: String,
    r#type: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

pub(crate) async fn upload(call: In, RawQuery(query): RawQuery, request: Request) -> Response {
    match written(&call, query.as_deref(), request).await {
        Ok(files) => Json(files).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn written(
    call: &In,
    query: Option<&str>,
    request: Request,
) -> Result<Vec<WriteInfo>, FileError> {
    let (head, body) = request.into_parts();
    let named = Named::parse(query)?;
    let user = guest_user::resolve(call, named.user).await?;
    let labels = labels(&head.headers)?;
    let to = To { call, user, labels };
    let kind = head.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.unwrap_or_default();
    if kind.starts_with("multipart/form-data") {
        return form(&to, kind, body, named.path).await;
    }
    if kind.split(';').next().unwrap_or_default().trim() != "application/octet-stream" {
        let message = "Content-Type must be multipart/form-data or application/octet-stream";
        return Err(ConnectError::invalid(message).into());
    }
    let path = named.path.ok_or_else(|| ConnectError::invalid("the query has no path"))?;
    let encoding = head.headers.get(header::CONTENT_ENCODING);
    let file = match encoding.map(HeaderValue::as_bytes) {
        None | Some(b"identity") => {
            let mut from = transfer::upload(body);
            let outcome = to.write(&path, &mut from).await;
            settled(outcome, &mut from).await?
        }
        Some(b"gzip") => {
            let _held = call.session().account().take(2 * UNZIPPED).ok_or(Full)?;
            let pieces = body.into_data_stream().map_err(io::Error::other);
            let mut from = StreamReader::new(Box::pin(unzipped(pieces)));
            let outcome = to.write(&path, &mut from).await;
            settled(outcome, &mut from).await?
        }
        Some(_) => {
            let message = "Content-Encoding must be gzip or identity";
            return Err(ConnectError::invalid(message).into());
        }
    };
    Ok(vec![file])
}

/// Of an upload that was refused the rest is read first, up to a bound: a client that is still
/// writing would see its connection break instead of the reason.
async fn settled<T>(
    outcome: Result<T, FileError>,
    from: &mut (impl AsyncRead + Unpin + Send),
) -> Result<T, FileError> {
    if outcome.is_err() {
        let refused = mayfly_daemon::http::error::ApiError::bad_request("refused");
        let _ = transfer::settled(Err::<(), _>(refused), from).await;
    }
    outcome
}

async fn form(
    to: &To<'_>,
    kind: &str,
    body: Body,
    path: Option<String>,
) -> Result<Vec<WriteInfo>, FileError> {
    let _held = to.call.session().account().take(multipart::HELD).ok_or(Full)?;
    let bad = |error: multipart::FormError| FileError(ConnectError::invalid(error.to_string()));
    let mut form = Form::new(kind, body).map_err(bad)?;
    let outcome = async {
        let (mut files, mut kept) = (Vec::new(), Vec::new());
        while let Some(file) = form.next().await.map_err(bad)? {
            if files.len() == MOST_FILES {
                let message = format!("a form has at most {MOST_FILES} files");
                return Err(ConnectError::invalid(message).into());
            }
            let own = file.path().filter(|path| !path.is_empty()).map(ToOwned::to_owned);
            let path = match (&path, own) {
                // The query's is for one file, whatever that is called.
                (Some(_), _) if !files.is_empty() => {
                    let message = "the query has a path, which is for one file; the form has more";
                    return Err(ConnectError::invalid(message).into());
                }
                (Some(path), _) => path.clone(),
                (None, Some(own)) => own,
                (None, None) => {
                    let message = "a file of the form has no name, which is to be its path";
                    return Err(ConnectError::invalid(message).into());
                }
            };
            let mut from = StreamReader::new(Box::pin(content(file)));
            let info = to.write(&path, &mut from).await?;
            kept.push(to.call.session().account().take(held_bytes(&info)).ok_or(Full)?);
            files.push(info);
        }
        if files.is_empty() {
            return Err(ConnectError::invalid("the form has no field `file`").into());
        }
        Ok(files)
    };
    let outcome: Result<_, FileError> = outcome.await;
    if outcome.is_err() {
        let rest = async { while let Ok(Some(_)) = form.next().await {} };
        let _ = tokio::time::timeout(REFUSED_TIME, rest).await;
    }
    outcome
}

fn content(file: File) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold(file, |mut file| async move {
        let chunk = file.chunk().await.map_err(io::Error::other)?;
        Ok(chunk.map(|chunk| (chunk, file)))
    })
}

/// Decompresses a stream as it comes, no more at a time than [`UNZIPPED`] bytes.
fn unzipped(
    pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    // A byte may become a thousand.
    const SLICE: usize = UNZIPPED / 1100;
    let slices = pieces.flat_map(|piece| {
        let slices: Vec<io::Result<Bytes>> = match piece {
            Ok(piece) => (0..piece.len())
                .step_by(SLICE)
                .map(|at| Ok(piece.slice(at..(at + SLICE).min(piece.len()))))
                .collect(),
            Err(error) => vec![Err(error)],
        };
        stream::iter(slices)
    });
    stream::unfold(Some((Box::pin(slices), GzDecoder::new(Vec::new()))), |state| async move {
        let (mut slices, mut decoder) = state?;
        loop {
            let slice = match slices.next().await {
                Some(Ok(slice)) => slice,
                Some(Err(error)) => return Some((Err(error), None)),
                None => return Some((decoder.finish().map(Bytes::from), None)),
            };
            if let Err(error) = decoder.write_all(&slice) {
                return Some((Err(error), None));
            }
            if !decoder.get_ref().is_empty() {
                let out = std::mem::take(decoder.get_mut());
                return Some((Ok(out.into()), Some((slices, decoder))));
            }
        }
    })
}

/// Labels of the files of a request, which replace those that they have.
fn labels(headers: &HeaderMap) -> Result<BTreeMap<String, String>, ConnectError> {
    let mut labels = BTreeMap::new();
    let mut bytes = 0;
    for (name, value) in headers {
        let Some(label) = name.as_str().strip_prefix(LABEL) else { continue };
        let value = value.to_str().map_err(|_| {
            ConnectError::invalid(format!("{name} has other characters than printable ASCII"))
        })?;
        if label.is_empty() {
            return Err(ConnectError::invalid(format!("{LABEL} is to be followed by a name")));
        }
        bytes += LABELS.len() + label.len() + value.len();
        labels.insert(label.to_owned(), value.to_owned());
    }
    if labels.len() > MAX_XATTRS || bytes > MAX_XATTR_BYTES {
        return Err(ConnectError::invalid(format!(
            "a file may have {MAX_XATTRS} labels of {MAX_XATTR_BYTES} bytes together"
        )));
    }
    Ok(labels)
}

/// Where files go, and what they get.
struct To<'a> {
    call: &'a In,
    user: String,
    labels: BTreeMap<String, String>,
}

impl To<'_> {
    async fn write(
        &self,
        path: &str,
        from: &mut (impl AsyncRead + Unpin + Send),
    ) -> Result<WriteInfo, FileError> {
        if path.is_empty() {
            return Err(ConnectError::invalid("the path is empty").into());
        }
        let attributes = self.labels.iter().map(|(name, value)| Xattr {
            name: format!("{LABELS}{name}").into(),
            value: value.as_str().into(),
        });
        let options = WriteOptions {
            mode: None,
            in_place: true,
            parents: true,
            xattrs: Some(XattrSet { prefix: LABELS.into(), attributes: attributes.collect() }),
        };
        let at = path_of(path, &self.user)?;
        let written = self.call.ask(self.call.guest().write_with(at, options, from)).await?;
        let path = String::from_utf8_lossy(written.path.as_bytes()).into_owned();
        Ok(WriteInfo {
            name: path.rsplit('/').next().unwrap_or_default().to_owned(),
            path,
            r#type: "file",
            metadata: self.labels.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn labels_are_headers() {
        let all = labels(&headers(&[("x-metadata-a-b", "1"), ("x-other", "2")])).unwrap();
        assert_eq!(all, [("a-b".to_owned(), "1".to_owned())].into());
        labels(&headers(&[("x-metadata-", "1")])).unwrap_err();
        let many = (0..=MAX_XATTRS).map(|n| {
            let name = HeaderName::try_from(format!("x-metadata-{n}")).unwrap();
            (name, HeaderValue::from_static("x"))
        });
        labels(&many.collect()).unwrap_err();
    }

    #[tokio::test]
    async fn what_was_zipped_comes_back_in_small_pieces() {
        let whole = vec![0; 64 << 20];
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&whole).unwrap();
        let zipped = Bytes::from(encoder.finish().unwrap());
        let once = |bytes: Bytes| stream::iter([Ok(bytes)]);
        let mut pieces = Box::pin(unzipped(once(zipped.clone())));
        let mut length = 0;
        while let Some(piece) = pieces.next().await {
            let piece = piece.unwrap();
            assert!(piece.len() <= 2 * UNZIPPED, "{} bytes at once", piece.len());
            length += piece.len();
        }
        assert_eq!(length, whole.len());
        for bad in [zipped.slice(..zipped.len() / 2), Bytes::from_static(b"no gzip at all")] {
            let failed = unzipped(once(bad)).any(|piece| async move { piece.is_err() });
            assert!(failed.await);
        }
    }
}
