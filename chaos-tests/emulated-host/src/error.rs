//! Errors of an emulated host itself, apart from what is tested in it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::distribution::{Distribution, Platform};

/// Reason why there is no emulated host, or not any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A part that makes root directories failed.
    #[error(transparent)]
    Golden(#[from] mayfly_golden_images::Error),
    /// The program mmdebstrap failed.
    #[error(
        "cannot install the packages of {distribution}: {detail}; check that its mirror can be reached"
    )]
    Packages {
        /// Distribution whose packages they are.
        distribution: Distribution,
        /// The package manager's words.
        detail: String,
    },
    /// The mirror was updated between the question and the installation.
    #[error("the mirror of {distribution} changed meanwhile (it has {package} now): run it again")]
    MirrorChanged {
        /// Distribution of the mirror.
        distribution: Distribution,
        /// Package as `name=version`.
        package: String,
    },
    /// An image that was just written cannot be read.
    #[error("the image {path} changed while it was written: run it again")]
    ImageChanged {
        /// Path of its folder.
        path: PathBuf,
    },
    /// Another process holds a lock for too long.
    #[error("another process has held {} for {limit:?}: end it, or wait", .path.display())]
    LockTaken {
        /// The lock file.
        path: PathBuf,
        /// Time that was waited.
        limit: Duration,
    },
    /// The program mke2fs failed.
    #[error("cannot write the disk {}: {detail}", .path.display())]
    Disk {
        /// Path of the disk.
        path: PathBuf,
        /// The program's words.
        detail: String,
    },
    /// The image lacks a kernel.
    #[error("the image of {platform} has no kernel for it")]
    NoKernel {
        /// Platform of the host.
        platform: Platform,
    },
    /// A program to be tested was not built.
    #[error("{} is missing: build it first, or run this with ./mayfly test --host", .path.display())]
    NotBuilt {
        /// Path at which it should be.
        path: PathBuf,
    },
    /// The test programs are missing.
    #[error("cannot bring test programs into the emulated host: {detail}")]
    Tests {
        /// Description of what stood in the way.
        detail: String,
    },
    /// No case is asked for.
    #[error("no case has one of these in its name: {filters}; --list shows all")]
    NoCases {
        /// Name that was looked for.
        filters: String,
    },
    /// The virtual machine does not begin.
    #[error("QEMU does not start: {detail}")]
    Start {
        /// Output of the program.
        detail: String,
    },
    /// The programs under test cannot be made part of the host.
    #[error("cannot prepare the emulated host: {detail}")]
    Install {
        /// Description of what stood in the way.
        detail: String,
    },
    /// The virtual machine is gone.
    #[error("the emulated host ended during {during}: {reason}")]
    Ended {
        /// Step that was under way.
        during: String,
        /// Description of how QEMU ended, and what it said of it.
        reason: String,
    },
    /// The emulator has spoiled a guest of the emulated host.
    #[error(
        "the emulator's fault: during {during} its processor {processor} stood still at {rip:#x} with interrupts off"
    )]
    Stuck {
        /// Step that was under way.
        during: String,
        /// Number of the processor.
        processor: usize,
        /// Address at which it stands.
        rip: u64,
    },
    /// Something took too long.
    #[error("the emulated host did not finish {during} within {limit:?}")]
    TimedOut {
        /// Step that was under way.
        during: String,
        /// Time that was waited.
        limit: Duration,
    },
    /// The host runs, and does not answer.
    #[error("the emulated host runs, but did not answer within {limit:?} during {during}")]
    NoAnswer {
        /// Step that was under way.
        during: String,
        /// Time that was waited.
        limit: Duration,
    },
    /// The agent or QEMU refused a command.
    #[error("the emulated host refused {command}: {reason}")]
    Refused {
        /// Command that was sent.
        command: String,
        /// Answer to the command.
        reason: String,
    },
    /// Ctrl-C, or a signal that asks to end.
    #[error("interrupted")]
    Interrupted,
    /// A file operation failed.
    #[error("cannot {action} {}: {cause}", .path.display())]
    Io {
        /// Operation that was tried, as a verb phrase.
        action: &'static str,
        /// Path it was tried on.
        path: PathBuf,
        /// Cause of the failure.
        cause: io::Error,
    },
}

/// Attaches what was tried and where to an I/O result.
pub(crate) trait IoContext<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|cause| Error::Io { action, path: path.to_owned(), cause })
    }
}
