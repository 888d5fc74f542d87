//! Runs commands: spawn, stream, signal, and the exit status.

mod group;
mod helper;
mod pipe;
mod run;
mod spawn;
mod users;

pub use helper::{Helper, report};
pub use run::{output, run};
pub use spawn::DEFAULT_PATH;
