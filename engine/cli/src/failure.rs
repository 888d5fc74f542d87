//! Failures of a command, and the exit codes they end with.

/// Exit code when Mayfly itself failed before or beside the command of `run` and `shell` (as
/// docker-run(1) and podman use it).
pub const EXIT_OURS: u8 = 125;
/// Exit code after an interrupt (128 + SIGINT, as shells report it).
pub const EXIT_INTERRUPTED: u8 = 130;

/// A command's failure: what to tell the person, and with which code to exit.
#[derive(Debug)]
pub struct Failure {
    /// One line.
    pub message: String,
    /// Exit code, not 0.
    pub code: u8,
}

impl Failure {
    /// A failure with exit code 1.
    pub fn new(error: impl std::fmt::Display) -> Self {
        Self { message: error.to_string(), code: 1 }
    }

    /// A failure beside the command that was to run.
    pub fn ours(error: impl std::fmt::Display) -> Self {
        Self { message: error.to_string(), code: EXIT_OURS }
    }

    /// Stopped by a signal.
    pub fn interrupted(what: &str) -> Self {
        Self { message: format!("interrupted: {what}"), code: EXIT_INTERRUPTED }
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}
