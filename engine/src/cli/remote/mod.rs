//! The commands that need a running daemon.

pub mod copy;
pub mod exec;
pub mod sessions;
pub mod status;

use mayfly_host::layout::Layout;

use crate::client::Client;

/// A client of this host's daemon.
fn daemon() -> Client {
    Client::local(&Layout::from_env())
}
