//! Passes one plain HTTP request on, and its answer back.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use tokio_util::task::AbortOnDropHandle;

use super::super::decision::{Refusal, Target};
use super::body::Body;
use super::outside::{Ending, Upstream};
use crate::hop_by_hop;

/// For the head of an answer; shorter than the time after which an idle client is ended, so that it
/// hears of it.
const ANSWER_LIMIT: Duration = Duration::from_secs(240);
/// Bytes of an answer that are held at a time; bounds its head, too.
const BUFFER: usize = 32 << 10;
const VIA: HeaderValue = HeaderValue::from_static("1.1 mayfly");

/// What older clients send to proxies, and what was answered by us.
const OURS: [HeaderName; 2] = [header::EXPECT, HeaderName::from_static("proxy-connection")];

/// Sends `request` over `upstream` and answers with what comes back.
pub(super) async fn forward(
    request: Request<Incoming>,
    target: &Target,
    upstream: Upstream,
) -> Result<Response<Body>, Refusal> {
    let Upstream { stream, mut ending } = upstream;
    let mut failed = |status, reason: &dyn std::fmt::Display| {
        ending.failed(reason);
        Refusal::new(status, format!("{target} did not answer: {reason}"))
    };
    let request =
        outgoing(request, target).map_err(|error| failed(StatusCode::BAD_REQUEST, &error))?;
    let exchange = async {
        let (mut sender, connection) =
            http1::Builder::new().max_buf_size(BUFFER).handshake(TokioIo::new(stream)).await?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "egress server");
            }
        }));
        Ok::<_, hyper::Error>((sender.send_request(request).await?, connection))
    };
    let (response, connection) = match tokio::time::timeout(ANSWER_LIMIT, exchange).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(failed(StatusCode::BAD_GATEWAY, &error)),
        Err(_) => {
            let reason = format!("no answer within {ANSWER_LIMIT:?}");
            return Err(failed(StatusCode::GATEWAY_TIMEOUT, &reason));
        }
    };
    let (mut parts, body) = response.into_parts();
    strip(&mut parts.headers);
    parts.headers.append(header::VIA, VIA);
    parts.version = Version::HTTP_11;
    Ok(Response::from_parts(parts, Answer { body, ending, _connection: connection }.boxed()))
}

/// The body of an answer. Its connection ends with it, which the engine hears of.
struct Answer {
    body: Incoming,
    ending: Ending,
    _connection: AbortOnDropHandle<()>,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Err(error))) = &frame {
            self.ending.ended(error);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The request as the server sees it: in origin form, and for the host that was checked.
fn outgoing(
    request: Request<Incoming>,
    target: &Target,
) -> Result<Request<Incoming>, hyper::http::Error> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = Uri::builder().path_and_query(path).build()?;
    parts.version = Version::HTTP_11;
    strip(&mut parts.headers);
    let host = if target.port == 80 { target.host.to_string() } else { target.to_string() };
    parts.headers.insert(header::HOST, HeaderValue::try_from(host)?);
    parts.headers.append(header::VIA, VIA);
    Ok(Request::from_parts(parts, body))
}

/// Removes what is meant for the next hop only.
fn strip(headers: &mut HeaderMap) {
    // Not what decides where the message ends or whom it is for.
    hop_by_hop::strip_but(headers, &[header::CONTENT_LENGTH, header::HOST]);
    for name in &OURS {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_the_proxy_stays_with_it() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "X-Own, close, content-length"),
            ("connection", "host"),
            ("x-own", "1"),
            ("keep-alive", "5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic eDp5"),
            ("upgrade", "websocket"),
            ("te", "trailers"),
            ("content-length", "3"),
            ("host", "a"),
            ("accept", "*/*"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-length", "host"]);
    }
}
