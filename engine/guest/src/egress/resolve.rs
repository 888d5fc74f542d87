//! Resolution of a host to the addresses that may be connected to. A connection goes to the very
//! address that was checked here, so that there is no second look-up that could answer otherwise.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::Semaphore;

use super::addresses::{self, Denied};
use super::host::Host;
use super::name_server::{self, NotFound};
use super::room::{Full, Room};
use super::shared::Shared;
use super::system::System;

/// Look-ups of one session at a time; further ones wait.
const LOOKUPS: usize = 8;
const LOOKUP_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no address. Only [`NoAddress::Denied`] has one in it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoAddress {
    #[error("its name cannot be looked up: {0}")]
    NotFound(String),
    #[error("looking up its name took more than {LOOKUP_LIMIT:?}")]
    TimedOut,
    #[error("no look-up is left for its name: {0}")]
    Full(Full),
    #[error("{0} is {1}")]
    Denied(IpAddr, Denied),
}

impl From<NotFound> for NoAddress {
    fn from(error: NotFound) -> Self {
        match error {
            NotFound::Silent => Self::TimedOut,
            error => Self::NotFound(error.to_string()),
        }
    }
}

impl From<io::Error> for NoAddress {
    fn from(error: io::Error) -> Self {
        // Where its files are on the host is nothing for a guest.
        tracing::warn!(%error, "cannot look a name up");
        Self::NotFound("the host cannot look it up".into())
    }
}

/// The look-ups of one session.
#[derive(Debug)]
pub(super) struct Resolver {
    system: Arc<System>,
    own: Semaphore,
    of_all: Arc<Room>,
    tenant: Option<String>,
}

impl Resolver {
    pub fn new(shared: &Shared, tenant: Option<&str>) -> Self {
        Self {
            system: Arc::clone(&shared.system),
            own: Semaphore::new(LOOKUPS),
            of_all: Arc::clone(&shared.rooms.lookups),
            tenant: tenant.map(str::to_owned),
        }
    }

    /// Resolves `host` to the addresses that may be connected to, at least one, in the order in
    /// which they are to be tried; those in `exempt` also where they are not public. When the future
    /// is dropped, nothing is left of the look-up.
    pub async fn resolve(&self, host: &Host, exempt: &[IpNet]) -> Result<Vec<IpAddr>, NoAddress> {
        let found = match host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => self.look_up(name).await?,
        };
        passing(found, exempt)
    }

    async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, NoAddress> {
        // RFC 6761, section 6.3. What hosts(5) says about it is as denied.
        if name == "localhost" || name.ends_with(".localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        if let Some(addresses) = self.system.hosts()?.get(name) {
            return Ok(addresses.iter().map(IpAddr::to_canonical).collect());
        }
        let end = Instant::now() + LOOKUP_LIMIT;
        // Never closed.
        let _own = tokio::time::timeout_at(end.into(), self.own.acquire())
            .await
            .map_err(|_| NoAddress::TimedOut)?;
        let _place = self.of_all.take(self.tenant.as_deref()).map_err(NoAddress::Full)?;
        let servers = self.system.name_servers()?;
        Ok(name_server::look_up(name, &servers, end).await?)
    }
}

/// Returns those of `found` that may be connected to, at least one.
pub(super) fn passing(found: Vec<IpAddr>, exempt: &[IpNet]) -> Result<Vec<IpAddr>, NoAddress> {
    let own = addresses::of_host()?;
    let mut passed = Vec::new();
    let mut denied = None;
    for address in found {
        match addresses::check(address, exempt, &own) {
            Ok(()) => passed.push(address),
            Err(why) => denied = denied.or(Some((address, why))),
        }
    }
    match (passed.is_empty(), denied) {
        (false, _) => Ok(passed),
        (true, Some((address, why))) => Err(NoAddress::Denied(address, why)),
        (true, None) => Err(NotFound::NoAddress.into()),
    }
}
