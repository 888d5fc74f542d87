//! Runs commands: spawn, stream, signal, and the exit status.

mod child;
mod group;
mod helper;
pub mod limits;
mod pipe;
mod run;
mod spawn;
mod users;
mod vfork;

pub use helper::{Helper, report};
pub use run::{output, run};
pub use spawn::DEFAULT_PATH;
pub use users::{Credentials, lookup as lookup_user};
