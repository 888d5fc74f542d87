//! The HTTP proxy (RFC 9110, section 7) that a guest's clients speak to.

mod body;
mod forward;
mod head;
mod server;

pub use head::check_head;
pub(super) use server::{Served, serve};
