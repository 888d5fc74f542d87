//! Errors of a benchmark.

use std::path::{Path, PathBuf};

use mayfly_crun::CrunError;
use mayfly_engine::golden::GoldenError;
use mayfly_engine::session::OverlayError;
use mayfly_engine::session::identity::NoEntropy;
use mayfly_engine::{EngineError, SessionError};
use mayfly_guest::channel::ChannelError;
use mayfly_vmm::qmp::QmpError;
use mayfly_vmm::{ProcessError, VmmError};

/// Reason why a benchmark gave no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The engine could not be opened.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The golden could not be loaded.
    #[error(transparent)]
    Golden(#[from] GoldenError),
    /// A session of ours.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The stored golden could not be read.
    #[error(transparent)]
    Store(#[from] mayfly_snapshotter::Error),
    /// A VMM of a peer.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The guest of a peer.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A disk of a peer.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// The container failed.
    #[error(transparent)]
    Crun(#[from] CrunError),
    /// The host's random source.
    #[error(transparent)]
    Entropy(#[from] NoEntropy),
    /// A file or a process of ours.
    #[error("cannot {action} {path}: {cause}")]
    Io {
        /// Operation that was attempted.
        action: &'static str,
        /// Path it was attempted with.
        path: PathBuf,
        /// Cause of the failure.
        cause: std::io::Error,
    },
    /// A peer did something else than it should.
    #[error("{system}: {reason}")]
    Peer {
        /// Name of the system.
        system: &'static str,
        /// Description of what it did, in its own words where it had some.
        reason: String,
    },
    /// Something did not answer in time.
    #[error("{what} did not answer within {seconds} s{}", if context.is_empty() { String::new() } else { format!("; it said last: {context}") })]
    Silent {
        /// Event that was waited for.
        what: &'static str,
        /// The limit that ran out.
        seconds: u64,
        /// The end of its output.
        context: String,
    },
    /// The daemon under load.
    #[error("the daemon {0}")]
    Daemon(String),
    /// The plots could not be drawn.
    #[error("cannot draw a plot: {0}")]
    Plot(String),
    /// Somebody pressed Ctrl-C.
    #[error("interrupted; what was running has been taken down")]
    Interrupted,
}

impl From<QmpError> for BenchError {
    fn from(error: QmpError) -> Self {
        Self::Vmm(error.into())
    }
}

impl From<ProcessError> for BenchError {
    fn from(error: ProcessError) -> Self {
        Self::Vmm(error.into())
    }
}

/// Returns a closure for `map_err` that says what was attempted with which file.
pub fn io(
    action: &'static str,
    path: impl AsRef<Path>,
) -> impl FnOnce(std::io::Error) -> BenchError {
    move |cause| BenchError::Io { action, path: path.as_ref().to_owned(), cause }
}
