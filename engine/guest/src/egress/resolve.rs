//! Resolution of a host to the addresses that may be connected to. A connection goes to the very
//! address that was checked here, so that there is no second look-up that could answer otherwise.

use super::addresses::{self, Denied};
use super::host::Host;
use ipnet::IpNet;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Look-ups of one session at a time. One whose time is over still holds its place until the
/// system's resolver gives it up.
const LOOKUPS: usize = 8;
/// Look-ups of all sessions at a time: each holds a thread, of which others need some, too.
static ALL_LOOKUPS: Semaphore = Semaphore::const_new(128);
const LOOKUP_LIMIT: Duration = Duration::from_secs(10);
/// Addresses of one name that are looked at.
const MAX_ADDRESSES: usize = 16;

/// Why there is no address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoAddress {
    #[error("its name cannot be looked up: {0}")]
    NotFound(String),
    #[error("looking up its name took more than {LOOKUP_LIMIT:?}")]
    TimedOut,
    #[error("{0} is {1}")]
    Denied(IpAddr, Denied),
}

#[derive(Debug)]
pub(super) struct Resolver {
    lookups: Arc<Semaphore>,
    exempt: Vec<IpNet>,
}

impl Resolver {
    pub fn new(exempt: Vec<IpNet>) -> Self {
        Self { lookups: Arc::new(Semaphore::new(LOOKUPS)), exempt }
    }

    /// Resolves `host` to the addresses that may be connected to, at least one, in the order of the
    /// system's resolver.
    pub async fn resolve(&self, host: &Host) -> Result<Vec<IpAddr>, NoAddress> {
        let found = match host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => self.look_up(name.clone()).await?,
        };
        self.passing(found)
    }

    /// Returns those of `found` that may be connected to, at least one.
    pub fn passing(&self, found: Vec<IpAddr>) -> Result<Vec<IpAddr>, NoAddress> {
        let own = addresses::of_host().map_err(|error| NoAddress::NotFound(error.to_string()))?;
        let mut passed = Vec::new();
        let mut denied = None;
        for address in found {
            match addresses::check(address, &self.exempt, &own) {
                Ok(()) => passed.push(address),
                Err(why) => denied = denied.or(Some((address, why))),
            }
        }
        match (passed.is_empty(), denied) {
            (false, _) => Ok(passed),
            (true, Some((address, why))) => Err(NoAddress::Denied(address, why)),
            (true, None) => Err(NoAddress::NotFound("it has no address".to_owned())),
        }
    }

    async fn look_up(&self, name: String) -> Result<Vec<IpAddr>, NoAddress> {
        let work = async {
            // Neither is ever closed.
            let places =
                (Arc::clone(&self.lookups).acquire_owned().await, ALL_LOOKUPS.acquire().await);
            let looking = tokio::task::spawn_blocking(move || {
                let _places = places;
                let found = (name.as_str(), 0).to_socket_addrs()?;
                let mut addresses: Vec<IpAddr> = Vec::new();
                for address in found.map(|found| found.ip().to_canonical()).take(MAX_ADDRESSES) {
                    if !addresses.contains(&address) {
                        addresses.push(address);
                    }
                }
                Ok::<_, std::io::Error>(addresses)
            });
            looking.await
        };
        match tokio::time::timeout(LOOKUP_LIMIT, work).await {
            Err(_) => Err(NoAddress::TimedOut),
            Ok(Err(lost)) => Err(NoAddress::NotFound(lost.to_string())),
            Ok(Ok(found)) => found.map_err(|error| NoAddress::NotFound(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_leads_to_this_host_is_denied() {
        let resolver = Resolver::new(vec!["0.0.0.0/0".parse().unwrap()]);
        let denied = resolver.resolve(&Host::parse("localhost").unwrap()).await.unwrap_err();
        assert!(matches!(denied, NoAddress::Denied(_, Denied::Loopback)), "{denied}");
        let denied =
            Resolver::new(Vec::new()).resolve(&Host::parse("10.1.2.3").unwrap()).await.unwrap_err();
        assert_eq!(denied.to_string(), "10.1.2.3 is a private address");
        let passed = resolver.resolve(&Host::parse("10.1.2.3").unwrap()).await.unwrap();
        assert_eq!(passed, ["10.1.2.3".parse::<IpAddr>().unwrap()]);
        let unknown =
            resolver.resolve(&Host::parse("no-such-host.invalid").unwrap()).await.unwrap_err();
        assert!(matches!(unknown, NoAddress::NotFound(_) | NoAddress::TimedOut), "{unknown}");
    }
}
