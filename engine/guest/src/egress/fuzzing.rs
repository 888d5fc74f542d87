//! The inner parts that read a guest's bytes, for fuzz targets and property tests.

use super::addresses;
use super::dns;
use super::gate::{Gate, NoName};
use super::policy::Policy;
use super::proxy::{self, Served};
use super::resolve;
use ipnet::IpNet;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

/// The egress of a session without its channel.
#[derive(Debug)]
pub struct Inner(Arc<Gate>);

impl Inner {
    /// Creates an egress that `policy` binds.
    pub fn new(policy: Policy) -> Self {
        Self(Arc::new(Gate::new("fuzz", policy)))
    }

    /// Answers a DNS message.
    pub async fn answer(&self, message: &[u8]) -> Vec<u8> {
        dns::answer(&self.0, message).await
    }

    /// Serves a client of the proxy; one that is too many is told so.
    pub async fn serve<S>(&self, client: S, is_too_many: bool)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let served = if is_too_many { Served::TooMany } else { Served::All };
        proxy::serve(client, Arc::clone(&self.0), served).await;
    }
}

/// Answers a DNS message as if its name were allowed and the system's resolver had found these
/// addresses.
pub fn answer_found(message: &[u8], found: Vec<IpAddr>, exempt: &[IpNet]) -> Vec<u8> {
    match dns::read(message) {
        Ok((answer, question)) => {
            let passing = resolve::passing(found, exempt).map_err(|_| NoName::Denied);
            dns::conclude(answer, &question, passing)
        }
        Err(answer) => answer,
    }
}

/// Returns whether a connection may go to `address`, if it is not one of this host.
pub fn passes(address: IpAddr, exempt: &[IpNet]) -> bool {
    addresses::check(address, exempt, &[]).is_ok()
}
