//! Streams to Unix sockets and TCP ports behind the agent.

use super::{Agent, errno};
use crate::channel::ChannelError;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UnixListener};

/// A server that reads to the end of its input, then answers with its length and closes.
fn counting_server(directory: &Path) -> PathBuf {
    let path = directory.join("count.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let count = tokio::io::copy(&mut client, &mut tokio::io::sink()).await.unwrap();
                client.write_all(format!("{count} bytes").as_bytes()).await.unwrap();
            });
        }
    });
    path
}

#[tokio::test]
async fn the_host_can_close_its_half_and_still_hear_the_answer() {
    let (_agent, channel) = Agent::open().await;
    let directory = tempfile::tempdir().unwrap();
    let path = counting_server(directory.path());
    let mut stream = channel.connect_unix(&path).await.unwrap();
    stream.write_all(&vec![1; 3_000_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "3000000 bytes");
}

#[tokio::test]
async fn the_server_can_close_its_half_and_still_hear_the_host() {
    let (_agent, channel) = Agent::open().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("half.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        client.write_all(b"done talking").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = String::new();
        client.read_to_string(&mut heard).await.unwrap();
        heard
    });
    let mut stream = channel.connect_unix(&path).await.unwrap();
    let mut heard = String::new();
    stream.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "done talking");
    stream.write_all(b"but listening").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(server.await.unwrap(), "but listening");
}

#[tokio::test]
async fn a_dropped_stream_ends_the_connection_even_after_its_half_was_closed() {
    let (_agent, channel) = Agent::open().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("endless.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        // Writes until nobody reads.
        while client.write_all(&[0; 4096]).await.is_ok() {}
    });
    let mut stream = channel.connect_unix(&path).await.unwrap();
    stream.shutdown().await.unwrap();
    stream.read_exact(&mut [0; 10_000]).await.unwrap();
    drop(stream);
    server.await.unwrap();
}

#[tokio::test]
async fn a_stopped_reader_stops_the_writer_but_nobody_else() {
    let (_agent, channel) = Agent::open().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("endless.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut written = 0_usize;
        while let Ok(count) = client.write(&[0; 65536]).await {
            written += count;
        }
        written
    });
    let stalled = channel.connect_unix(&path).await.unwrap();
    let count = counting_server(directory.path());
    for _ in 0..50 {
        let mut stream = channel.connect_unix(&count).await.unwrap();
        stream.write_all(&[1; 100_000]).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "100000 bytes");
    }
    drop(stalled);
    assert!(server.await.unwrap() < 4 << 20, "what nobody reads is held back by flow control");
}

#[tokio::test]
async fn a_tcp_port_is_found_on_either_loopback_address() {
    let (_agent, channel) = Agent::open().await;
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            let count = tokio::io::copy(&mut client, &mut tokio::io::sink()).await.unwrap();
            client.write_all(format!("{count} bytes").as_bytes()).await.unwrap();
        });
        let mut stream = channel.connect_tcp(port).await.unwrap();
        stream.write_all(&vec![1; 1_000_000]).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "1000000 bytes", "{address}");
        server.await.unwrap();
    }
    // Nobody listens there, and nobody else can: a port that was given back may be another test's
    // already.
    let held = TcpSocket::new_v6().unwrap();
    held.bind("[::]:0".parse().unwrap()).unwrap();
    let port = held.local_addr().unwrap().port();
    assert_eq!(errno(channel.connect_tcp(port).await), libc::ECONNREFUSED);
    assert_eq!(errno(channel.connect_tcp(0).await), libc::EINVAL);
}

#[tokio::test]
async fn nobody_listening_is_an_error_of_that_request_only() {
    let (_agent, channel) = Agent::open().await;
    match channel.connect_unix("/nonexistent/socket").await {
        Err(ChannelError::Guest(error)) => assert_eq!(error.errno, libc::ENOENT),
        other => panic!("{other:?}"),
    }
    channel.health().await.unwrap();
}
