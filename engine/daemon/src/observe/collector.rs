//! The HTTP client that brings traces to a collector.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderValue};
use hyper::http::uri::{PathAndQuery, Uri};
use hyper_util::rt::TokioIo;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response, ResponseBodyTooLarge};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};

/// The longest answer that is read, in bytes: what the exporter's other clients accept.
const ANSWER_LIMIT: usize = 4 << 20;

/// A request that got no answer.
#[derive(Debug, thiserror::Error)]
enum CollectorError {
    #[error("the collector did not answer within {0:?}")]
    Late(Duration),
    #[error("{0} names no host")]
    NoHost(Uri),
    #[error("cannot connect to {host} port {port}: {cause}")]
    Connect { host: String, port: u16, cause: io::Error },
}

/// Sends each request over a connection of its own and waits for the answer in the thread that
/// asks: the exporter has one that does nothing else. It must not be a thread of an async runtime.
#[derive(Debug)]
pub(super) struct CollectorClient {
    runtime: Runtime,
    limit: Duration,
}

impl CollectorClient {
    /// Creates a client; `limit` bounds a request as a whole, from looking up the host's name to
    /// the end of the answer.
    pub fn new(limit: Duration) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        Ok(Self { runtime, limit })
    }
}

#[async_trait]
impl HttpClient for CollectorClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        self.runtime.block_on(async {
            tokio::time::timeout(self.limit, exchange(request))
                .await
                .map_err(|_| CollectorError::Late(self.limit))?
        })
    }
}

async fn exchange(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let (mut parts, body) = request.into_parts();
    let (host, port, named) =
        target(&parts.uri).ok_or_else(|| CollectorError::NoHost(parts.uri.clone()))?;
    parts.headers.insert(header::HOST, HeaderValue::from_str(named)?);
    let host = host.to_owned();
    // A request to the server itself names the path alone (RFC 9112, section 3.2.1).
    parts.uri =
        parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")).into();

    let stream = TcpStream::connect((host.as_str(), port))
        .await
        .map_err(|cause| CollectorError::Connect { host, port, cause })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driven = async {
        // What ends the connection early reaches the request, too.
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    let answered = async {
        let (parts, body) =
            sender.send_request(Request::from_parts(parts, Full::new(body))).await?.into_parts();
        let body =
            Limited::new(body, ANSWER_LIMIT).collect().await.map_err(|error| -> HttpError {
                if error.is::<LengthLimitError>() {
                    ResponseBodyTooLarge::new().into()
                } else {
                    error
                }
            })?;
        Ok(Response::from_parts(parts, body.to_bytes()))
    };
    tokio::select! {
        answer = answered => answer,
        never = driven => match never {},
    }
}

/// The host and the port to connect to, and both as the header `Host` has them.
fn target(uri: &Uri) -> Option<(&str, u16, &str)> {
    let authority = uri.authority()?.as_str();
    // Brackets around an IPv6 address belong to the URI.
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    let named = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    Some((host, uri.port_u16().unwrap_or(80), named))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread::JoinHandle;

    use futures::FutureExt;

    /// No test waits that long unless it fails.
    const LONG: Duration = Duration::from_secs(60);

    /// Takes one request, answers it, and returns it.
    fn collector(answer: impl FnOnce(TcpStream) + Send + 'static) -> (String, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"spans") {
                let mut piece = [0; 1024];
                let read = stream.read(&mut piece).unwrap();
                assert!(read > 0, "the request ends early: {request:?}");
                request.extend_from_slice(&piece[..read]);
            }
            answer(stream);
            String::from_utf8(request).unwrap().to_ascii_lowercase()
        });
        (endpoint, thread)
    }

    fn post(limit: Duration, uri: &str) -> Result<Response<Bytes>, HttpError> {
        let request =
            Request::post(uri).header("x-key", "7").body(Bytes::from_static(b"spans")).unwrap();
        CollectorClient::new(limit)
            .unwrap()
            .send_bytes(request)
            .now_or_never()
            .expect("it waits in this thread")
    }

    #[test]
    fn the_request_arrives_and_the_whole_answer_comes_back() {
        let (endpoint, thread) = collector(|mut stream| {
            stream
                .write_all(b"HTTP/1.1 503 Busy\r\nretry-after: 9\r\ncontent-length: 5\r\n\r\nla")
                .unwrap();
            stream.write_all(b"ter").unwrap();
        });
        let answer = post(LONG, &format!("{endpoint}/v1/traces?a=b")).unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["retry-after"]),
            (503, &"9".parse().unwrap())
        );
        assert_eq!(answer.body().as_ref(), b"later");
        let request = thread.join().unwrap();
        assert!(request.starts_with("post /v1/traces?a=b http/1.1\r\n"), "{request}");
        for header in [format!("host: {}", &endpoint["http://".len()..]), "x-key: 7".to_owned()] {
            assert!(request.contains(&format!("\r\n{header}\r\n")), "{header} in {request}");
        }
    }

    #[test]
    fn hosts_and_ports_are_those_of_the_uri() {
        for (uri, expected) in [
            ("http://collector/v1/traces", ("collector", 80, "collector")),
            ("http://127.0.0.1:4318", ("127.0.0.1", 4318, "127.0.0.1:4318")),
            ("http://[fd00::7]:4318/", ("fd00::7", 4318, "[fd00::7]:4318")),
            ("http://name:secret@collector:1/", ("collector", 1, "collector:1")),
        ] {
            assert_eq!(target(&uri.parse().unwrap()), Some(expected), "{uri}");
        }
    }

    #[test]
    fn an_answer_without_a_length_ends_with_the_connection() {
        let (endpoint, thread) = collector(|mut stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nfine").unwrap();
        });
        assert_eq!(post(LONG, &endpoint).unwrap().body().as_ref(), b"fine");
        assert!(thread.join().unwrap().starts_with("post / http/1.1\r\n"));
    }

    #[test]
    fn endless_answers_are_given_up() {
        let (endpoint, thread) = collector(|mut stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[0; 4096]).is_ok() {}
        });
        let error = post(LONG, &endpoint).unwrap_err();
        assert!(error.is::<ResponseBodyTooLarge>(), "{error}");
        thread.join().unwrap();
    }

    #[test]
    fn silence_and_absence_are_told_apart() {
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let (endpoint, thread) = collector(move |_stream| {
            let _ = wait.recv();
        });
        let error = post(Duration::from_millis(200), &endpoint).unwrap_err();
        assert!(error.to_string().contains("did not answer within 200ms"), "{error}");
        drop(done);
        thread.join().unwrap();

        let (endpoint, thread) = collector(drop);
        let error = post(LONG, &endpoint).unwrap_err();
        assert!(error.is::<hyper::Error>(), "{error}");
        thread.join().unwrap();

        // Bound, so that nobody else takes the port, and not listening.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = socket.local_addr().unwrap().port();
        let error = post(LONG, &format!("http://127.0.0.1:{port}")).unwrap_err();
        assert!(
            error.to_string().contains(&format!("cannot connect to 127.0.0.1 port {port}: ")),
            "{error}"
        );
        assert!(post(LONG, "/v1/traces").unwrap_err().to_string().contains("names no host"));
    }
}
