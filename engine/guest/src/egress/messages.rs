//! Messages between the engine and the proxy, on one [`Link`](super::link::Link) for each session.
//!
//! The proxy reads what guests and servers send, and has no way out of its own. The engine decides,
//! resolves names and connects. A request of the proxy has a number, which its answer repeats.

use std::net::IpAddr;

use mayfly_protocol::DnsMessage;
use serde::{Deserialize, Serialize};

use super::record::Kind;

/// First message of the process on its own link, when it has given up what it does not need, and on
/// the link of each session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ready;

/// Limits of a session: its first message, on the link of the process, beside the link of the
/// session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begin {
    /// Most clients at a time, which a client too many is told.
    pub max_connections: usize,
    /// Most bytes to and from the outside, counted from the beginning of the link.
    pub max_bytes: u64,
}

/// What the engine sends.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromEngine {
    /// A client of the guest's proxy port. Its stream comes with it.
    Client {
        /// Number of the client.
        client: u32,
        /// Whether it is only told that there are too many.
        is_too_many: bool,
    },
    /// A client is gone, and its stream is closed, not only for one direction.
    Gone { client: u32 },
    /// A DNS query of the guest.
    Query(DnsMessage),
    /// A connection to the outside was made. It comes with it.
    Opened { request: u32 },
    /// No connection is made; the client is told so.
    Refused { request: u32, status: u16, message: String },
    /// Addresses of a name.
    Found { request: u32, addresses: Vec<IpAddr> },
    /// A name has none for the guest.
    NotFound { request: u32, is_denied: bool },
    /// A line is in the log.
    Noted { request: u32 },
    /// Other limits of the session, in place of those that it began with.
    Limits(Begin),
}

/// What the proxy sends.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromProxy {
    /// Asks for a connection. Its number is that of the connection from then on.
    Open { request: u32, kind: Kind, target: String },
    /// Asks for the addresses of a name.
    LookUp { request: u32, name: String },
    /// Asks for a line in the log about a request that leads nowhere.
    Note { request: u32, kind: Kind, authority: String, reason: String },
    /// A connection has ended.
    Ended(Ended),
    /// Nothing more is done for a client, and nothing is left of it here.
    Served { client: u32 },
    /// An answer to a DNS query.
    Answer(DnsMessage),
}

/// What a connection came to.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ended {
    pub request: u32,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub end: End,
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum End {
    /// As its ends wanted.
    Done,
    /// By an error in its course.
    Broken(String),
    /// Without an answer that could be passed on.
    Failed(String),
}
