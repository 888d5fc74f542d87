//! Serves the egress of one session: passes the clients of its proxy port and its DNS queries on to
//! the proxy, and does what that asks for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use mayfly_host::descriptors;
use mayfly_host::time_scale::scaled;
use mayfly_protocol::{GuestError, MAX_DNS_IN_FLIGHT, MAX_DNS_MESSAGE};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::carry::carry;
use super::clients::Clients;
use super::desk::{Begun, Desk};
use super::error::EgressError;
use super::gate::Gate;
use super::limits::{EgressAccount, Limits};
use super::link::broken;
use super::messages::{FromEngine, FromProxy};
use super::policy::Policy;
use super::proxies::{NoProxy, Proxies, SessionLink};
use super::room::Place;
use crate::channel::{Channel, ChannelError, EgressPorts, GuestEgress, GuestStream, ProxyClients};

/// How long the agent may take to listen; under emulation it needs tens of milliseconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Clients that can be taken at once. Each costs a stream that waits in the guest.
const ACCEPTS: usize = 2;
/// Clients at a time that are told that there are too many; further ones are dropped.
const REFUSALS: usize = 8;
const REFUSAL_LIMIT: Duration = Duration::from_secs(10);
/// Bytes that may be under way from one end of a client's stream to the other; the kernel takes twice
/// as many for what it needs beside them (socket(7), `SO_SNDBUF`).
const STREAM_BUFFER: usize = 32 << 10;
/// Pause after a client that the agent could not take, or that was dropped.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Pause before a guest that has not ended its egress of before is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(10);
/// Requests of the proxy at a time: one of each client, and of each DNS query.
const REQUESTS: usize = Limits::MAX_CONNECTIONS + REFUSALS + MAX_DNS_IN_FLIGHT;
/// Pause before another proxy is asked for when one is lost, or there is none.
const PROXY_PAUSE: Duration = Duration::from_millis(300);

/// The egress of a session. Ends when it is dropped, with all connections, or with the session.
#[derive(Debug)]
pub struct Egress {
    ports: EgressPorts,
    gate: Arc<Gate>,
    /// What has the session's connections now.
    desk: Arc<Mutex<Weak<Desk>>>,
    task: AbortOnDropHandle<()>,
}

impl Egress {
    /// Opens the egress ports of a guest and serves them by `policy`, through the proxy process of
    /// `proxies`, until it is dropped. `session` names it in the log. What the session used before
    /// under the same `account` counts; a guest that is still about to end its egress of then is
    /// waited for.
    ///
    /// # Errors
    /// [`EgressError`] when the guest does not open them, or there is no proxy.
    pub async fn start(
        channel: &Channel,
        session: &str,
        policy: Policy,
        account: EgressAccount,
        proxies: Arc<dyn Proxies>,
    ) -> Result<Self, EgressError> {
        let was_before = account.begun.swap(true, Ordering::Relaxed);
        let gate = Arc::new(Gate::new(session, policy, account));
        let mut policies = gate.policies();
        let first = connect(&gate, &mut policies, &*proxies).await?;
        let limit = scaled(ANSWER_LIMIT);
        let open = async {
            loop {
                match channel.open_egress().await {
                    Err(ChannelError::Guest(error)) if was_before && is_busy(&error) => {
                        tokio::time::sleep(BUSY_PAUSE).await;
                    }
                    opened => return opened,
                }
            }
        };
        let guest = tokio::time::timeout(limit, open).await.unwrap_or_else(|_| {
            Err(ChannelError::Closed {
                reason: format!("the guest agent did not listen for egress within {limit:?}"),
            })
        })?;
        let ports = guest.ports;
        let desk = Arc::default();
        let served = Served { gate: Arc::clone(&gate), policies, desk: Arc::clone(&desk), proxies };
        let task = tokio::spawn(served.run(guest, first));
        Ok(Self { ports, gate, desk, task: AbortOnDropHandle::new(task) })
    }

    /// Serves by another policy from now on, which is to be the same tenant's. Connections that it
    /// forbids are cut off when this returns; what was used counts for its limits.
    pub fn replace(&self, policy: Policy) {
        self.gate.replace(policy);
        // One that is made later begins by this policy.
        let desk = self.desk.lock().upgrade();
        if let Some(desk) = desk {
            desk.cut_forbidden();
        }
    }

    /// Returns the TCP port of the proxy on the guest's 127.0.0.1, and the UDP port of its DNS
    /// server.
    pub fn ports(&self) -> EgressPorts {
        self.ports
    }

    /// Returns whether the guest has ended the egress.
    pub fn is_over(&self) -> bool {
        self.task.is_finished()
    }
}

/// What has ended.
enum Over {
    Guest(ChannelError),
    Proxy(io::Error),
}

impl From<ChannelError> for Over {
    fn from(error: ChannelError) -> Self {
        Self::Guest(error)
    }
}

/// Whether the guest has egress already.
fn is_busy(error: &GuestError) -> bool {
    error.errno == Errno::EBUSY as i32
}

/// A link to the proxy, with what there was when it was made.
type Linked = (SessionLink, Begun);

async fn connect(
    gate: &Gate,
    policies: &mut watch::Receiver<u64>,
    proxies: &dyn Proxies,
) -> Result<Linked, NoProxy> {
    // Limits that change from here on are told to the proxy.
    let policy = *policies.borrow_and_update();
    let begun = Begun { used_bytes: gate.budget().used().bytes, policy };
    Ok((proxies.connect(gate.limits_left()).await?, begun))
}

/// The egress of a session as it is served.
struct Served {
    gate: Arc<Gate>,
    policies: watch::Receiver<u64>,
    desk: Arc<Mutex<Weak<Desk>>>,
    proxies: Arc<dyn Proxies>,
}

impl Served {
    /// Serves a guest until it is gone; with another proxy when one ends.
    async fn run(mut self, mut guest: GuestEgress, first: Linked) {
        let (SessionLink { mut link, mut process }, mut begun) = first;
        loop {
            let attached = Attached(Arc::new(Desk::new(Arc::clone(&self.gate), link, begun)));
            *self.desk.lock() = Arc::downgrade(&attached.0);
            match attached.serve(&mut guest, &self.gate, &mut self.policies).await {
                // Usually the session has ended. A guest that breaks the protocol is cut off, which
                // is all that is left to do here.
                Over::Guest(error) => return tracing::debug!(%error, "egress is over"),
                Over::Proxy(error) => {
                    tracing::warn!(%error, "the egress proxy is lost");
                    if error.kind() == io::ErrorKind::InvalidData {
                        self.proxies.distrust(process).await;
                    }
                }
            }
            // What its connections came to counts for the next one.
            attached.0.close().await;
            (SessionLink { link, process }, begun) = loop {
                // However often one is lost, nothing is done in haste.
                tokio::time::sleep(PROXY_PAUSE).await;
                match connect(&self.gate, &mut self.policies, &*self.proxies).await {
                    Ok(linked) => break linked,
                    Err(error) => tracing::warn!(%error, "a session has no egress for now"),
                }
            };
        }
    }
}

/// A session at a proxy. What its connections came to is still logged after it is dropped.
struct Attached(Arc<Desk>);

impl Attached {
    /// Serves the guest until it or the proxy is gone.
    async fn serve(
        &self,
        guest: &mut GuestEgress,
        gate: &Arc<Gate>,
        policies: &mut watch::Receiver<u64>,
    ) -> Over {
        let Self(desk) = self;
        let GuestEgress { clients, queries, answers, .. } = guest;
        let mut accepts = JoinSet::new();
        for _ in 0..ACCEPTS {
            accepts.spawn(accept(clients.clone(), Duration::ZERO));
        }
        let mut served = Clients::default();
        let mut requests = JoinSet::new();
        let mut names = 0_usize;
        loop {
            tokio::select! {
                Some(accepted) = accepts.join_next() => match accepted {
                    Ok(Ok(client)) => {
                        let place = gate.budget().place();
                        let is_too_many = place.is_none();
                        // A guest that is out for a flood gets no faster answers.
                        let mut pause = ACCEPT_PAUSE;
                        if (!is_too_many || served.refused() < REFUSALS)
                            && let Some((ours, theirs, room)) = stream_for(gate)
                        {
                            let number = served.number();
                            let message = FromEngine::Client { client: number, is_too_many };
                            if let Err(error) = desk.link.send(&message, Some(theirs.as_fd())).await
                            {
                                return Over::Proxy(error);
                            }
                            let limit = if is_too_many { REFUSAL_LIMIT } else { Duration::MAX };
                            served.add(number, (place, room), async move {
                                let _ = tokio::time::timeout(limit, carry(client, ours)).await;
                            });
                            pause = Duration::ZERO;
                        }
                        accepts.spawn(accept(clients.clone(), pause));
                    }
                    Ok(Err(error @ (ChannelError::Guest(_) | ChannelError::NoBuffers))) => {
                        tracing::debug!(%error, "a proxy client of a guest");
                        accepts.spawn(accept(clients.clone(), ACCEPT_PAUSE));
                    }
                    Ok(Err(error)) => return error.into(),
                    Err(lost) => return Over::Guest(ChannelError::Closed { reason: lost.to_string() }),
                },
                query = queries.next(), if names < MAX_DNS_IN_FLIGHT => match query {
                    Ok(query) => {
                        names += 1;
                        if let Err(error) = desk.link.send(&FromEngine::Query(query), None).await {
                            return Over::Proxy(error);
                        }
                    }
                    Err(error) => return error.into(),
                },
                received = desk.link.receive(), if requests.len() < REQUESTS => match received {
                    Ok(Some((FromProxy::Answer(answer), _))) => {
                        if names == 0 || answer.message.len() > MAX_DNS_MESSAGE {
                            let error = "the egress proxy gives an answer too much or too long";
                            return Over::Proxy(broken(error));
                        }
                        names -= 1;
                        if let Err(error) = answers.send(&answer).await {
                            return error.into();
                        }
                    }
                    Ok(Some((FromProxy::Ended(ended), _))) => {
                        if !desk.ended(&ended) {
                            return Over::Proxy(broken("a connection has ended that was none"));
                        }
                    }
                    Ok(Some((FromProxy::Served { client }, _))) => {
                        if !served.served(client) {
                            return Over::Proxy(broken("a client was served that was none"));
                        }
                    }
                    Ok(Some((message, _))) => {
                        let desk = Arc::clone(desk);
                        requests.spawn(async move { desk.serve(message).await });
                    }
                    Ok(None) => return Over::Proxy(io::ErrorKind::UnexpectedEof.into()),
                    Err(error) => return Over::Proxy(error),
                },
                Ok(()) = policies.changed() => {
                    if let Err(error) = desk.tell_limits().await {
                        return Over::Proxy(error);
                    }
                }
                Some(served) = requests.join_next() => {
                    if let Ok(Err(error)) = served {
                        return Over::Proxy(error);
                    }
                }
                Some(client) = served.hung_up() => {
                    if let Err(error) = desk.link.send(&FromEngine::Gone { client }, None).await {
                        return Over::Proxy(error);
                    }
                }
            }
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // The tasks of its requests have ended, or will have at their next step. What was closed
        // before is closed at once.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let desk = Arc::clone(&self.0);
            runtime.spawn(async move { desk.close().await });
        }
    }
}

/// Returns both ends of a stream for a client, the engine's and the proxy's, with a place for it;
/// `None` when there is no place or no descriptor, so that the client is dropped.
fn stream_for(gate: &Gate) -> Option<(UnixStream, OwnedFd, Place)> {
    let place = gate.client().inspect_err(|full| tracing::debug!(%full, "no place for a client"));
    let make = || {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        // Of both: what is sent counts for the sender, and the proxy's memory is bounded.
        setsockopt(&ours, sockopt::SndBuf, &STREAM_BUFFER)?;
        setsockopt(&theirs, sockopt::SndBuf, &STREAM_BUFFER)?;
        descriptors::refuse(&ours);
        ours.set_nonblocking(true)?;
        Ok::<_, io::Error>((UnixStream::from_std(ours)?, OwnedFd::from(theirs)))
    };
    let pair = make().inspect_err(|error| tracing::warn!(%error, "no stream for a client"));
    let (place, (ours, theirs)) = (place.ok()?, pair.ok()?);
    Some((ours, theirs, place))
}

async fn accept(clients: ProxyClients, pause: Duration) -> Result<GuestStream, ChannelError> {
    tokio::time::sleep(pause).await;
    clients.accept().await
}
