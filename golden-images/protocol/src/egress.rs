//! Egress of the guest: where the agent listens for it, and DNS messages.

use serde::{Deserialize, Serialize};

/// TCP port of the proxy in a guest.
pub const PROXY_PORT: u16 = 3128;

/// Upper bound of a DNS message in bytes, either way. Queries are far smaller.
pub const MAX_DNS_MESSAGE: usize = 4096;

/// DNS queries that wait for an answer at one time; the agent drops further ones, as a busy server
/// does, and clients ask again.
pub const MAX_DNS_IN_FLIGHT: usize = 64;

/// Ports on 127.0.0.1 on which the agent listens. In a guest these are [`PROXY_PORT`] and 53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressPorts {
    /// TCP port of the proxy.
    pub proxy: u16,
    /// UDP port of the DNS server.
    pub dns: u16,
}

/// A DNS message (RFC 1035) on an egress stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsMessage {
    /// Chosen by the agent; an answer has that of its query.
    pub tag: u32,
    /// Bytes of the message, at most [`MAX_DNS_MESSAGE`].
    #[serde(with = "serde_bytes")]
    pub message: Vec<u8>,
}
