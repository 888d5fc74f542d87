//! The front end over a real service without any golden image: who may ask, what is refused, and in
//! which words.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::http::StatusCode;
use mayfly_api::TenantName;
use mayfly_daemon::http::{self, Listeners};
use mayfly_daemon::service::config::TenantConfig;
use mayfly_daemon::service::{Service, ServiceConfig};
use mayfly_engine::Engine;
use mayfly_host::layout::Layout;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::*;

const KEY: &str = "e2b_00112233445566778899aabbccddeeff00112233";

struct Daemon {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
    _dir: tempfile::TempDir,
}

impl Daemon {
    /// Serves over TCP, with a key of one tenant.
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("home"), dir.path().join("run"));
        let tenant = TenantConfig::new(TenantName::new("red").unwrap(), KEY);
        let config = ServiceConfig { tenants: vec![tenant], ..ServiceConfig::default() };
        let engine = Arc::new(Engine::open(layout).await.unwrap());
        let service = Service::start(engine, config).await.unwrap();
        let listeners =
            Listeners::new().tcp((Ipv4Addr::LOCALHOST, 0).into(), &service).await.unwrap();
        let address = listeners.address().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let front_ends = vec![front_end(service.clone(), Settings::default())];
        tokio::spawn(http::serve(service, listeners, front_ends, async { drop(stopped.await) }));
        Self { address, _stop: stop, _dir: dir }
    }

    /// Asks; returns the status and the body.
    async fn ask(&self, target: &str, headers: &[(&str, &str)], body: &str) -> (StatusCode, Value) {
        let mut head = format!("{target} HTTP/1.1\r\nconnection: close\r\n");
        if headers.iter().all(|(name, _)| *name != "host") {
            head += &format!("host: {}\r\n", self.address);
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn only_holders_of_a_key_are_answered_and_errors_have_numbers() {
    let daemon = Daemon::start().await;
    let key = [("x-api-key", KEY)];
    let bearer = format!("Bearer {KEY}");
    for wrong in [&[][..], &[("x-api-key", "e2b_00")], &[("authorization", "Bearer x")]] {
        let (status, body) = daemon.ask("GET /v2/sandboxes", wrong, "").await;
        assert_eq!((status, &body["code"]), (StatusCode::UNAUTHORIZED, &json!(401)));
    }
    for right in [key, [("authorization", &*bearer)]] {
        assert_eq!(daemon.ask("GET /v2/sandboxes", &right, "").await, (StatusCode::OK, json!([])));
    }
    for (target, body, wanted, word) in [
        ("POST /v2/sandboxes", r#"{"templateID": "x"}"#, 404, "template 'x' was not found"),
        ("POST /sandboxes", r#"{"templateID": "x", "autoPause": true}"#, 501, "autoPause"),
        ("POST /sandboxes", r#"{"metadata": {"a": 1}}"#, 400, "body"),
        ("POST /sandboxes", "{", 400, "body"),
        ("GET /templates/aliases/x:y", "", 404, "was not found"),
        ("GET /sandboxes/0123456789abcdef", "", 404, "was not found"),
        ("DELETE /sandboxes/0123456789abcdef", "", 404, "was not found"),
        ("POST /sandboxes/0123456789abcdef/pause", "", 501, "paused"),
        ("POST /v3/templates", "{}", 501, "golden build"),
        ("GET /volumes", "", 501, "not implemented"),
        ("GET /v2/sandboxes?limit=0", "", 400, "limit"),
        ("PATCH /v2/sandboxes", "", 405, "method"),
    ] {
        let (status, said) = daemon.ask(target, &key, body).await;
        assert_eq!(status.as_u16(), wanted, "{target}: {said}");
        assert_eq!(said["code"], wanted, "{target}");
        assert!(said["message"].as_str().unwrap().contains(word), "{target}: {said}");
    }
    assert_eq!(daemon.ask("GET /health", &[], "").await.0, StatusCode::OK);
    // The daemon's own API is beside it, as it was.
    let (status, said) = daemon.ask("GET /v1/sessions", &[], "").await;
    assert_eq!((status, &said["code"]), (StatusCode::UNAUTHORIZED, &json!("unauthorized")));
    assert_eq!(daemon.ask("GET /v1/sessions", &[("authorization", &bearer)], "").await.0, 200);
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_sandbox_that_is_not_there_is_said_in_the_words_that_clients_know() {
    let daemon = Daemon::start().await;
    let by_header = [("e2b-sandbox-id", "nobody"), ("e2b-sandbox-port", "49983")];
    let by_name = [("host", "8000-0123456789abcdef.sandbox.example")];
    for (target, headers) in [
        ("GET /health", &by_header[..]),
        ("POST /process.Process/List", &by_header),
        ("GET /files?path=x", &by_header),
        ("GET /whatever", &by_name),
    ] {
        let (status, said) = daemon.ask(target, headers, "").await;
        assert_eq!((status, &said["code"]), (StatusCode::BAD_GATEWAY, &json!(502)), "{target}");
        assert_eq!(said["message"], "The sandbox was not found", "{target}");
    }
    let link = "GET /files?path=x&signature=v1_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    for target in ["GET /files?path=x", link] {
        assert_eq!(daemon.ask(target, &[], "").await.0, StatusCode::UNAUTHORIZED, "{target}");
    }
}
