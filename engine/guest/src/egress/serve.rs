//! Serves the egress of one session: takes the clients of its proxy port, and its DNS queries.

use std::sync::Arc;
use std::time::Duration;

use mayfly_host::time_scale::scaled;
use mayfly_protocol::MAX_DNS_IN_FLIGHT;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::dns;
use super::gate::Gate;
use super::policy::Policy;
use super::proxy::{self, Served};
use crate::channel::{
    Channel, ChannelError, DnsMessage, EgressPorts, GuestEgress, GuestStream, ProxyClients,
};

/// How long the agent may take to listen; under emulation it needs tens of milliseconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Clients that can be taken at once. Each costs a stream that waits in the guest.
const ACCEPTS: usize = 2;
/// Clients at a time that are told that there are too many; further ones are dropped.
const REFUSALS: usize = 8;
const REFUSAL_LIMIT: Duration = Duration::from_secs(10);
/// Pause after a client that the agent could not take, or that was dropped.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The egress of a session. Ends when it is dropped, with all connections, or with the session.
#[derive(Debug)]
pub struct Egress {
    ports: EgressPorts,
    task: AbortOnDropHandle<()>,
}

impl Egress {
    /// Opens the egress ports of a guest and serves them by `policy` until it is dropped. `session`
    /// names it in the log.
    ///
    /// # Errors
    /// [`ChannelError`] when the guest does not open them.
    pub async fn start(
        channel: &Channel,
        session: &str,
        policy: Policy,
    ) -> Result<Self, ChannelError> {
        let limit = scaled(ANSWER_LIMIT);
        let guest =
            tokio::time::timeout(limit, channel.open_egress()).await.unwrap_or_else(|_| {
                Err(ChannelError::Closed {
                    reason: format!("the guest agent did not listen for egress within {limit:?}"),
                })
            })?;
        let ports = guest.ports;
        let gate = Arc::new(Gate::new(session, policy));
        Ok(Self { ports, task: AbortOnDropHandle::new(tokio::spawn(run(guest, gate))) })
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

async fn run(guest: GuestEgress, gate: Arc<Gate>) {
    let GuestEgress { clients, mut queries, mut answers, .. } = guest;
    let mut accepts = JoinSet::new();
    for _ in 0..ACCEPTS {
        accepts.spawn(accept(clients.clone(), Duration::ZERO));
    }
    let mut connections = JoinSet::new();
    let mut refusals = JoinSet::new();
    let mut names = JoinSet::new();
    let over = loop {
        tokio::select! {
            Some(accepted) = accepts.join_next() => match accepted {
                Ok(Ok(client)) => {
                    let mut pause = Duration::ZERO;
                    let gate = Arc::clone(&gate);
                    match gate.budget().place() {
                        Some(place) => {
                            connections.spawn(async move {
                                proxy::serve(client, gate, Served::All).await;
                                drop(place);
                            });
                        }
                        None if refusals.len() < REFUSALS => {
                            refusals.spawn(async move {
                                let refused = proxy::serve(client, gate, Served::TooMany);
                                let _ = tokio::time::timeout(REFUSAL_LIMIT, refused).await;
                            });
                        }
                        // A guest that is out for a flood gets no faster answers.
                        None => pause = ACCEPT_PAUSE,
                    }
                    accepts.spawn(accept(clients.clone(), pause));
                }
                Ok(Err(error @ (ChannelError::Guest(_) | ChannelError::NoBuffers))) => {
                    tracing::debug!(%error, "a proxy client of a guest");
                    accepts.spawn(accept(clients.clone(), ACCEPT_PAUSE));
                }
                Ok(Err(error)) => break error,
                Err(lost) => break ChannelError::Closed { reason: lost.to_string() },
            },
            query = queries.next(), if names.len() < MAX_DNS_IN_FLIGHT => match query {
                Ok(DnsMessage { tag, message }) => {
                    let gate = Arc::clone(&gate);
                    names.spawn(async move { DnsMessage { tag, message: dns::answer(&gate, &message).await } });
                }
                Err(error) => break error,
            },
            Some(answered) = names.join_next() => {
                if let Ok(answer) = answered && let Err(error) = answers.send(&answer).await {
                    break error;
                }
            }
            Some(_) = connections.join_next() => {}
            Some(_) = refusals.join_next() => {}
        }
    };
    // Usually the session has ended. A guest that breaks the protocol is cut off, which is all that
    // is left to do here.
    tracing::debug!(error = %over, "egress is over");
}

async fn accept(clients: ProxyClients, pause: Duration) -> Result<GuestStream, ChannelError> {
    tokio::time::sleep(pause).await;
    clients.accept().await
}
