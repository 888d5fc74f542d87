//! Errors of egress and of a policy, and bounds on one.

use ipnet::IpNet;

use super::proxies::NoProxy;
use crate::channel::ChannelError;

/// Most entries that allow, and most that deny.
pub const MAX_RULES: usize = 256;

/// Egress that cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// The guest does not take part.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// There is no proxy process.
    #[error(transparent)]
    Proxy(#[from] NoProxy),
}

/// A policy that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// An entry is no host.
    #[error(
        "egress to `{entry}` cannot be allowed: write NAME, *.NAME, an IP address or a network, with :PORT, :* or \
         without, or *"
    )]
    Entry {
        /// The entry, shortened.
        entry: String,
    },
    /// An entry of what is denied is no host.
    #[error(
        "egress to `{entry}` cannot be denied: write NAME, *.NAME, an IP address or a network, with :PORT or without"
    )]
    Deny {
        /// The entry, shortened.
        entry: String,
    },
    /// Something is denied where nothing but names is allowed.
    #[error(
        "egress is denied to hosts although no entry allows `*`: what is denied is taken from `*` alone, and what no \
         entry allows is denied anyway"
    )]
    NothingToDeny,
    /// The policy has too many entries.
    #[error("egress can be allowed or denied to at most {MAX_RULES} hosts, not {count}")]
    TooMany {
        /// Number of entries.
        count: usize,
    },
    /// A network that must never be reached.
    #[error(
        "the network {0} cannot be exempted from egress checks: it is loopback, link-local, multicast, unspecified or a metadata service of a cloud"
    )]
    Exempt(IpNet),
}
