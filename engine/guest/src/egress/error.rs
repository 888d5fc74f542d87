//! Errors of egress and of a policy, and bounds on one.

use ipnet::IpNet;

use super::proxies::NoProxy;
use crate::channel::ChannelError;

/// Most entries of an allowlist.
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
        "egress to `{entry}` cannot be allowed: write NAME, *.NAME or an IP address, with :PORT or without"
    )]
    Entry {
        /// The entry, shortened.
        entry: String,
    },
    /// The policy has too many entries.
    #[error("egress can be allowed to at most {MAX_RULES} hosts, not {count}")]
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
