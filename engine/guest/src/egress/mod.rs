//! Egress: the HTTP proxy and DNS of a session, answered here by policy.
//!
//! A guest has no network device. Its agent hands each client of its proxy port to the engine, which
//! passes it on to a process of its own, the [`proxy`]. That one reads requests and asks the engine,
//! which decides and connects; see `Session::allow_egress` of the engine. Nothing is allowed unless a
//! [`Policy`] names it.
//!
//! - In the engine: [`Egress`] serves a session, a `desk` answers what the proxy asks, by a `gate`.
//! - In the proxy process: [`proxy`] and [`dns`].
//! - Between them: `messages` over a [`Link`].

mod addresses;
mod carry;
mod clients;
mod counts;
mod decision;
mod desk;
#[doc(hidden)]
pub mod dns;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod host;
mod limits;
mod line_rate;
mod link;
mod log;
mod messages;
mod name_server;
mod policy;
mod proxies;
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
pub use error::{EgressError, PolicyError};
pub use host::{BadHost, Host};
pub use limits::{EgressAccount, Limits, Used};
pub use link::Link;
pub use policy::Policy;
pub use proxies::{NoProxy, Proxies, ProxyProcess, SessionLink};
pub use record::{EgressRecord, Kind, Observer, Verdict};
pub use serve::Egress;
