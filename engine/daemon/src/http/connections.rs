//! Places of connections: how many clients may have at a time, with and without a token.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use mayfly_api::TenantName;
use mayfly_host::time_scale::scaled;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::error::ApiError;
use crate::service::capacity::ConnectionConfig;
use crate::service::shares::{Account, Share};

/// What a tenant is told to wait that has too many.
const RETRY: Duration = Duration::from_secs(1);

/// Connections of a daemon. Those over the Unix socket have places of their own, so that nobody
/// who reaches the TCP port can keep the operator out.
#[derive(Debug)]
pub struct Connections {
    config: ConnectionConfig,
    local: Arc<Semaphore>,
    unknown: Mutex<Unknown>,
}

/// Connections over TCP that have shown no valid token.
#[derive(Debug, Default)]
struct Unknown {
    next: u64,
    /// The oldest first.
    places: BTreeMap<u64, (Network, CancellationToken)>,
    /// Those of each network, the oldest first.
    networks: HashMap<Network, BTreeSet<u64>>,
}

/// An IPv4 address, or the 64 bits of an IPv6 address that one client has all to itself.
type Network = IpAddr;

/// Place of one connection; given back when the last user of the connection drops it.
#[derive(Debug)]
pub struct Place {
    connections: Arc<Connections>,
    holder: Mutex<Holder>,
    /// Cancelled as soon as it is known whose the connection is.
    known: CancellationToken,
    /// Cancelled when another connection gets the place.
    displaced: CancellationToken,
    since: Instant,
}

#[derive(Debug)]
enum Holder {
    Local { _permit: OwnedSemaphorePermit },
    Unknown(u64),
    Tenant { name: TenantName, _share: Share },
}

/// Reason why a connection without a token ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnedAway {
    /// A newer one has its place.
    Displaced,
    /// It has shown no token in time.
    TooLong,
}

impl Connections {
    /// Creates a table that `config` bounds.
    pub fn new(config: ConnectionConfig) -> Arc<Self> {
        let local = Arc::new(Semaphore::new(config.max_local));
        Arc::new(Self { config, local, unknown: Mutex::default() })
    }

    /// Returns a place for a connection over the Unix socket; waits for one.
    pub async fn local(self: &Arc<Self>) -> Arc<Place> {
        let permit = loop {
            // Nobody closes the semaphore.
            if let Ok(permit) = self.local.clone().acquire_owned().await {
                break permit;
            }
        };
        let place = self.place(Holder::Local { _permit: permit });
        place.known.cancel();
        place
    }

    /// Returns a place for a connection over TCP whose owner is not known yet. When its address has
    /// too many such, or all have, the oldest of them loses its place: whoever has a token shows it
    /// at once, also where many clients come from one address, as from behind a proxy.
    pub fn unknown(self: &Arc<Self>, address: IpAddr) -> Arc<Place> {
        let network = network_of(address);
        let mut unknown = self.unknown.lock();
        let of_network = unknown.networks.get(&network);
        let oldest = if of_network.map_or(0, BTreeSet::len) >= self.config.max_unknown_per_address {
            of_network.and_then(|numbers| numbers.first().copied())
        } else if unknown.places.len() >= self.config.max_unknown {
            unknown.places.first_key_value().map(|(number, _)| *number)
        } else {
            None
        };
        if let Some(displaced) = oldest.and_then(|oldest| unknown.remove(oldest)) {
            displaced.cancel();
        }
        let number = unknown.next;
        unknown.next += 1;
        let place = self.place(Holder::Unknown(number));
        unknown.places.insert(number, (network, place.displaced.clone()));
        unknown.networks.entry(network).or_default().insert(number);
        place
    }

    fn place(self: &Arc<Self>, holder: Holder) -> Arc<Place> {
        Arc::new(Place {
            connections: self.clone(),
            holder: Mutex::new(holder),
            known: CancellationToken::new(),
            displaced: CancellationToken::new(),
            since: Instant::now(),
        })
    }
}

impl Unknown {
    fn remove(&mut self, number: u64) -> Option<CancellationToken> {
        let (network, displaced) = self.places.remove(&number)?;
        if let Some(numbers) = self.networks.get_mut(&network) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.networks.remove(&network);
            }
        }
        Some(displaced)
    }
}

impl Place {
    /// Counts the connection as one of a tenant that has shown its token. A connection that passes
    /// on requests of several tenants counts for the last.
    ///
    /// # Errors
    /// [`ApiError`] `too_many_connections`; the connection is the tenant's no more than before.
    pub fn belongs_to(
        &self,
        tenant: &TenantName,
        account: impl FnOnce() -> Account,
    ) -> Result<(), ApiError> {
        let mut holder = self.holder.lock();
        match &*holder {
            Holder::Local { .. } => return Ok(()),
            Holder::Tenant { name, .. } if name == tenant => return Ok(()),
            Holder::Tenant { .. } | Holder::Unknown(_) => {}
        }
        let share = account().take(1).ok_or_else(|| {
            let message = "this tenant has as many connections as it may: close some, or use them \
                           for several requests";
            let status = StatusCode::TOO_MANY_REQUESTS;
            ApiError::new(status, "too_many_connections", message).retry_after(RETRY).closing()
        })?;
        let known = Holder::Tenant { name: tenant.clone(), _share: share };
        let before = std::mem::replace(&mut *holder, known);
        if let Holder::Unknown(number) = before {
            self.connections.unknown.lock().remove(number);
        }
        self.known.cancel();
        Ok(())
    }

    /// Resolves when the connection is to end for want of a token, whose time has begun with the
    /// place; never once there was one.
    pub async fn turned_away(&self) -> TurnedAway {
        let limit = scaled(self.connections.config.unknown_for);
        tokio::select! {
            biased;
            () = self.known.cancelled() => std::future::pending().await,
            () = self.displaced.cancelled() => TurnedAway::Displaced,
            () = tokio::time::sleep_until(self.since + limit) => TurnedAway::TooLong,
        }
    }

    /// Resolves after `limit`, or when another connection gets the place; never once there was a
    /// token.
    pub async fn still_unknown(&self, limit: Duration) {
        tokio::select! {
            biased;
            () = self.known.cancelled() => std::future::pending().await,
            () = self.displaced.cancelled() => {}
            () = tokio::time::sleep(limit) => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Holder::Unknown(number) = self.holder.get_mut() {
            self.connections.unknown.lock().remove(*number);
        }
    }
}

fn network_of(address: IpAddr) -> Network {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::shares::Shares;

    fn connections(max_unknown: usize, max_unknown_per_address: usize) -> Arc<Connections> {
        Connections::new(ConnectionConfig {
            max_unknown,
            max_unknown_per_address,
            unknown_for: Duration::from_secs(3600),
            ..ConnectionConfig::default()
        })
    }

    fn from(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[tokio::test]
    async fn an_address_has_a_bound_until_it_shows_tokens() {
        let connections = connections(10, 2);
        let red = TenantName::new("red").unwrap();
        let account = Shares::new(2, []).account(&red, None);
        let (other, oldest) = (connections.unknown(from(2)), connections.unknown(from(1)));
        let (first, third) = (connections.unknown(from(1)), connections.unknown(from(1)));
        assert_eq!(oldest.turned_away().await, TurnedAway::Displaced);
        first.belongs_to(&red, || account.clone()).unwrap();
        // It counts for its address no more.
        let second = connections.unknown(from(1));
        for stays in [&first, &second, &third, &other] {
            assert!(futures::poll!(Box::pin(stays.turned_away())).is_pending());
        }
        third.belongs_to(&red, || account.clone()).unwrap();
        // Again on the same connection.
        third.belongs_to(&red, || account.clone()).unwrap();
        let error = other.belongs_to(&red, || account.clone()).unwrap_err();
        assert_eq!(error.code(), "too_many_connections");
        drop(first);
        other.belongs_to(&red, || account.clone()).unwrap();
        drop((oldest, second, third, other));
        assert_eq!(account.held(), 0);
        let unknown = connections.unknown.lock();
        assert!(unknown.places.is_empty() && unknown.networks.is_empty());
    }

    #[tokio::test]
    async fn the_oldest_without_a_token_makes_room_and_nobody_else_does() {
        let connections = connections(2, 2);
        let red = TenantName::new("red").unwrap();
        let account = Shares::new(9, []).account(&red, None);
        let known = connections.unknown(from(1));
        known.belongs_to(&red, || account.clone()).unwrap();
        let (old, new) = (connections.unknown(from(1)), connections.unknown(from(2)));
        let newest = connections.unknown(from(3));
        assert_eq!(old.turned_away().await, TurnedAway::Displaced);
        for stays in [&known, &new, &newest] {
            assert!(futures::poll!(Box::pin(stays.turned_away())).is_pending());
        }
        // One that shows its token at the last moment stays.
        old.belongs_to(&red, || account.clone()).unwrap();
        assert!(futures::poll!(Box::pin(old.turned_away())).is_pending());
        drop((old, known, new, newest));
        assert_eq!(account.held(), 0);
    }

    #[tokio::test]
    async fn a_connection_that_serves_several_tenants_counts_for_the_last() {
        let connections = connections(2, 2);
        let (red, blue) = (TenantName::new("red").unwrap(), TenantName::new("blue").unwrap());
        let shares = Shares::new(9, []);
        let place = connections.unknown(from(1));
        for tenant in [&red, &blue] {
            place.belongs_to(tenant, || shares.account(tenant, None)).unwrap();
        }
        assert_eq!((shares.held(&red), shares.held(&blue)), (0, 1));
    }

    #[test]
    fn a_network_is_what_one_client_has() {
        let of = |text: &str| network_of(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!((of("10.1.2.3"), of("::ffff:10.1.2.3")), ("10.1.2.3".into(), "10.1.2.3".into()));
    }
}
