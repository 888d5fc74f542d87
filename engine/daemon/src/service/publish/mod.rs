//! Ports that the containers of a session publish, on a loopback address of this host.
//!
//! The session's Docker daemon is followed through the guest channel. What it says is a guest's word:
//! it decides which of the ports that a session may have are listened on, and nothing else. A port
//! leads to the same port of the session, where Docker has published it.

mod address;
mod containers;
mod listeners;

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use mayfly_api::{Publish, PublishedPort};
use mayfly_guest::channel::ChannelError;
use mayfly_host::time_scale::scaled;
use serde::{Deserialize, Serialize};
use tokio_util::task::AbortOnDropHandle;

pub(super) use address::Place;
use containers::Events;
use listeners::{Listeners, Shown};

use super::live::LiveSession;
use super::shares::Account;

/// Least time between two looks at the containers: a guest says as often as it likes that something
/// has happened.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest time between two looks. What is wanted and could not be opened is tried again then.
const LOOK: Duration = Duration::from_secs(10);
/// Pause before a Docker daemon is asked again that did not answer, which may still be starting.
const AGAIN: Duration = Duration::from_millis(500);
/// Bound on one answer of a Docker daemon.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Which addresses of this host sessions may publish ports on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PublishConfig {
    /// Whether a session may listen on 127.0.0.1, which it shares with the programs of the host. A
    /// loopback address of its own it may always have.
    pub on_localhost: bool,
}

impl PublishConfig {
    /// Whether a session may have what it asks for. The error is for whoever asked.
    pub(super) fn check(&self, asked: Option<Publish>) -> Result<(), String> {
        if asked == Some(Publish::Localhost) && !self.on_localhost {
            return Err(
                "sessions may not publish ports on 127.0.0.1 of this host: ask for `own`, or set \
                        `on_localhost = true` below `[publish]` in the daemon's configuration"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

/// The published ports of one session. Dropping it closes all of them, with their connections.
#[derive(Debug)]
pub(super) struct Publisher {
    place: Place,
    shown: Shown,
    _task: AbortOnDropHandle<()>,
}

impl Publisher {
    /// Follows the containers of a session from now on. Listeners and connections count for
    /// `account`.
    pub fn begin(place: Place, account: Account, session: Weak<LiveSession>) -> Self {
        let shown = Shown::default();
        let listeners =
            Listeners::new(place.address(), account, Weak::clone(&session), Arc::clone(&shown));
        let task = tokio::spawn(follow(session, listeners));
        Self { place, shown, _task: AbortOnDropHandle::new(task) }
    }

    /// Returns the address of this host on which it listens.
    pub fn address(&self) -> Ipv4Addr {
        self.place.address()
    }

    /// Returns the ports, in order, those among them that could not be opened.
    pub fn ports(&self) -> Vec<PublishedPort> {
        let shown = self.shown.lock();
        shown
            .iter()
            .map(|(port, error)| PublishedPort { port: *port, error: error.clone() })
            .collect()
    }
}

async fn follow(session: Weak<LiveSession>, mut listeners: Listeners) {
    loop {
        let Err(error) = watch(&session, &mut listeners).await;
        if session.strong_count() == 0 {
            return;
        }
        tracing::debug!(%error, "the containers of a session");
        tokio::time::sleep(AGAIN).await;
    }
}

/// Opens and closes ports as the session's Docker daemon says, until it does not answer.
async fn watch(
    session: &Weak<LiveSession>,
    listeners: &mut Listeners,
) -> Result<Infallible, ChannelError> {
    // Before the first look, so that nothing is missed after it.
    let mut events = within(Events::of(session)).await?;
    loop {
        let ports = within(containers::published(session)).await?;
        listeners.set(&ports).await;
        tokio::select! {
            more = events.next() => more?,
            () = tokio::time::sleep(LOOK) => {}
        }
        tokio::time::sleep(PAUSE).await;
        events.skip();
    }
}

async fn within<T>(work: impl Future<Output = Result<T, ChannelError>>) -> Result<T, ChannelError> {
    let limit = scaled(ANSWER_LIMIT);
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        let reason = format!("the guest's Docker daemon did not answer within {limit:?}");
        Err(ChannelError::Closed { reason })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_is_the_operators_to_give() {
        let config = PublishConfig::default();
        config.check(None).unwrap();
        config.check(Some(Publish::Own)).unwrap();
        assert!(config.check(Some(Publish::Localhost)).unwrap_err().contains("on_localhost"));
        PublishConfig { on_localhost: true }.check(Some(Publish::Localhost)).unwrap();
    }
}
