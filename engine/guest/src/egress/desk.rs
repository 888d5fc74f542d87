//! The engine's end of a session's link to the proxy: does what the proxy asks for, if the session
//! may, and keeps account of its connections.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use mayfly_host::time_scale::scaled;
use mayfly_protocol::Printable;
use parking_lot::Mutex;

use super::counts::transferred;
use super::decision::{NoName, Refusal, Target};
use super::gate::{Gate, Opened};
use super::host::Host;
use super::limits::Limits;
use super::link::{Link, broken};
use super::log::Line;
use super::messages::{Begin, End, Ended, FromEngine, FromProxy};
use super::record::Kind;
use super::room::Place;

/// Connections of one session at a time. The clients that a session may have need fewer, but those
/// whose clients are gone count until the proxy has said how they ended.
const MAX_CONNECTIONS: usize = 512;
/// Characters of a reason of the proxy's that are kept.
const MAX_REASON: usize = 1000;
/// How long the proxy may take to say how the connections of a session ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

const FORBIDDEN: &str = "it was cut off: the session's policy was replaced, and forbids it";

/// What a session had when a link began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Begun {
    /// Bytes that it had used.
    pub used_bytes: u64,
    /// Number of its policy, whose limits the link began with.
    pub policy: u64,
}

/// The engine's end of one session's link.
#[derive(Debug)]
pub(super) struct Desk {
    gate: Arc<Gate>,
    pub link: Link,
    /// What there was when the link began.
    begun: Begun,
    /// The policy whose limits the proxy was told of.
    told: tokio::sync::Mutex<u64>,
    connections: Mutex<HashMap<u32, Connection>>,
}

/// A connection to the outside that the proxy has.
#[derive(Debug)]
struct Connection {
    gate: Arc<Gate>,
    line: Line,
    target: Target,
    address: IpAddr,
    /// Whether it was ended because another policy forbids it.
    is_forbidden: bool,
    /// The proxy's socket: whatever it does with its own descriptor, this ends it.
    socket: Arc<TcpStream>,
    /// Whether the proxy has said how it ended.
    is_told: bool,
    _place: Place,
}

impl Connection {
    /// Takes down what the proxy says of it.
    fn told(&mut self, (up, down): (u64, u64), end: &End) {
        self.is_told = true;
        self.gate.budget().spend(up.saturating_add(down));
        self.line.counted(up, down);
        match end {
            _ if self.is_forbidden => self.line.ended(FORBIDDEN),
            End::Done => {}
            End::Broken(reason) => self.line.ended(readable(reason)),
            End::Failed(reason) => self.line.failed(readable(reason)),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.is_told {
            let (up, down) = transferred(&self.socket);
            self.gate.budget().spend(up.saturating_add(down));
            self.line.counted(up, down);
            self.line.ended(if self.is_forbidden {
                FORBIDDEN
            } else {
                "it was cut off with the session or the egress proxy"
            });
        }
        // It may have ended.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl Desk {
    pub fn new(gate: Arc<Gate>, link: Link, begun: Begun) -> Self {
        let told = tokio::sync::Mutex::new(begun.policy);
        Self { gate, link, begun, told, connections: Mutex::default() }
    }

    /// Ends the connections that the policy forbids, which is another one now.
    pub fn cut_forbidden(&self) {
        for connection in self.connections.lock().values_mut() {
            if !self.gate.allows(&connection.target, connection.address) {
                connection.is_forbidden = true;
                // It may have ended.
                let _ = connection.socket.shutdown(Shutdown::Both);
            }
        }
    }

    /// Tells the proxy of the limits of the policy, if they are not those that it knows.
    ///
    /// # Errors
    /// When the proxy is gone.
    pub async fn tell_limits(&self) -> io::Result<()> {
        let mut told = self.told.lock().await;
        let policy = self.gate.policy_number();
        if *told != policy {
            let Limits { max_connections, max_bytes, .. } = self.gate.budget().limits();
            let max_bytes = max_bytes.saturating_sub(self.begun.used_bytes);
            let limits = Begin { max_connections, max_bytes };
            self.link.send(&FromEngine::Limits(limits), None).await?;
            *told = policy;
        }
        Ok(())
    }

    /// Does what one request asks for, which may take as long as a connection takes to be made.
    /// What is no request is for the caller.
    ///
    /// # Errors
    /// When the proxy is gone, or breaks the protocol ([`io::ErrorKind::InvalidData`]).
    pub async fn serve(&self, message: FromProxy) -> io::Result<()> {
        match message {
            FromProxy::Open { kind: Kind::Dns, .. } => {
                Err(broken("the egress proxy asks for a connection to look up a name"))
            }
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
                    Err(refusal) => self.refuse(request, refusal).await,
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
            FromProxy::Ended(_) | FromProxy::Served { .. } | FromProxy::Answer(_) => Ok(()),
        }
    }

    async fn refuse(&self, request: u32, refusal: Refusal) -> io::Result<()> {
        let Refusal { status, message } = refusal;
        let refused = FromEngine::Refused { request, status: status.as_u16(), message };
        self.link.send(&refused, None).await
    }

    async fn hand_over(&self, request: u32, opened: Opened) -> io::Result<()> {
        let Opened { stream, target, address, mut line, place } = opened;
        let socket = match stream.into_std() {
            Ok(socket) => Arc::new(socket),
            Err(error) => {
                line.failed(error);
                let message = "the connection cannot be used; try again later";
                let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message);
                return self.refuse(request, refusal).await;
            }
        };
        let given = Arc::clone(&socket);
        let refusal = {
            let mut connections = self.connections.lock();
            if connections.contains_key(&request) {
                return Err(broken("the egress proxy has a connection twice"));
            }
            // The policy may have been replaced meanwhile; later it is looked at here.
            if !self.gate.allows(&target, address) {
                line.denied("the policy that allowed it was replaced");
                let message = format!("egress to {target} is denied: the policy was replaced");
                Some(Refusal::new(StatusCode::FORBIDDEN, message))
            } else if connections.len() >= MAX_CONNECTIONS {
                line.failed("too many connections of the session have not ended yet");
                let message =
                    "too many connections of this session have not ended yet; try again later";
                Some(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message))
            } else {
                let gate = Arc::clone(&self.gate);
                let connection = Connection {
                    gate,
                    line,
                    target,
                    address,
                    is_forbidden: false,
                    socket,
                    is_told: false,
                    _place: place,
                };
                connections.insert(request, connection);
                None
            }
        };
        if let Some(refusal) = refusal {
            return self.refuse(request, refusal).await;
        }
        // No byte goes by limits that are not those of the policy any more.
        self.tell_limits().await?;
        self.link.send(&FromEngine::Opened { request }, Some(given.as_fd())).await
    }

    /// Takes down how a connection ended. False when there is none of this number.
    pub fn ended(&self, ended: &Ended) -> bool {
        let Ended { request, bytes_up, bytes_down, end } = ended;
        let connection = self.connections.lock().remove(request);
        let Some(mut connection) = connection else { return false };
        connection.told((*bytes_up, *bytes_down), end);
        true
    }

    /// Ends all connections, and takes down in the log what the proxy says of each, if it says so
    /// soon.
    pub async fn close(&self) {
        self.link.finish();
        let last_words = async {
            while !self.connections.lock().is_empty() {
                match self.link.receive().await {
                    Ok(Some((FromProxy::Ended(ended), _))) => drop(self.ended(&ended)),
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return,
                }
            }
        };
        let _ = tokio::time::timeout(scaled(LAST_WORDS), last_words).await;
        let left = std::mem::take(&mut *self.connections.lock());
        drop(left);
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
