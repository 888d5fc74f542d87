//! Options of an audit, and the errors that make one impossible.

use std::str::FromStr;

use mayfly_engine::EngineError;
use mayfly_engine::golden::GoldenError;
use mayfly_engine::session::SessionError;
use mayfly_guest::channel::ChannelError;
use serde::{Deserialize, Serialize};

/// Options of an audit.
#[derive(Debug, Clone)]
pub struct AuditOptions {
    /// Checks to run: ids such as `guest.memory`, or groups such as `guest`. Empty for all.
    pub only: Vec<String>,
    /// Starts of a neighbour that are measured without, and again with each abuser beside it.
    pub starts: u32,
    /// Time for which an abuser of processors is watched, in seconds.
    pub watch_s: u32,
    /// Breaches to plant.
    pub planted: Vec<Planted>,
}

impl Default for AuditOptions {
    fn default() -> Self {
        Self { only: Vec::new(), starts: 10, watch_s: 5, planted: Vec::new() }
    }
}

impl AuditOptions {
    pub(super) fn plants(&self, what: Planted) -> bool {
        self.planted.contains(&what)
    }
}

/// A breach that is planted, to see that the audit reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Planted {
    /// The checks of VMMs are given an ordinary process of root instead.
    UnconfinedVmm,
    /// Secrets of a neighbour and the host, put into the attacked guest: its memory, disk,
    /// processes and containers.
    LeakedSecrets,
    /// The golden's disk delta is changed while sessions run.
    ChangedGolden,
}

impl Planted {
    /// All kinds with their names on the command line.
    pub const ALL: [(&'static str, Self); 3] = [
        ("unconfined-vmm", Self::UnconfinedVmm),
        ("leaked-secrets", Self::LeakedSecrets),
        ("changed-golden", Self::ChangedGolden),
    ];
}

impl FromStr for Planted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text);
        found
            .map(|(_, kind)| *kind)
            .ok_or_else(|| format!("one of {}", Self::ALL.map(|(name, _)| name).join(", ")))
    }
}

/// Reason why an audit, or one of its checks, could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A name in [`AuditOptions::only`] is no check and no group.
    #[error("there is no check or group {0:?}: `mayfly audit --list` shows them")]
    UnknownCheck(String),
    /// The engine does not open.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The golden cannot be loaded.
    #[error(transparent)]
    Golden(#[from] GoldenError),
    /// A session did not start, or ended when it should not.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The exchange with a guest failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A guest did not run what it was told to.
    #[error("the guest did not run {what}: {said}")]
    Guest {
        /// Command that it was told to run.
        what: String,
        /// Words in which it failed.
        said: String,
    },
    /// System calls could not be injected.
    #[error(transparent)]
    Inject(#[from] super::inject::InjectError),
    /// A cgroup of ours failed.
    #[error(transparent)]
    Cgroup(#[from] mayfly_host::cgroup::CgroupError),
    /// A file or process of the host.
    #[error("cannot {action}: {cause}")]
    Host {
        /// Operation that was attempted.
        action: String,
        /// Cause of the failure.
        cause: std::io::Error,
    },
}

impl AuditError {
    pub(super) fn host(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |cause| Self::Host { action, cause }
    }
}
