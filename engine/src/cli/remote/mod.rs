//! The commands that need a running daemon.

pub mod archive;
pub mod copy;
pub mod exec;
pub mod screen;
pub mod sessions;
pub mod status;

use crate::client::Client;
use crate::layout::Layout;

/// A client of this host's daemon.
fn daemon() -> Client {
    Client::local(&Layout::from_env())
}
