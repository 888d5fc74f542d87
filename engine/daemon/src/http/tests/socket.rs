use std::net::Ipv4Addr;

use mayfly_client::{Client, ClientError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use super::*;

pub(super) struct Served {
    pub daemon: Daemon,
    pub client: Client,
    pub address: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    pub(super) async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
    }
}

async fn served() -> Served {
    served_with("").await
}

pub(super) async fn served_with(settings: &str) -> Served {
    let daemon = Daemon::with(settings).await;
    let path = daemon.dir.path().join("run/mayfly.sock");
    let listeners = api::Listeners::new().unix(&path).await.unwrap();
    let listeners = listeners.tcp((Ipv4Addr::LOCALHOST, 0).into(), &daemon.service).await.unwrap();
    let address = listeners.address().unwrap();
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(api::serve(daemon.service.clone(), listeners, Vec::new(), async {
        drop(stopped.await);
    }));
    Served { daemon, client: Client::unix(path), address, stop, task }
}

#[tokio::test]
#[ignore = "needs root"]
async fn client_and_daemon_understand_each_other() {
    let served = served().await;
    let client = &served.client;
    assert!(client.is_up().await);
    assert_eq!(client.status().await.unwrap().sessions, 0);
    assert_eq!(client.sessions().await.unwrap(), []);
    assert_eq!(client.goldens().await.unwrap(), []);
    assert!(client.metrics().await.unwrap().ends_with("# EOF\n"));
    assert!(client.openapi().await.unwrap()["paths"].is_object());
    let error = client.session("no/such?session").await.unwrap_err();
    assert_eq!(
        (error.status(), error.code()),
        (Some(StatusCode::NOT_FOUND), Some("no_such_session"))
    );
    let error = client.run("nobody", &mayfly_api::Exec::new(["true"])).await.unwrap_err();
    assert_eq!(error.code(), Some("no_such_session"), "{error}");
    served.stop.send(()).unwrap();
    served.task.await.unwrap();
}

#[tokio::test]
#[ignore = "needs root"]
async fn over_tcp_the_token_decides() {
    let served = served().await;
    let address = served.address.to_string();
    assert_eq!(Client::tcp(&address, TOKEN).unwrap().status().await.unwrap().sessions, 0);
    let error = Client::tcp(&address, "not-the-token").unwrap().status().await.unwrap_err();
    assert_eq!(error.code(), Some("unauthorized"));
    served.stop.send(()).unwrap();
    served.task.await.unwrap();
}

#[tokio::test]
#[ignore = "needs root"]
async fn tcp_without_tokens_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path().join("home"), dir.path().join("run"));
    let engine = Arc::new(Engine::open(layout).await.unwrap());
    let service = Service::start(engine, ServiceConfig::default()).await.unwrap();
    let refused = api::Listeners::new().tcp((Ipv4Addr::LOCALHOST, 0).into(), &service).await;
    assert!(matches!(refused, Err(api::ServeError::NoTokens { .. })));
    service.shutdown().await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_shutdown_ends_idle_connections_and_takes_the_socket_away() {
    let served = served().await;
    let path = served.daemon.dir.path().join("run/mayfly.sock");
    let mut idle = tokio::net::UnixStream::connect(&path).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    idle.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    served.stop.send(()).unwrap();
    served.task.await.unwrap();
    // What is left of the answer, then the end.
    idle.read_to_end(&mut Vec::new()).await.unwrap();
    assert!(!path.exists());
    assert!(matches!(served.client.status().await, Err(ClientError::Connect { .. })));
}
