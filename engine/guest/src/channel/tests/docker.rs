//! Docker clients of this host and an HTTP server behind the agent, which tells what it got.

use super::Agent;
use crate::channel::{Channel, ChannelError};
use crate::credentials;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

/// A server that answers with the request as it came; or that changes to whatever protocol it is
/// asked for, tells the request in it, and then says back what it hears.
fn telling_server(directory: &Path) -> PathBuf {
    let path = directory.join("telling.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let connection = http1::Builder::new()
                .serve_connection(TokioIo::new(client), service_fn(tell))
                .with_upgrades();
            tokio::spawn(async move { drop(connection.await) });
        }
    });
    path
}

async fn tell(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut told = format!("{} {}\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        told += &format!("{name}: {}\n", value.to_str().unwrap());
    }
    if let Some(protocol) = request.headers().get(header::UPGRADE).cloned() {
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgraded.await.unwrap());
            stream.write_all(told.as_bytes()).await.unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.unwrap();
            stream.write_all(&heard).await.unwrap();
            stream.shutdown().await.unwrap();
        });
        let response = Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, protocol);
        return Ok(response.body(Full::default()).unwrap());
    }
    let body = request.into_body().collect().await.unwrap();
    if let Some(trailers) = body.trailers() {
        told += &format!("trailers: {trailers:?}\n");
    }
    told += &format!("{} bytes\n", body.to_bytes().len());
    Ok(Response::builder().header("Api-Version", "1.44").body(told.into()).unwrap())
}

struct Served {
    agent: Agent,
    channel: Channel,
    directory: tempfile::TempDir,
    forward: JoinHandle<ChannelError>,
}

impl Served {
    async fn start() -> Self {
        let (agent, channel) = Agent::open().await;
        let directory = tempfile::tempdir().unwrap();
        let path = telling_server(directory.path());
        let listener = UnixListener::bind(directory.path().join("host.sock")).unwrap();
        let forward = tokio::spawn(channel.forward_docker(listener, &path));
        Self { agent, channel, directory, forward }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.directory.path().join("host.sock")).await.unwrap()
    }
}

/// Reads until `end` comes.
async fn read_until(stream: &mut UnixStream, end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        match stream.read_u8().await {
            Ok(byte) => read.push(byte),
            Err(error) => panic!("{error} after {}", String::from_utf8_lossy(&read)),
        }
    }
    String::from_utf8(read).unwrap()
}

/// All credentials as a head has them, with a secret in each.
fn secrets() -> String {
    credentials::NAMES.iter().map(|name| format!("{name}: secret\r\n")).collect()
}

#[tokio::test]
async fn no_request_of_a_connection_carries_credentials_into_the_guest() {
    let served = Served::start().await;
    let mut client = served.connect().await;
    let secrets = secrets();
    // One after the other, with every way to end a body, and the last two at once.
    for (request, end) in [
        (format!("GET /one HTTP/1.1\r\nHost: a\r\n{secrets}X-Kept: 1\r\n\r\n"), "0 bytes\n"),
        (
            format!(
                "POST /two HTTP/1.1\r\nHost: a\r\n{secrets}X-Kept: 1\r\nContent-Length: 3\r\n\r\nabc"
            ),
            "3 bytes\n",
        ),
        (
            format!(
                "POST /three HTTP/1.1\r\nHost: a\r\n{secrets}X-Kept: 1\r\nTransfer-Encoding: chunked\r\n\
                 Trailer: Authorization\r\n\r\n4\r\nabcd\r\n0\r\nAuthorization: secret\r\n\r\n"
            ),
            "4 bytes\n",
        ),
        (
            format!(
                "GET /four HTTP/1.1\r\nHost: a\r\n{secrets}\r\nGET /five HTTP/1.1\r\nHost: a\r\n{secrets}X-Kept: 1\r\n\r\n"
            ),
            "0 bytes\n",
        ),
    ] {
        client.write_all(request.as_bytes()).await.unwrap();
        let mut told = read_until(&mut client, end).await;
        if request.contains("/four") {
            told += &read_until(&mut client, end).await;
        }
        assert!(told.contains("x-kept: 1"), "{told}");
        assert!(told.contains("api-version: 1.44"), "{told}");
        assert!(!told.to_lowercase().contains("secret"), "{told}");
    }
    // A request to change the protocol as well.
    let request = format!(
        "POST /six HTTP/1.1\r\nHost: a\r\n{secrets}X-Kept: 1\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let mut told = read_until(&mut client, "\r\n\r\n").await;
    client.shutdown().await.unwrap();
    client.read_to_string(&mut told).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 101 ") && told.contains("x-kept: 1"), "{told}");
    assert!(!told.contains("secret"), "{told}");
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways_and_half_close() {
    let served = Served::start().await;
    let mut client = served.connect().await;
    let request = "POST /attach HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let head = read_until(&mut client, "\r\n\r\n").await.to_lowercase();
    assert!(head.contains("connection: upgrade") && head.contains("upgrade: tcp"), "{head}");
    read_until(&mut client, "upgrade: tcp\n").await;
    // What looks like a request is nothing but bytes now.
    let bytes = format!("GET / HTTP/1.1\r\n{}\r\n", secrets()).repeat(1000);
    client.write_all(bytes.as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = String::new();
    client.read_to_string(&mut heard).await.unwrap();
    assert!(heard == bytes, "{} of {} bytes came back", heard.len(), bytes.len());
}

#[tokio::test]
async fn a_client_that_closes_its_half_at_once_still_gets_its_answer() {
    let served = Served::start().await;
    for (request, end) in [
        ("GET /one HTTP/1.1\r\nHost: a\r\n\r\n", "\n0 bytes\n"),
        ("GET /two HTTP/1.0\r\n\r\n", "\n0 bytes\n"),
        ("POST /three HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", "\n3 bytes\n"),
    ] {
        let mut client = served.connect().await;
        client.write_all(request.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains(" 200 OK\r\n") && answer.ends_with(end), "{request:?}: {answer}");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_request_back() {
    let (_agent, channel) = Agent::open().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("silent.sock");
    let server = UnixListener::bind(&path).unwrap();
    let listener = UnixListener::bind(directory.path().join("host.sock")).unwrap();
    let _forward = AbortOnDropHandle::new(tokio::spawn(channel.forward_docker(listener, &path)));
    for closes_half in [false, true] {
        let mut client = UnixStream::connect(directory.path().join("host.sock")).await.unwrap();
        client.write_all(b"POST /wait HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        if closes_half {
            client.shutdown().await.unwrap();
        }
        let (mut asked, _) = server.accept().await.unwrap();
        read_until(&mut asked, "\r\n\r\n").await;
        drop(client);
        // Ends, though nothing was answered.
        asked.read_to_end(&mut Vec::new()).await.unwrap();
    }
}

#[tokio::test]
async fn old_clients_are_answered_and_hung_up_on() {
    let served = Served::start().await;
    let mut client = served.connect().await;
    client.write_all(b"GET /_ping HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("GET /_ping\nhost: docker\n0 bytes\n"), "{answer}");
}

#[tokio::test]
async fn many_clients_are_served_until_the_guest_is_gone() {
    let served = Served::start().await;
    let clients = (0..40_usize).map(|n| {
        let served = &served;
        async move {
            let mut client = served.connect().await;
            let head = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", n * 1000);
            client.write_all(head.as_bytes()).await.unwrap();
            client.write_all(&vec![0; n * 1000]).await.unwrap();
            read_until(&mut client, &format!("\n{} bytes\n", n * 1000)).await;
        }
    });
    futures::future::join_all(clients).await;
    // Nothing but the listener uses the channel now; it must not end for that.
    let Served { agent, channel, directory, forward } = served;
    drop(channel);
    let connect = async || UnixStream::connect(directory.path().join("host.sock")).await.unwrap();
    let mut client = connect().await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    read_until(&mut client, "0 bytes\n").await;
    drop(agent);
    // The next client finds out, and so does whoever runs the listener.
    assert_eq!(connect().await.read_to_string(&mut String::new()).await.unwrap_or(0), 0);
    assert!(matches!(
        forward.await.unwrap(),
        ChannelError::Closed { .. } | ChannelError::Protocol { .. }
    ));
}
