//! One session in the proxy: its clients and its DNS queries, as the engine hands them over.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;

use mayfly_protocol::DnsMessage;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

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
    loop {
        tokio::select! {
            received = link.receive() => match received {
                Ok(Some((FromEngine::Client { is_too_many }, Some(stream)))) => {
                    let served = if is_too_many { Served::TooMany } else { Served::All };
                    let outside = Arc::clone(&outside);
                    work.spawn(async move {
                        match stream_of(stream) {
                            Ok(stream) => serve(stream, outside, served).await,
                            Err(error) => tracing::debug!(%error, "an egress client"),
                        }
                    });
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
            Some(_) = work.join_next() => {}
            // The engine has gone, and with it the session.
            _ = &mut writer => return,
        }
    }
    // What they hold is dropped with them, and says how it ended.
    work.shutdown().await;
    drop((outside, sender));
    let _ = writer.await;
}

fn stream_of(stream: OwnedFd) -> std::io::Result<UnixStream> {
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
