//! A client of the daemon: what the command line, the benches and the tests ask it with.
//!
//! [`Client`] keeps connections for calls with one answer, and opens one of its own for each that
//! goes on: an attached session ([`Attached`]), a running command ([`Running`]), content of a file
//! ([`Download`]), a watch ([`Watching`]).
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use mayfly_api::Exec;
//! use mayfly_client::Client;
//! use mayfly_api::CreateSession;
//!
//! let client = Client::unix("/run/mayfly/mayfly.sock");
//! let attached = client.create_attached(&CreateSession { golden: "default".into(), ..CreateSession::default() }).await?;
//! let result = client.exec(&attached.info().id, &Exec::new(["uname", "-r"])).await?;
//! println!("{}", result.stdout.to_text());
//! // Dropping `attached` discards the session.
//! # Ok(())
//! # }
//! ```

mod attached;
mod background;
mod call;
mod connection;
mod endpoint;
mod error;
mod files;
mod lines;
mod running;
mod sessions;
#[cfg(test)]
mod tests;
mod tunnel;

pub use attached::Attached;
pub use call::Client;
pub use endpoint::{Endpoint, InvalidEndpoint};
pub use error::ClientError;
pub use files::{Download, GuestPath, Watching};
pub use running::{Running, RunningInput};
pub use tunnel::Tunnel;
