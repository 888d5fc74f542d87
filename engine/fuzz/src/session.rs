//! The exchange with a guest's Docker daemon.

#[path = "../../src/session/docker.rs"]
mod docker;

pub use docker::ping as ping_docker;

/// The one of the engine's errors that `docker.rs` makes: when it cannot make a socket on the host, which no target asks for.
#[derive(Debug)]
pub enum SessionError {
    Io { action: &'static str, source: std::io::Error },
}
