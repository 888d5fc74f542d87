//! Runs commands: spawn, stream, signal, and the exit status.

mod pipe;
mod run;
mod spawn;
mod users;

pub use run::{output, run};
pub use spawn::DEFAULT_PATH;
