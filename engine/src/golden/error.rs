//! Errors of building, loading and removing golden images.

use std::path::PathBuf;
use std::time::Duration;

use mayfly_guest::channel::ChannelError;
use mayfly_protocol::Printable;
use mayfly_vmm::VmmError;

use crate::session::{OverlayError, identity::NoEntropy};

/// Reason why a golden image could not be built or used.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// The recipe or its boot artifacts.
    #[error(transparent)]
    Image(#[from] mayfly_golden_images::Error),
    /// The cgroup of its VM.
    #[error(transparent)]
    Cgroup(#[from] mayfly_host::cgroup::CgroupError),
    /// The VM finds no free user id.
    #[error(transparent)]
    NoUid(#[from] mayfly_host::uid::NoUid),
    /// VMMs may have user ids of builds.
    #[error(
        "the user ids for VMMs, {range}, meet those that images are built with, {}:{}: give another range in MAYFLY_UIDS or `uids`",
        mayfly_golden_images::FIRST_ID,
        mayfly_golden_images::IDS
    )]
    Ids {
        /// The range for VMMs.
        range: String,
    },
    /// Our own installation is incomplete.
    #[error(transparent)]
    Layout(#[from] mayfly_host::layout::LayoutError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] mayfly_snapshotter::Error),
    /// A file outside the store is not the one the golden was made with.
    #[error(transparent)]
    File(#[from] mayfly_snapshotter::FileError),
    /// The manifest lacks something that every golden of this version has.
    #[error(
        "the manifest of golden {name} has no valid {what}: build it again (mayfly golden build)"
    )]
    Incomplete {
        /// Name of the golden image.
        name: String,
        /// Description of what is missing.
        what: &'static str,
    },
    /// The artifacts that the golden was booted from are not there as they were.
    #[error(
        "the kernel or initramfs that golden {name} was booted from is gone or damaged: build it again (mayfly golden build)"
    )]
    NoArtifacts {
        /// Name of the golden image.
        name: String,
    },
    /// The golden was made on a host that differs in something a snapshot depends on.
    #[error("golden {name} cannot be restored on this host: {mismatch}")]
    Mismatch {
        /// Name of the golden image.
        name: String,
        /// Description of what differs.
        mismatch: mayfly_snapshotter::Mismatch,
    },
    /// The golden was made with an accelerator that no version of this program knows.
    #[error("golden {name} cannot be restored: {reason}; build it again (mayfly golden build)")]
    Accel {
        /// Name of the golden image.
        name: String,
        /// Description of what is wrong with the accelerator.
        reason: String,
    },
    /// The golden's clock would run wrong here.
    #[error(
        "golden {name} cannot be restored on this host: its time stamp counter was {golden} kHz, here it is {host} kHz; build it again here (mayfly golden build)"
    )]
    Clock {
        /// Name of the golden image.
        name: String,
        /// Frequency it was made with.
        golden: u64,
        /// Frequency of this host.
        host: u64,
    },
    /// KVM was asked for.
    #[error(transparent)]
    Kvm(#[from] crate::kvm::Obstacle),
    /// The golden runs under KVM, and this host's is not usable.
    #[error(
        "golden {name} cannot be restored on this host: {obstacle}, or build it again for software emulation (mayfly golden build --accel tcg)"
    )]
    NeedsKvm {
        /// Name of the golden image.
        name: String,
        /// Obstacle that is in the way.
        obstacle: crate::kvm::Obstacle,
    },
    /// The VMM failed.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The guest channel.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The disk overlay.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// No random bytes.
    #[error(transparent)]
    NoEntropy(#[from] NoEntropy),
    /// The guest did not come up.
    #[error("golden {name}: {stage} did not finish within {limit:?}{}", crate::session::tail(.console))]
    NotReady {
        /// Name of the golden image.
        name: String,
        /// Stage that was waited for.
        stage: &'static str,
        /// Limit on the wait.
        limit: Duration,
        /// The end of the guest's console.
        console: String,
    },
    /// The guest ended or fell silent while it was made ready.
    #[error("golden {name}: {stage} failed: {reason}{}", crate::session::tail(.console))]
    Guest {
        /// Name of the golden image.
        name: String,
        /// Stage that was under way.
        stage: &'static str,
        /// Cause of the failure.
        reason: String,
        /// The end of the guest's console.
        console: String,
    },
    /// A command of the recipe failed in the booted guest.
    #[error("golden {name}: command `{command}` {outcome} in the guest: {}", Printable(output))]
    Command {
        /// Name of the golden image.
        name: String,
        /// The command line.
        command: String,
        /// Exit status of the command.
        outcome: String,
        /// The end of its output.
        output: String,
    },
    /// A first step did not come to its end in the guest that is to become the golden.
    #[error("golden {name}: {reason}; make it shorter, or leave it out of `warm_up`")]
    FirstStep {
        /// Name of the golden.
        name: String,
        /// The step, and its limit.
        reason: String,
    },
    /// The throw-away restore that records the working set failed; the golden itself is stored.
    #[error(
        "golden {name} is stored, but the restore that records its working set failed: {reason}"
    )]
    WorkingSet {
        /// Name of the golden image.
        name: String,
        /// Cause of the failure.
        reason: String,
    },
    /// A file of ours.
    #[error("cannot {action} {path}: {cause}")]
    Io {
        /// Operation that was attempted.
        action: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Cause of the failure.
        cause: std::io::Error,
    },
    /// The person or the caller stopped it.
    #[error("interrupted; nothing was changed")]
    Cancelled,
    /// Stopped after the golden was stored.
    #[error(
        "interrupted; golden {name} is stored, its working set was not recorded (the next build does that)"
    )]
    CancelledLate {
        /// Name of the golden image.
        name: String,
    },
}

impl GoldenError {
    /// Returns whether the person or the caller stopped it.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Self::Cancelled | Self::CancelledLate { .. } => true,
            Self::Image(error) => matches!(error, mayfly_golden_images::Error::Cancelled),
            Self::Store(error) => matches!(error, mayfly_snapshotter::Error::Cancelled),
            _ => false,
        }
    }
}
