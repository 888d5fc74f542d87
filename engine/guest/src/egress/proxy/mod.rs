//! The HTTP proxy (RFC 9110, section 7) that a guest's clients speak to, and the process it is in.
//!
//! The process reads what guests and servers send. It has no network and no rights: it
//! [asks](Outside) the engine for each connection.

mod body;
mod forward;
mod head;
mod outside;
mod process;
mod server;
mod session;
mod system_calls;

pub use head::check_head;
pub(super) use outside::Outside;
pub use process::run;
pub(super) use server::{Served, serve};
pub use system_calls::give_up_system_calls;
