use std::io;
use std::net::SocketAddr;

use mayfly_client::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::socket::served_with;
use super::*;

/// A connection that keeps alive.
struct Connection(TcpStream);

impl Connection {
    async fn to(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    /// Status and body of an answer; `None` when the connection ends instead.
    async fn ask(&mut self, path: &str, token: Option<&str>) -> Option<(u16, String)> {
        self.try_ask(path, token).await.ok()
    }

    async fn try_ask(&mut self, path: &str, token: Option<&str>) -> io::Result<(u16, String)> {
        let token = token.map(|t| format!("authorization: Bearer {t}\r\n")).unwrap_or_default();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{token}\r\n");
        self.0.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await?);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let length = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        self.0.read_exact(&mut body).await?;
        Ok((head[9..12].parse().unwrap(), String::from_utf8(body).unwrap()))
    }

    /// Returns when the other end has closed it.
    async fn closed(mut self) {
        // A reset is an end, too.
        let _ = self.0.read_to_end(&mut Vec::new()).await;
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn nobody_over_tcp_keeps_the_operator_or_a_token_out() {
    let served = served_with(
        "[connections]\nmax_remote = 12\nmax_unknown = 8\nmax_unknown_per_address = 8\n\
         unknown_for = \"1h\"",
    )
    .await;
    let address = served.address;
    // More than there may be, of whom nobody says anything.
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(Connection::to(address).await);
    }
    assert_eq!(served.client.status().await.unwrap().sessions, 0);
    // All but the last eight had to make room.
    for displaced in silent.drain(..32) {
        displaced.closed().await;
    }
    // And so does the next for one who shows a token.
    let red = Client::tcp(address.to_string(), TOKEN).unwrap();
    red.status().await.unwrap();
    drop(silent);
    served.stop().await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn the_oldest_without_a_token_makes_room() {
    let served = served_with(
        "[connections]\nmax_unknown = 3\nmax_unknown_per_address = 100\nunknown_for = \"1h\"",
    )
    .await;
    let mut known = Connection::to(served.address).await;
    assert_eq!(known.ask("/v1/status", Some(TOKEN)).await.unwrap().0, 200);
    let mut kept = Vec::new();
    let mut oldest = Connection::to(served.address).await;
    // Each of them is there, and none is known by that.
    assert_eq!(oldest.ask("/healthz", None).await.unwrap().0, 200);
    for _ in 0..3 {
        let mut other = Connection::to(served.address).await;
        assert_eq!(other.ask("/v1/status", Some("wrong")).await.unwrap().0, 401);
        kept.push(other);
    }
    oldest.closed().await;
    for other in &mut kept {
        assert_eq!(other.ask("/healthz", None).await.unwrap().0, 200);
    }
    assert_eq!(known.ask("/v1/status", Some(TOKEN)).await.unwrap().0, 200);
    served.stop().await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn without_a_token_a_connection_ends_soon_and_with_one_it_stays() {
    let served = served_with("[connections]\nunknown_for = \"500ms\"").await;
    let mut known = Connection::to(served.address).await;
    assert_eq!(known.ask("/v1/status", Some(TOKEN)).await.unwrap().0, 200);
    let (silent, mut half, mut served_page) = (
        Connection::to(served.address).await,
        Connection::to(served.address).await,
        Connection::to(served.address).await,
    );
    half.0.write_all(b"GET /v1/status HTTP/1.1\r\nhost:").await.unwrap();
    assert_eq!(served_page.ask("/", None).await.unwrap().0, 200);
    silent.closed().await;
    half.closed().await;
    served_page.closed().await;
    assert_eq!(known.ask("/v1/status", Some(TOKEN)).await.unwrap().0, 200);
    // Nor does the Unix socket need one.
    assert!(served.client.is_up().await);
    served.stop().await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_tenant_has_a_bound_on_its_connections() {
    let blue = blake3::hash(b"blue-token");
    let served = served_with(&format!(
        "limits = {{ max_connections = 2 }}\n[[tenants]]\nname = \"blue\"\ntoken_blake3 = \"{blue}\"\n"
    ))
    .await;
    let mut first = Connection::to(served.address).await;
    let mut second = Connection::to(served.address).await;
    for connection in [&mut first, &mut second] {
        assert_eq!(connection.ask("/v1/status", Some(TOKEN)).await.unwrap().0, 200);
    }
    let mut third = Connection::to(served.address).await;
    let (status, body) = third.ask("/v1/status", Some(TOKEN)).await.unwrap();
    assert!(status == 429 && body.contains("too_many_connections"), "{body}");
    third.closed().await;
    // Those it has go on, and others are none of its business.
    assert_eq!(first.ask("/v1/sessions", Some(TOKEN)).await.unwrap().0, 200);
    let mut other = Connection::to(served.address).await;
    assert_eq!(other.ask("/v1/status", Some("blue-token")).await.unwrap().0, 200);
    drop(second);
    loop {
        let mut again = Connection::to(served.address).await;
        if again.ask("/v1/status", Some(TOKEN)).await.is_some_and(|(status, _)| status == 200) {
            break;
        }
    }
    served.stop().await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn the_document_is_made_once() {
    let daemon = Daemon::start().await;
    let document = async || {
        let response = daemon.ask(Method::GET, "/openapi.json", "").await;
        assert_eq!(response.headers()["content-type"], "application/json");
        response.into_body().collect().await.unwrap().to_bytes()
    };
    // The same bytes in the same place.
    let (first, second) = (document().await, document().await);
    assert!(!first.is_empty() && first.as_ptr() == second.as_ptr());
    daemon.service.shutdown().await;
}
