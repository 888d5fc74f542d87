use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;

use crate::{Client, ClientError};

/// An HTTP server that counts connections, and closes each after `requests` answers.
struct Counting {
    _dir: tempfile::TempDir,
    path: PathBuf,
    accepted: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Counting {
    fn start(requests: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(answer(stream, requests));
            }
        });
        Self { _dir: dir, path, accepted, task }
    }

    fn client(&self) -> Client {
        Client::unix(&self.path)
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(stream: tokio::net::UnixStream, requests: usize) {
    let left = AtomicUsize::new(requests);
    let service = hyper::service::service_fn(|_| {
        left.fetch_sub(1, Ordering::SeqCst);
        async move { Ok::<_, std::convert::Infallible>(hyper::Response::new("ok\n".to_owned())) }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // Dropped as soon as it has answered as often as it may, without the word `close`: the client
    // learns of it in the use.
    let _ = futures::future::poll_fn(|cx| {
        let outcome = connection.as_mut().poll(cx);
        if left.load(Ordering::SeqCst) == 0 { std::task::Poll::Ready(Ok(())) } else { outcome }
    })
    .await;
}

#[tokio::test]
async fn calls_one_after_another_share_a_connection() {
    let server = Counting::start(usize::MAX);
    let client = server.client();
    for _ in 0..100 {
        assert!(client.is_up().await);
    }
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn calls_at_once_have_connections_of_their_own_and_keep_them() {
    let server = Counting::start(usize::MAX);
    let client = server.client();
    for _ in 0..5 {
        let calls = (0..8).map(|_| client.is_up());
        assert!(futures::future::join_all(calls).await.into_iter().all(|up| up));
    }
    assert!(server.accepted() <= 8, "{}", server.accepted());
}

#[tokio::test]
async fn a_kept_connection_that_the_server_closed_fails_no_call() {
    let server = Counting::start(3);
    let client = server.client();
    for _ in 0..30 {
        assert!(client.is_up().await);
    }
    assert!(server.accepted() >= 10, "{}", server.accepted());
}

#[tokio::test]
async fn nobody_there_is_said_as_such() {
    let error = Client::unix(Path::new("/nonexistent/s")).status().await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
    assert!(error.to_string().contains("mayfly serve"), "{error}");
}
