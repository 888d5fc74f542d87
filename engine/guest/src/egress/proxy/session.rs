//! One session in the proxy: its clients and its DNS queries, as the engine hands them over.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;

use mayfly_protocol::DnsMessage;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::super::dns;
use super::super::link::Link;
use super::super::messages::{Begin, FromEngine, FromProxy, Ready};
use super::outside::Outside;
use super::{Served, serve};

/// Serves a session until the engine ends it, and then tells the engine how its connections ended.
pub(super) async fn serve_session(link: Link, begin: Begin) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let outside = Arc::new(Outside::new(begin, sender.clone()));
    let link = Arc::new(link);
    let mut writer = tokio::spawn(write(Arc::clone(&link), receiver));
    let mut work = JoinSet::new();
    let mut clients: HashMap<u32, AbortHandle> = HashMap::new();
    loop {
        tokio::select! {
            received = link.receive() => match received {
                Ok(Some((FromEngine::Client { client, is_too_many }, stream))) => {
                    let served = if is_too_many { Served::TooMany } else { Served::All };
                    let outside = Arc::clone(&outside);
                    let leaving = Leaving { client, sender: sender.clone() };
                    let task = work.spawn(async move {
                        let _leaving = leaving;
                        // Without one, this process had no descriptor left for it.
                        let stream = stream.ok_or_else(|| io::ErrorKind::NotConnected.into());
                        match stream.and_then(stream_of) {
                            Ok(stream) => serve(stream, outside, served).await,
                            Err(error) => tracing::debug!(%error, "an egress client"),
                        }
                    });
                    clients.insert(client, task);
                }
                Ok(Some((FromEngine::Gone { client }, _))) => {
                    if let Some(task) = clients.remove(&client) {
                        task.abort();
                    }
                }
                Ok(Some((FromEngine::Query(DnsMessage { tag, message }), _))) => {
                    let (outside, sender) = (Arc::clone(&outside), sender.clone());
                    work.spawn(async move {
                        let message = dns::answer(&outside, &message).await;
                        let _ = sender.send(FromProxy::Answer(DnsMessage { tag, message }));
                    });
                }
                Ok(Some((answer, socket))) => outside.answered(answer, socket),
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, "a session's link");
                    break;
                }
            },
            Some(_) = work.join_next() => clients.retain(|_, task| !task.is_finished()),
            // The engine has gone, and with it the session.
            _ = &mut writer => return,
        }
    }
    // What they hold is dropped with them, and says how it ended.
    work.shutdown().await;
    drop((outside, sender));
    let _ = writer.await;
}

/// Tells the engine, when it is dropped, that nothing is left of a client.
#[derive(Debug)]
struct Leaving {
    client: u32,
    sender: mpsc::UnboundedSender<FromProxy>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        // Without anybody to hear it the session has ended.
        let _ = self.sender.send(FromProxy::Served { client: self.client });
    }
}

fn stream_of(stream: OwnedFd) -> io::Result<UnixStream> {
    let stream = StdStream::from(stream);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

async fn write(link: Arc<Link>, mut messages: mpsc::UnboundedReceiver<FromProxy>) {
    if link.send(&Ready, None).await.is_err() {
        return;
    }
    while let Some(message) = messages.recv().await {
        if let Err(error) = link.send(&message, None).await {
            return tracing::debug!(%error, "a session's link");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::super::messages::{End, Ended};
    use super::*;

    async fn receive(link: &Link) -> FromProxy {
        link.receive().await.unwrap().unwrap().0
    }

    /// Gives the proxy a client that asks for a tunnel; returns the guest's end, and the request.
    async fn client(link: &Link, client: u32) -> (UnixStream, u32) {
        let (mut guest, theirs) = UnixStream::pair().unwrap();
        let message = FromEngine::Client { client, is_too_many: false };
        link.send(&message, Some(theirs.as_fd())).await.unwrap();
        guest.write_all(b"CONNECT a.test:443 HTTP/1.1\r\n\r\n").await.unwrap();
        match receive(link).await {
            FromProxy::Open { request, .. } => (guest, request),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_client_that_is_gone_is_given_up_whatever_it_waits_for() {
        let (ours, theirs) = Link::pair().unwrap();
        let begin = Begin { max_connections: 4, max_bytes: 1 << 20 };
        let session = tokio::spawn(serve_session(Link::new(theirs).unwrap(), begin));
        ours.ready().await.unwrap();
        let (mut waiting, request) = client(&ours, 7).await;
        let (mut other, _) = client(&ours, 8).await;
        ours.send(&FromEngine::Gone { client: 7 }, None).await.unwrap();
        assert_eq!(receive(&ours).await, FromProxy::Served { client: 7 });
        assert_eq!(waiting.read(&mut [0; 8]).await.unwrap(), 0, "it is still served");
        // What comes for it after all is given back.
        let (socket, _far) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.send(&FromEngine::Opened { request }, Some(socket.as_fd())).await.unwrap();
        let ended = receive(&ours).await;
        assert!(matches!(ended, FromProxy::Ended(Ended { request: of, .. }) if of == request));
        // Also when both come in the same breath, before the client's task has had its turn.
        let (_both, request) = client(&ours, 9).await;
        ours.send(&FromEngine::Opened { request }, Some(socket.as_fd())).await.unwrap();
        ours.send(&FromEngine::Gone { client: 9 }, None).await.unwrap();
        let mut said = [receive(&ours).await, receive(&ours).await];
        said.sort_by_key(|message| matches!(message, FromProxy::Ended(_)));
        assert_eq!(said[0], FromProxy::Served { client: 9 });
        assert!(matches!(&said[1], FromProxy::Ended(Ended { request: of, .. }) if *of == request));
        // Once is enough, and the others go on.
        ours.send(&FromEngine::Gone { client: 7 }, None).await.unwrap();
        ours.finish();
        assert_eq!(receive(&ours).await, FromProxy::Served { client: 8 });
        assert_eq!(other.read(&mut [0; 8]).await.unwrap(), 0);
        session.await.unwrap();
    }

    #[tokio::test]
    async fn what_comes_without_its_descriptor_is_over_at_once() {
        let (ours, theirs) = Link::pair().unwrap();
        let begin = Begin { max_connections: 4, max_bytes: 1 << 20 };
        let _session = tokio::spawn(serve_session(Link::new(theirs).unwrap(), begin));
        ours.ready().await.unwrap();
        ours.send(&FromEngine::Client { client: 1, is_too_many: false }, None).await.unwrap();
        assert_eq!(receive(&ours).await, FromProxy::Served { client: 1 });
        let (mut guest, request) = client(&ours, 2).await;
        ours.send(&FromEngine::Opened { request }, None).await.unwrap();
        let ended = receive(&ours).await;
        assert!(
            matches!(&ended, FromProxy::Ended(Ended { request: of, end: End::Broken(_), .. }) if *of == request),
            "{ended:?}"
        );
        let mut said = [0; 12];
        guest.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"HTTP/1.1 503");
    }
}
