//! The host's end of what a guest says: the channel to its agent, and what it may reach outside.
//!
//! - [`channel`] runs commands, moves files and opens sockets in one guest;
//! - [`archive`] packs what goes into a guest, and unpacks what comes out of one;
//! - [`docker`] is where its Docker daemon listens, and the way of clients to it;
//! - [`credentials`] and [`hop_by_hop`] are headers that no proxy passes into it;
//! - [`egress`] answers its proxy and DNS by a policy.
//!
//! A guest is hostile: all that comes from it is bounded, and the worst it can do is an error.

pub mod archive;
pub mod channel;
pub mod credentials;
pub mod docker;
pub mod egress;
pub mod hop_by_hop;
