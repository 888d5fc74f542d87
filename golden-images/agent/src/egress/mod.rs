//! Egress of the guest: a proxy port and a DNS port whose traffic goes to the engine, and what
//! programs need to find them.
//!
//! Nothing listens before the engine asks for it, and nothing of it is left when its stream ends:
//! in the parked phase there is no egress.

mod dns;
mod docker;
mod environment;
mod listen;
mod serve;

pub use environment::variables;
pub use listen::Listeners;
pub use serve::{accept, serve};
