//! The front end, asked as E2B's SDKs do.

use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{Plan, Reason, check, command, rate};
use crate::error::{BenchError, io};
use crate::load::Daemon;

const NAME: &str = "E2B";
/// The flag of the last envelope of a stream, and the bytes of the head of each.
const END: u8 = 2;
const HEAD: usize = 5;

/// Host and port, and the key, that the daemon has told in its first words, as variables of E2B's SDKs.
///
/// # Errors
/// [`BenchError::Daemon`] when it has told none.
pub fn address_of(daemon: &Daemon) -> Result<(String, String), BenchError> {
    let none = || BenchError::Daemon("told no address for E2B's clients".to_owned());
    let log = daemon.log().ok_or_else(none)?;
    let text = std::fs::read_to_string(&log).map_err(io("read", &log))?;
    let value = |name: &str| {
        let words =
            text.lines().filter(|line| line.starts_with("export ")).flat_map(str::split_whitespace);
        words
            .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            .map(str::to_owned)
            .next()
    };
    let url = value("E2B_API_URL").ok_or_else(none)?;
    let address = url.strip_prefix("http://").ok_or_else(none)?.to_owned();
    Ok((address, value("E2B_API_KEY").ok_or_else(none)?))
}

/// A client with one connection.
pub struct E2b {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
    key: String,
    create: String,
    plan: Plan,
    /// Proves that commands may be run in the last sandbox.
    envd_token: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    #[serde(rename = "sandboxID")]
    id: String,
    envd_access_token: String,
}

fn failed(error: impl Into<Reason>) -> BenchError {
    super::failed(NAME, error)
}

#[derive(Deserialize)]
struct Answer {
    event: Event,
}

/// What counts of an event.
#[derive(Deserialize)]
struct Event {
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    stdout: Option<String>,
}

impl E2b {
    pub async fn connect(address: &str, key: &str, plan: &Plan) -> Result<Self, BenchError> {
        let authority = address.to_owned();
        let stream = TcpStream::connect(&authority).await.map_err(io("connect to", &authority))?;
        stream.set_nodelay(true).map_err(io("use the connection to", &authority))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        tokio::spawn(connection);
        Ok(Self {
            sender,
            authority,
            key: key.to_owned(),
            create: json!({ "templateID": plan.golden, "timeout": 300 }).to_string(),
            plan: plan.clone(),
            envd_token: String::new(),
        })
    }

    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Response<Incoming>, BenchError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.authority)
            .header("x-api-key", &self.key);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).map_err(failed)?;
        self.sender.ready().await.map_err(failed)?;
        self.sender.send_request(request).await.map_err(failed)
    }

    pub async fn create(&mut self) -> Result<String, BenchError> {
        let json = [("content-type", "application/json")];
        let body = self.create.clone().into();
        let response = self.ask(Method::POST, "/v2/sandboxes", &json, body).await?;
        let body = expect(response, StatusCode::CREATED).await?;
        let created: Created = serde_json::from_slice(&body).map_err(failed)?;
        self.envd_token = created.envd_access_token;
        Ok(created.id)
    }

    pub async fn kill(&mut self, id: &str) -> Result<(), BenchError> {
        let path = format!("/sandboxes/{id}");
        let response = self.ask(Method::DELETE, &path, &[], Bytes::new()).await?;
        expect(response, StatusCode::NO_CONTENT).await.map(drop)
    }

    /// Returns the MiB/s of a command's output, over a stream of envelopes.
    pub async fn output(&mut self, id: &str) -> Result<f64, BenchError> {
        let process = json!({ "cmd": "/bin/bash", "args": ["-l", "-c", command(&self.plan)] });
        let begun = Instant::now();
        let request = enveloped(&json!({ "process": process }));
        let token = self.envd_token.clone();
        let headers = [
            ("content-type", "application/connect+json"),
            ("connect-protocol-version", "1"),
            ("e2b-sandbox-id", id),
            ("e2b-sandbox-port", "49983"),
            ("x-access-token", &token),
            // Of `root`, whom every golden has.
            ("authorization", "Basic cm9vdDo="),
        ];
        let response = self.ask(Method::POST, "/process.Process/Start", &headers, request).await?;
        if response.status() != StatusCode::OK {
            return Err(expect(response, StatusCode::OK)
                .await
                .err()
                .unwrap_or_else(|| failed("?")));
        }
        let bytes = told(response.into_body()).await?;
        let rate = rate(bytes, begun);
        check(NAME, bytes, &self.plan)?;
        Ok(rate)
    }
}

async fn expect(response: Response<Incoming>, wanted: StatusCode) -> Result<Bytes, BenchError> {
    let status = response.status();
    let body = response.into_body().collect().await.map_err(failed)?.to_bytes();
    if status == wanted {
        return Ok(body);
    }
    let said = String::from_utf8_lossy(&body);
    Err(failed(format!(
        "{status} instead of {wanted}: {}",
        said.chars().take(300).collect::<String>()
    )))
}

fn enveloped(message: &Value) -> Bytes {
    let text = message.to_string();
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    [&[0], &length.to_be_bytes()[..], text.as_bytes()].concat().into()
}

/// Reads a stream of envelopes to its end; the bytes of stdout in it.
async fn told(mut body: Incoming) -> Result<u64, BenchError> {
    let (mut pending, mut bytes) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(failed)?.into_data() else { continue };
        pending.extend_from_slice(&piece);
        let mut rest = &pending[..];
        while let Some((flags, message, after)) = envelope(rest) {
            if flags & END != 0 {
                let end: Value = serde_json::from_slice(message).map_err(failed)?;
                return end.get("error").map_or(Ok(bytes), |error| Err(failed(error.to_string())));
            }
            let answer: Answer = serde_json::from_slice(message).map_err(failed)?;
            if let Some(text) = answer.event.data.and_then(|data| data.stdout) {
                bytes += STANDARD.decode(text).map_err(failed)?.len() as u64;
            }
            rest = after;
        }
        let used = pending.len() - rest.len();
        pending.drain(..used);
    }
    Err(failed("the stream broke off"))
}

/// The first envelope of `bytes`, if it is all there: its flags, its message, what follows.
fn envelope(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    let (message, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some((head[0], message, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_is_read_when_it_is_whole() {
        let whole = enveloped(&json!({"a": 1}));
        let two = [&whole[..], b"x"].concat();
        assert_eq!(envelope(&two), Some((0, &b"{\"a\":1}"[..], &b"x"[..])));
        for cut in 0..whole.len() {
            assert_eq!(envelope(&whole[..cut]), None);
        }
    }
}
