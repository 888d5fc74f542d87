//! The engine's end of a session's link to the proxy: does what the proxy asks for, if the session
//! may, and keeps account of its connections.

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use mayfly_protocol::Printable;
use parking_lot::Mutex;

use super::decision::{NoName, Refusal, Target};
use super::gate::{Gate, Opened};
use super::host::Host;
use super::link::Link;
use super::log::Line;
use super::messages::{End, FromEngine, FromProxy};
use super::room::Place;

/// Connections of one session at a time. The clients that a session may have need fewer.
const MAX_CONNECTIONS: usize = 512;
/// Characters of a reason of the proxy's that are kept.
const MAX_REASON: usize = 1000;
/// How long the proxy may take to say how the connections of a session ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The engine's end of one session's link.
#[derive(Debug)]
pub(super) struct Desk {
    gate: Arc<Gate>,
    pub link: Link,
    connections: Mutex<HashMap<u32, Connection>>,
}

/// A connection to the outside that the proxy has.
#[derive(Debug)]
struct Connection {
    line: Line,
    /// The proxy's socket: whatever it does with its own descriptor, this ends it.
    socket: TcpStream,
    _place: Place,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl Desk {
    pub fn new(gate: Arc<Gate>, link: Link) -> Self {
        Self { gate, link, connections: Mutex::default() }
    }

    /// Does what one message asks for, which may take as long as a connection. The DNS answer that
    /// it is, is for the caller.
    ///
    /// # Errors
    /// When the proxy is gone, or breaks the protocol.
    pub async fn serve(&self, message: FromProxy) -> io::Result<()> {
        match message {
            FromProxy::Open { request, kind, target } => {
                let opened = match read_target(&target) {
                    Ok(target) => self.gate.open(kind, &target).await,
                    Err(refusal) => {
                        self.gate.line(kind, &target, 0).await.denied(&refusal.message);
                        Err(refusal)
                    }
                };
                match opened {
                    Ok(opened) => self.hand_over(request, opened).await,
                    Err(Refusal { status, message }) => {
                        let status = status.as_u16();
                        self.link
                            .send(&FromEngine::Refused { request, status, message }, None)
                            .await
                    }
                }
            }
            FromProxy::LookUp { request, name } => {
                let found = match self.gate.look_up(&name).await {
                    Ok(addresses) => FromEngine::Found { request, addresses },
                    Err(error) => {
                        FromEngine::NotFound { request, is_denied: error == NoName::Denied }
                    }
                };
                self.link.send(&found, None).await
            }
            FromProxy::Note { request, kind, authority, reason } => {
                self.gate.line(kind, &authority, 0).await.denied(readable(&reason));
                self.link.send(&FromEngine::Noted { request }, None).await
            }
            FromProxy::Ended { request, bytes_up, bytes_down, end } => {
                self.ended(request, (bytes_up, bytes_down), &end);
                Ok(())
            }
            FromProxy::Answer(_) => Ok(()),
        }
    }

    async fn hand_over(&self, request: u32, opened: Opened) -> io::Result<()> {
        let Opened { stream, line, place } = opened;
        let socket = stream.into_std()?;
        let given = socket.try_clone()?;
        {
            let mut connections = self.connections.lock();
            if connections.len() >= MAX_CONNECTIONS || connections.contains_key(&request) {
                return Err(io::Error::other("the egress proxy asks for too many connections"));
            }
            connections.insert(request, Connection { line, socket, _place: place });
        }
        self.link.send(&FromEngine::Opened { request }, Some(given.as_fd())).await
    }

    fn ended(&self, request: u32, (up, down): (u64, u64), end: &End) {
        let Some(mut connection) = self.connections.lock().remove(&request) else { return };
        self.gate.budget().spend(up.saturating_add(down));
        connection.line.counted(up, down);
        match end {
            End::Done => {}
            End::Broken(reason) => connection.line.ended(readable(reason)),
            End::Failed(reason) => connection.line.failed(readable(reason)),
        }
    }

    /// Ends all connections, and takes down in the log what the proxy says of each, if it says so
    /// soon.
    pub async fn close(&self) {
        self.link.finish();
        let last_words = async {
            while !self.connections.lock().is_empty() {
                match self.link.receive().await {
                    Ok(Some((FromProxy::Ended { request, bytes_up, bytes_down, end }, _))) => {
                        self.ended(request, (bytes_up, bytes_down), &end);
                    }
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return,
                }
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, last_words).await;
        for (_, mut connection) in self.connections.lock().drain() {
            connection.line.ended("the egress proxy did not say how it ended");
        }
    }
}

fn read_target(text: &str) -> Result<Target, Refusal> {
    let bad = |reason: String| Refusal::new(StatusCode::BAD_REQUEST, reason);
    let (host, port) = Host::parse_with_port(text).map_err(|error| bad(error.to_string()))?;
    let port = port.ok_or_else(|| bad("it has no port".to_owned()))?;
    Ok(Target { host, port })
}

/// A reason of the proxy's as it may stand in the log.
fn readable(reason: &str) -> String {
    let short: String = reason.chars().take(MAX_REASON).collect();
    Printable(&short).to_string()
}
