//! Egress: the HTTP proxy and DNS of a session, answered here by policy.
//!
//! A guest has no network device. Its agent hands each client of its proxy port to the engine,
//! which decides and connects; see `Session::allow_egress` of the engine. Nothing is allowed unless
//! a [`Policy`] names it.

mod addresses;
#[doc(hidden)]
pub mod dns;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod host;
mod limits;
mod log;
mod name_server;
mod policy;
#[doc(hidden)]
pub mod proxy;
mod record;
mod resolve;
mod room;
mod serve;
mod shared;
mod system;
#[cfg(test)]
mod tests;

pub use addresses::{Denied, check_exempt};
pub use error::PolicyError;
pub use host::{BadHost, Host};
pub use limits::Limits;
pub use policy::Policy;
pub use record::{EgressRecord, Kind, Observer, Verdict};
pub use serve::Egress;
