//! Runs commands: spawn, stream, signal, and the exit status.

mod child;
mod end_of_input;
mod group;
mod helper;
mod left;
pub mod limits;
mod pipe;
mod run;
mod spawn;
mod users;
mod vfork;

pub use helper::{Helper, report};
pub use left::Left;
pub use run::{output, run};
pub use spawn::{DEFAULT_PATH, rest};
pub use users::{Credentials, lookup as lookup_user};
