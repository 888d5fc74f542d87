//! What a session's Docker daemon says of its containers (Docker Engine API, "List containers" and
//! "Monitor events").

use std::collections::BTreeSet;
use std::sync::Weak;

use bytes::Bytes;
use futures::FutureExt;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use mayfly_guest::channel::ChannelError;
use mayfly_guest::docker::GUEST_SOCKET;
use serde::Deserialize;
use tokio_util::task::AbortOnDropHandle;

use crate::service::live::LiveSession;

/// Longest list of containers in bytes; one takes about 2 KiB.
const LIST_LIMIT: usize = 1 << 20;
/// Bound on the head of an answer, and on what is buffered of it, in bytes.
const BUFFER_LIMIT: usize = 16 << 10;
/// Pieces of a stream of events that are passed over at a time.
const PIECES: usize = 64;

/// An answer, and the connection that it comes over.
struct Answer {
    response: Response<Incoming>,
    _driver: AbortOnDropHandle<()>,
}

async fn get(session: &Weak<LiveSession>, path: &str) -> Result<Answer, ChannelError> {
    let session = session.upgrade().ok_or(ChannelError::Ended)?;
    // Only a connection, not the session, is held from here on: it does not count as use.
    let stream = session.session().guest().connect_unix(GUEST_SOCKET).await?;
    drop(session);
    let handshake =
        http1::Builder::new().max_buf_size(BUFFER_LIMIT).handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(broken)?;
    let driver = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to a Docker daemon");
        }
    }));
    let request = Request::get(path)
        .header(header::HOST, "docker")
        .body(Empty::<Bytes>::new())
        .map_err(broken)?;
    let response = sender.send_request(request).await.map_err(broken)?;
    if !response.status().is_success() {
        let reason =
            format!("the guest's Docker daemon answered {path} with {}", response.status());
        return Err(ChannelError::Closed { reason });
    }
    Ok(Answer { response, _driver: driver })
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ChannelError {
    ChannelError::Io(std::io::Error::other(error))
}

/// Tells that something has happened to containers, and not what: that is looked up.
pub(super) struct Events(Answer);

impl Events {
    pub async fn of(session: &Weak<LiveSession>) -> Result<Self, ChannelError> {
        // {"type":["container"],"event":["start","die","unpause","pause"]}
        let path = "/events?filters=%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22start%22%2C\
                    %22die%22%2C%22pause%22%2C%22unpause%22%5D%7D";
        Ok(Self(get(session, path).await?))
    }

    /// Waits until something happens.
    ///
    /// # Errors
    /// When nothing more comes.
    pub async fn next(&mut self) -> Result<(), ChannelError> {
        match self.0.response.body_mut().frame().await {
            Some(piece) => piece.map(drop).map_err(broken),
            None => Err(ChannelError::Ended),
        }
    }

    /// Passes over what has come.
    pub fn skip(&mut self) {
        for _ in 0..PIECES {
            let piece = self.0.response.body_mut().frame().now_or_never();
            if !matches!(piece, Some(Some(Ok(_)))) {
                return;
            }
        }
    }
}

/// Returns the TCP ports that running containers publish.
pub(super) async fn published(session: &Weak<LiveSession>) -> Result<BTreeSet<u16>, ChannelError> {
    let answer = get(session, "/containers/json").await?;
    let body = Limited::new(answer.response.into_body(), LIST_LIMIT);
    let bytes = body.collect().await.map_err(broken)?.to_bytes();
    ports(&bytes).map_err(broken)
}

#[derive(Deserialize)]
struct Container {
    #[serde(rename = "Ports", default)]
    ports: Option<Vec<Port>>,
}

#[derive(Deserialize)]
struct Port {
    #[serde(rename = "PublicPort", default)]
    public: Option<u16>,
    #[serde(rename = "Type", default)]
    kind: Option<String>,
}

fn ports(bytes: &[u8]) -> Result<BTreeSet<u16>, serde_json::Error> {
    let containers: Vec<Container> = serde_json::from_slice(bytes)?;
    let all = containers.into_iter().flat_map(|container| container.ports.unwrap_or_default());
    let tcp = all.filter(|port| port.kind.as_deref() == Some("tcp"));
    Ok(tcp.filter_map(|port| port.public).filter(|port| *port != 0).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn published_tcp_ports_are_found_once_each() {
        let list = br#"[
            {"Id":"a","Ports":[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":32768,"Type":"tcp"},
                               {"IP":"::","PrivatePort":80,"PublicPort":32768,"Type":"tcp"},
                               {"PrivatePort":443,"Type":"tcp"},
                               {"IP":"0.0.0.0","PrivatePort":53,"PublicPort":53,"Type":"udp"}]},
            {"Id":"b","Ports":null},{"Id":"c"},
            {"Ports":[{"PublicPort":0,"Type":"tcp"},{"PublicPort":8080,"Type":"tcp"}]}]"#;
        assert_eq!(ports(list).unwrap(), BTreeSet::from([8080, 32768]));
        for bad in ["", "{}", "[1]", r#"[{"Ports":[{"PublicPort":65536,"Type":"tcp"}]}]"#] {
            ports(bad.as_bytes()).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn whatever_a_guest_says_is_read(text in ".{0,200}", port in any::<i64>()) {
            let _ = ports(text.as_bytes());
            let one = serde_json::json!([{"Ports": [{"PublicPort": port, "Type": "tcp"}], "x": text}]);
            let found = ports(one.to_string().as_bytes());
            match u16::try_from(port) {
                Ok(0) => prop_assert!(found.unwrap().is_empty()),
                Ok(port) => prop_assert_eq!(found.unwrap(), BTreeSet::from([port])),
                Err(_) => prop_assert!(found.is_err()),
            }
        }
    }
}
