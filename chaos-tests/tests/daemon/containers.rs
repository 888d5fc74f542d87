//! Servers in a session: its ports, and its Docker daemon by every way there is.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use mayfly_api::{CreateSession, Exec, SessionInfo};
use mayfly_chaos_tests::daemon::Daemon;
use mayfly_chaos_tests::slots;
use mayfly_client::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{SMALL_POOL, client, gone, refusal, request, sh, until};

#[tokio::test(flavor = "multi_thread")]
async fn ports_and_docker_are_reached_over_http_over_upgrades_and_over_a_socket_of_this_host() {
    let _all = slots::take(slots::ALL);
    let daemon = Daemon::start(SMALL_POOL, &[]);
    let client = client(&daemon);
    let session =
        client.create(&CreateSession { wait_docker: true, ..request() }, None).await.unwrap();
    ports(&client, &session.id).await;
    docker(&client, &session.id).await;
    attached_container(&client, &session.id).await;
    host_socket(&session);
    client.kill(&session.id).await.unwrap();
    assert!(!session.docker_socket.exists());
    let after = client.docker(&session.id, Method::GET, "/_ping", "").await.unwrap();
    assert_eq!(after.status(), StatusCode::GONE);
    assert_eq!(refusal(client.docker_upgrade(&session.id, "/session", "h2c", "").await), gone());
    daemon.stop();
}

fn get(path: &str) -> Request<Bytes> {
    Request::get(path).body(Bytes::new()).unwrap()
}

async fn ports(client: &Client, id: &str) {
    let refused = client.port(id, 8080, get("/name")).await.unwrap();
    assert_eq!(refused.status(), StatusCode::BAD_GATEWAY, "{refused:?}");
    sh(client, id, "mkdir /tmp/www; hostname >/tmp/www/name").await;
    let server = Exec::new(["busybox", "httpd", "-f", "-p", "127.0.0.1:8080", "-h", "/tmp/www"]);
    client.start_background(id, &server).await.unwrap();
    let answer = until("a server in the guest", || async {
        let answer = client.port(id, 8080, get("/name")).await.unwrap();
        (answer.status() != StatusCode::BAD_GATEWAY).then_some(answer)
    })
    .await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(String::from_utf8_lossy(answer.body()).trim_end(), sh(client, id, "hostname").await);
    // The server's own refusal, not ours.
    assert_eq!(
        client.port(id, 8080, get("/nothing")).await.unwrap().status(),
        StatusCode::NOT_FOUND
    );
}

async fn call(
    client: &Client,
    id: &str,
    method: Method,
    path: &str,
    body: &Value,
) -> (StatusCode, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = client.docker(id, method, path, body).await.unwrap();
    (answer.status(), serde_json::from_slice(answer.body()).unwrap_or_default())
}

async fn docker(client: &Client, id: &str) {
    let ping = client.docker(id, Method::GET, "/_ping", "").await.unwrap();
    assert_eq!((ping.status(), &ping.body()[..]), (StatusCode::OK, &b"OK"[..]));
    let (status, images) = call(client, id, Method::GET, "/v1.41/images/json", &Value::Null).await;
    assert_eq!((status, &images[0]["RepoTags"][0]), (StatusCode::OK, &json!("busybox:latest")));
    // Docker's own refusals come through as they are.
    let (status, refusal) =
        call(client, id, Method::GET, "/v1.41/containers/nothing/json", &Value::Null).await;
    assert!(
        status == StatusCode::NOT_FOUND && refusal["message"].as_str().unwrap().contains("nothing"),
        "{refusal}"
    );
}

/// What `docker run -i` does: both ways over one upgraded connection.
async fn attached_container(client: &Client, id: &str) {
    let config = json!({
        "Image": "busybox", "Cmd": ["tr", "a-z", "A-Z"], "OpenStdin": true, "StdinOnce": true, "AttachStdin": true,
        "NetworkDisabled": true,
    });
    let (status, made) = call(client, id, Method::POST, "/v1.41/containers/create", &config).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let container = format!("/v1.41/containers/{}", made["Id"].as_str().unwrap());
    let attach = format!("{container}/attach?stream=1&stdin=1&stdout=1");
    let mut tunnel = client.docker_upgrade(id, &attach, "tcp", "").await.unwrap();
    let (status, said) =
        call(client, id, Method::POST, &format!("{container}/start"), &Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "{said}");
    tunnel.write_all(b"both ways\n").await.unwrap();
    tunnel.flush().await.unwrap();
    tunnel.shutdown().await.unwrap();
    // Docker's framing of output: the stream's number, three zeros, the length.
    let mut frame = Vec::new();
    tunnel.read_to_end(&mut frame).await.unwrap();
    assert_eq!(frame, b"\x01\0\0\0\0\0\0\x0aBOTH WAYS\n");
    let (status, ended) =
        call(client, id, Method::POST, &format!("{container}/wait"), &Value::Null).await;
    assert_eq!((status, &ended["StatusCode"]), (StatusCode::OK, &json!(0)));
}

/// What `DOCKER_HOST` of stock clients names.
fn host_socket(session: &SessionInfo) {
    let mode = std::fs::metadata(&session.docker_socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut stream = UnixStream::connect(&session.docker_socket).unwrap();
    stream.write_all(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("OK"), "{answer}");
}
