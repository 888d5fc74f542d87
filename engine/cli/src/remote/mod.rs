//! The commands that need a running daemon.

pub mod copy;
pub mod docker;
pub mod exec;
pub mod forward;
pub mod sessions;
pub mod status;
mod there;

use mayfly_client::Client;
use mayfly_host::layout::Layout;

/// A client of this host's daemon.
fn daemon() -> Client {
    Client::unix(Layout::from_env().api_socket())
}
