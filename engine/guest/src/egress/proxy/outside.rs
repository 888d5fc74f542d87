//! The way out, which the proxy does not have by itself: it asks the engine.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hyper::StatusCode;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::super::decision::{NoName, Refusal, Target};
use super::super::limits::{Budget, Limits, Meter, Metered};
use super::super::messages::{Begin, End, Ended, FromEngine, FromProxy};
use super::super::record::Kind;

/// Characters of what a guest named that go into the log.
const MAX_AUTHORITY: usize = 300;
const USED_UP: &str = "the session has used up its egress bytes";

/// The outside of one session.
#[derive(Debug)]
pub(in super::super) struct Outside {
    /// Its end takes all messages to the engine. Each task waits for the answer to its last one, and
    /// the engine gives no client's place to another before it has read that the client was served:
    /// so there are a few for each task and connection at most.
    sender: mpsc::UnboundedSender<FromProxy>,
    waiting: Mutex<HashMap<u32, oneshot::Sender<Reply>>>,
    next: AtomicU32,
    budget: Arc<Budget>,
}

/// The engine's answer.
#[derive(Debug)]
enum Reply {
    /// Wherever it is dropped, the engine hears that the connection has ended.
    Opened(OwnedFd, Ending),
    Refused(Refusal),
    Found(Vec<IpAddr>),
    NotFound(NoName),
    Noted,
}

/// A connection to the outside. The engine hears of its end when [`Ending`] is dropped.
#[derive(Debug)]
pub(super) struct Upstream {
    pub stream: Metered<TcpStream>,
    pub ending: Ending,
}

impl Outside {
    pub fn new(begin: Begin, sender: mpsc::UnboundedSender<FromProxy>) -> Self {
        Self {
            sender,
            waiting: Mutex::default(),
            next: AtomicU32::new(0),
            budget: Arc::new(Budget::new(limits_of(begin))),
        }
    }

    /// Limits that a client may be told of.
    pub fn limits(&self) -> Limits {
        self.budget.limits()
    }

    /// Connects to `target` if the session may.
    pub(super) async fn open(&self, kind: Kind, target: &Target) -> Result<Upstream, Refusal> {
        let target = target.to_string();
        let reply = self.ask(|request| FromProxy::Open { request, kind, target }).await;
        let (socket, mut ending) = match reply {
            Some(Reply::Opened(socket, ending)) => (socket, ending),
            Some(Reply::Refused(refusal)) => return Err(refusal),
            _ => return Err(Refusal::new(StatusCode::BAD_GATEWAY, "egress is over")),
        };
        match TcpStream::from_std(socket.into()) {
            Ok(stream) => {
                ending.end = End::Done;
                let stream = Metered::new(stream, Arc::clone(&self.budget));
                ending.meter = Arc::clone(stream.meter());
                Ok(Upstream { stream, ending })
            }
            Err(error) => {
                ending.failed(&error);
                Err(Refusal::new(StatusCode::BAD_GATEWAY, "the connection cannot be used"))
            }
        }
    }

    /// Looks up the addresses of a name for the guest's own use, if the session may connect to it.
    pub async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, NoName> {
        let name = name.to_owned();
        match self.ask(|request| FromProxy::LookUp { request, name }).await {
            Some(Reply::Found(addresses)) => Ok(addresses),
            Some(Reply::NotFound(why)) => Err(why),
            _ => Err(NoName::Failed),
        }
    }

    /// Has the engine log a request that leads nowhere. Waits for the session's turn.
    pub(super) async fn note(&self, kind: Kind, authority: &str, reason: &str) {
        let authority = authority.chars().take(MAX_AUTHORITY).collect();
        let reason = reason.to_owned();
        self.ask(|request| FromProxy::Note { request, kind, authority, reason }).await;
    }

    /// Sends a request, and waits for the answer; there is none when the session has ended.
    async fn ask(&self, message: impl FnOnce(u32) -> FromProxy) -> Option<Reply> {
        let request = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        self.waiting.lock().insert(request, sender);
        // When nobody takes it, the answer does not come either.
        if self.sender.send(message(request)).is_err() {
            self.waiting.lock().remove(&request);
        }
        reply.await.ok()
    }

    /// Gives an answer of the engine to whoever waits for it.
    pub fn answered(&self, message: FromEngine, socket: Option<OwnedFd>) {
        let (request, reply) = match message {
            FromEngine::Opened { request } => {
                let ending = self.ending(request);
                let reply = match socket {
                    Some(socket) => Reply::Opened(socket, ending),
                    None => without_socket(ending),
                };
                (request, reply)
            }
            FromEngine::Refused { request, status, message } => {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
                (request, Reply::Refused(Refusal::new(status, message)))
            }
            FromEngine::Found { request, addresses } => (request, Reply::Found(addresses)),
            FromEngine::NotFound { request, is_denied } => {
                let why = if is_denied { NoName::Denied } else { NoName::Failed };
                (request, Reply::NotFound(why))
            }
            FromEngine::Noted { request } => (request, Reply::Noted),
            // What has used up the bytes of others than these has ended already.
            FromEngine::Limits(limits) => return self.budget.set_limits(limits_of(limits)),
            FromEngine::Client { .. } | FromEngine::Gone { .. } | FromEngine::Query(_) => return,
        };
        let waiter = self.waiting.lock().remove(&request);
        if let Some(waiter) = waiter {
            // Its client may have gone.
            let _ = waiter.send(reply);
        }
    }

    /// The end of a connection that nobody has taken yet.
    fn ending(&self, request: u32) -> Ending {
        let end = End::Broken("it was given up before it was done".to_owned());
        Ending { request, sender: self.sender.clone(), meter: Arc::default(), end }
    }
}

fn limits_of(Begin { max_connections, max_bytes }: Begin) -> Limits {
    Limits { max_connections, max_bytes, ..Limits::default() }
}

/// The reply when this process had no descriptor left for a connection that was made.
fn without_socket(mut ending: Ending) -> Reply {
    ending.ended("the egress proxy had no descriptor left");
    let message = "the egress proxy has too many connections; try again later";
    Reply::Refused(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message))
}

/// Tells the engine of the end of a connection when it is dropped.
#[derive(Debug)]
pub(super) struct Ending {
    request: u32,
    sender: mpsc::UnboundedSender<FromProxy>,
    meter: Arc<Meter>,
    end: End,
}

impl Ending {
    /// Records that the server did not answer.
    pub fn failed(&mut self, reason: impl std::fmt::Display) {
        self.end = End::Failed(reason.to_string());
    }

    /// Records why the connection ended.
    pub fn ended(&mut self, reason: impl std::fmt::Display) {
        self.end = End::Broken(reason.to_string());
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let (bytes_up, bytes_down) = self.meter.bytes();
        let end = match std::mem::replace(&mut self.end, End::Done) {
            End::Failed(_) if self.meter.is_exhausted() => End::Failed(USED_UP.to_owned()),
            _ if self.meter.is_exhausted() => End::Broken(USED_UP.to_owned()),
            end => end,
        };
        let ended = Ended { request: self.request, bytes_up, bytes_down, end };
        // Without anybody to hear it the session has ended.
        let _ = self.sender.send(FromProxy::Ended(ended));
    }
}
