//! The service over HTTP: JSON, streams, WebSockets, and a description of itself as OpenAPI.
//!
//! [`serve()`] answers on [`Listeners`]: a Unix socket, whose owner needs no token, and TCP, where
//! every request needs one. A request goes through
//!
//! - [`connections`]: how many may come, and for how long without a token;
//! - [`origin`]: whether a browser asks for somebody else's page;
//! - [`auth`]: who asks;
//! - [`router`]: which of the [`routes`] it is for;
//! - [`extract`]: what the handler needs of it;
//! - [`guest`]: work with a guest, which may end with its session at any time.
//!
//! A [`FrontEnd`] is another API on the same listeners, which has requests of its own.
//!
//! Answers that go on are lines of JSON ([`ndjson`]), a WebSocket ([`routes::exec_socket`]),
//! content of a file ([`transfer`]) or whatever a server in the guest says ([`proxy`]), made
//! [`foreign`] to our origin, its redirects below its own path ([`location`]). Failures are
//! [`error::ApiError`]s. The documents of it all are the types of `mayfly-api`.

pub mod auth;
pub mod body;
pub mod connections;
pub mod counted;
mod described;
pub mod error;
pub mod extract;
pub mod foreign;
mod front_end;
mod given;
pub mod guest;
pub mod location;
pub mod ndjson;
pub mod origin;
pub mod proxy;
pub mod router;
pub mod routes;
mod serve;
mod socket;
#[cfg(test)]
mod tests;
mod tls;
pub mod transfer;

pub use front_end::FrontEnd;
pub use serve::{Listeners, ServeError, serve};
pub use socket::SocketError;
pub use tls::TlsError;
