//! Connect RPC with JSON, uncompressed: calls with one answer, streams of answers, streams of
//! requests (connectrpc.com, protocol reference, version 1).

mod answers;
mod envelope;
mod error;

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use mayfly_daemon::http::body;
use mayfly_daemon::service::held::Full;
use mayfly_daemon::service::shares::{Account, Share};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use answers::{Answers, ClientGone};
pub use envelope::{Envelope, Envelopes, MAX_MESSAGE};
pub use error::{Code, ConnectError};

/// Media type of streams.
pub const STREAM: &str = "application/connect+json";
const TIMEOUT: HeaderName = HeaderName::from_static("connect-timeout-ms");
/// Digits of a time limit at most, by the protocol.
const TIMEOUT_DIGITS: usize = 10;
/// How long nothing may come of a stream of requests.
const PAUSE: Duration = Duration::from_secs(600);

/// Reads the request of a call with one request and one answer, and what counts its bytes.
///
/// # Errors
/// [`ConnectError`].
pub async fn unary<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    account: &Account,
) -> Result<(T, Share), ConnectError> {
    expect_type(headers, "application/json")?;
    let (bytes, share) = body::read(body, account).await?.into_parts();
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    Ok((parse(text)?, share))
}

/// Answers such a call.
pub fn answer(value: &impl Serialize) -> Response {
    Json(value).into_response()
}

/// Reads the one request of a call with a stream of answers, and what counts its bytes.
///
/// # Errors
/// [`ConnectError`].
pub async fn server_stream<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    account: &Account,
) -> Result<(T, Share), ConnectError> {
    expect_type(headers, STREAM)?;
    let (bytes, share) = body::read(body, account).await?.into_parts();
    let mut envelopes = Envelopes::default();
    envelopes.feed(&bytes);
    match envelopes.next()? {
        Some(Envelope::Message(message)) => Ok((parse(&message)?, share)),
        _ => Err(ConnectError::invalid("the body of the request has no message in an envelope")),
    }
}

/// The requests of a call with a stream of them.
#[derive(Debug)]
pub struct Requests {
    body: Body,
    envelopes: Envelopes,
    share: Share,
}

impl Requests {
    /// Reads them from the body of a request.
    ///
    /// # Errors
    /// [`ConnectError`] for another type of content.
    pub fn new(headers: &HeaderMap, body: Body, account: &Account) -> Result<Self, ConnectError> {
        expect_type(headers, STREAM)?;
        let share = account.take(0).ok_or(Full)?;
        Ok(Self { body, envelopes: Envelopes::default(), share })
    }

    /// Waits for the next; `None` at the end.
    ///
    /// # Errors
    /// [`ConnectError`], also when none comes for ten minutes or the client goes away.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ConnectError> {
        loop {
            match self.envelopes.next()? {
                Some(Envelope::Message(message)) => return parse(&message).map(Some),
                Some(Envelope::End(_)) => return Ok(None),
                None => {}
            }
            let frame = tokio::time::timeout(PAUSE, self.body.frame()).await;
            let frame = frame.map_err(|_| {
                ConnectError::new(Code::DeadlineExceeded, format!("no input for {PAUSE:?}"))
            })?;
            let Some(frame) = frame else {
                return if self.envelopes.is_empty() {
                    Ok(None)
                } else {
                    Err(ConnectError::invalid("the stream ends in the middle of an envelope"))
                };
            };
            let frame = frame.map_err(|error| {
                ConnectError::new(Code::Canceled, format!("the stream broke off: {error}"))
            })?;
            let Ok(bytes) = frame.into_data() else { continue };
            self.envelopes.feed(&bytes);
            // What is held is at most one message, and what came with its end.
            let more = self.envelopes.len().saturating_sub(self.share.amount());
            if !self.share.grow(more) {
                return Err(Full.into());
            }
        }
    }
}

/// Returns how long a call may take, where its client says so.
///
/// # Errors
/// [`ConnectError`].
pub fn time_limit(headers: &HeaderMap) -> Result<Option<Duration>, ConnectError> {
    let Some(value) = headers.get(TIMEOUT) else { return Ok(None) };
    let digits = value.to_str().ok().filter(|text| (1..=TIMEOUT_DIGITS).contains(&text.len()));
    let millis = digits.and_then(|text| text.parse::<u64>().ok());
    let millis = millis.ok_or_else(|| {
        ConnectError::invalid(format!("{TIMEOUT} must be 1 to {TIMEOUT_DIGITS} digits"))
    })?;
    Ok((millis > 0).then(|| Duration::from_millis(millis)))
}

fn expect_type(headers: &HeaderMap, wanted: &'static str) -> Result<(), ConnectError> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = value.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case(wanted) {
        return Ok(());
    }
    Err(ConnectError::wrong_type(format!(
        "Content-Type must be {wanted}: of the codecs of Connect, JSON alone is spoken here"
    )))
}

fn parse<T: DeserializeOwned>(message: &[u8]) -> Result<T, ConnectError> {
    serde_json::from_slice(message).map_err(|error| ConnectError::invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::http::HeaderValue;
    use bytes::Bytes;
    use futures::stream;
    use mayfly_api::TenantName;
    use mayfly_daemon::service::shares::Shares;
    use serde_json::{Value, json};

    use super::*;

    fn account(bytes: usize) -> Account {
        Shares::new(bytes, []).account(&TenantName::local(), None)
    }

    fn headers(kind: &'static str) -> HeaderMap {
        [(header::CONTENT_TYPE, HeaderValue::from_static(kind))].into_iter().collect()
    }

    fn pieces(bytes: &[u8], length: usize) -> Body {
        let pieces: Vec<_> = bytes.chunks(length).map(Bytes::copy_from_slice).collect();
        Body::from_stream(stream::iter(pieces.into_iter().map(Ok::<_, Infallible>)))
    }

    #[tokio::test]
    async fn requests_are_read_however_they_come() {
        let account = account(1 << 20);
        let values = [json!({"a": 1}), json!({}), json!({"b": "x".repeat(1000)})];
        let bytes: Vec<u8> = values.iter().flat_map(|value| envelope::encode(0, value)).collect();
        for length in [1, 7, 4096] {
            let mut requests =
                Requests::new(&headers(STREAM), pieces(&bytes, length), &account).unwrap();
            for value in &values {
                assert_eq!(requests.next::<Value>().await.unwrap().as_ref(), Some(value));
            }
            assert_eq!(requests.next::<Value>().await.unwrap(), None);
        }
        let mut cut = Requests::new(&headers(STREAM), pieces(&bytes[..20], 6), &account).unwrap();
        cut.next::<Value>().await.unwrap();
        cut.next::<Value>().await.unwrap();
        assert_eq!(cut.next::<Value>().await.unwrap_err().code(), Code::InvalidArgument);
        drop(cut);
        assert_eq!(account.held(), 0);
    }

    #[tokio::test]
    async fn a_message_counts_for_its_tenant() {
        let account = account(10 << 10);
        let bytes = envelope::encode(0, &"x".repeat(11 << 10));
        let mut requests = Requests::new(&headers(STREAM), pieces(&bytes, 1000), &account).unwrap();
        let error = requests.next::<Value>().await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted);
    }

    #[tokio::test]
    async fn only_json_is_spoken() {
        let account = account(1 << 20);
        for kind in ["application/proto", "application/connect+proto", "application/connect+json"] {
            let read = unary::<Value>(&headers(kind), Body::from("{}"), &account).await;
            read.unwrap_err();
        }
        let headers = headers("application/json; charset=utf-8");
        let read = unary::<Value>(&headers, Body::empty(), &account).await;
        assert_eq!(read.unwrap().0, json!({}));
    }

    #[test]
    fn a_time_limit_has_ten_digits_and_0_is_none() {
        let limit = |text: &'static str| {
            time_limit(&[(TIMEOUT, HeaderValue::from_static(text))].into_iter().collect())
        };
        assert_eq!(limit("1500").unwrap(), Some(Duration::from_millis(1500)));
        assert_eq!(limit("0").unwrap(), None);
        for bad in ["", "12345678901", "-1", "x"] {
            limit(bad).unwrap_err();
        }
        assert_eq!(time_limit(&HeaderMap::new()).unwrap(), None);
    }
}
