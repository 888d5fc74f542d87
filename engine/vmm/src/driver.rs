//! The driver trait every VMM implements, and the types of its contract.

use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::net::UnixStream;

use super::accel::Accel;
use super::console::ConsoleTail;
use super::hardening::BadHardening;
use super::jail::JailError;
use super::process::{Confinement, Exit, ProcessError};
use crate::qmp::QmpError;

/// Machine as a guest sees it; pinned by the golden image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineShape {
    /// Accelerator that executes its instructions.
    pub accel: Accel,
    /// Virtual CPUs, at least 1.
    pub vcpus: u32,
    /// Guest memory in bytes, a multiple of 1 MiB.
    pub memory_bytes: u64,
}

/// Format of one disk layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// Raw format: plain sectors.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// File of the guest's disk. The backing file is always the layer before it, whatever the file's
/// header says.
#[derive(Debug)]
pub struct DiskLayer {
    /// The file; opened read-write for the last layer, read-only for all others.
    pub file: OwnedFd,
    /// Format of the file.
    pub format: DiskFormat,
}

/// Descriptors from which guest memory comes.
#[derive(Debug)]
pub enum RamDescriptors {
    /// A golden image in the making: a file of the whole memory, mapped shared, so that it can be
    /// stored afterwards.
    Template {
        /// The memory file (a memfd of `memory_bytes`).
        file: OwnedFd,
    },
    /// A session: the golden's page cache, mapped private and filled lazily by the pager.
    Session {
        /// The page-cache file, opened read-only.
        page_cache: OwnedFd,
        /// `/dev/userfaultfd`, from which the VMM makes the descriptor of its own address space.
        userfaultfd_device: OwnedFd,
        /// The VMM's end of the handshake with the pager.
        handshake: OwnedFd,
    },
}

/// A boot of a kernel without firmware menus or boot loader.
#[derive(Debug)]
pub struct DirectBoot {
    /// Kernel image.
    pub kernel: OwnedFd,
    /// Initial ramdisk.
    pub initramfs: OwnedFd,
    /// Kernel command line.
    pub cmdline: String,
}

/// Purpose for which a VM is started.
#[derive(Debug)]
pub enum Purpose {
    /// Boot of a golden image.
    Boot(DirectBoot),
    /// Wait for the device state of a golden image, to continue it.
    Restore,
    /// Restore as [`Purpose::Restore`], to be forked afterwards, see [`Vmm::fork`].
    Zygote,
}

/// Parts that a forked VMM gets in place of its zygote's.
#[derive(Debug)]
pub struct ForkSpec {
    /// Descriptor of `/dev/userfaultfd`.
    pub userfaultfd_device: OwnedFd,
    /// Fork's end of the handshake with the pager.
    pub handshake: OwnedFd,
    /// Files of the same disk layers as the zygote's, opened for this fork alone, since two open
    /// descriptors of one open file share its status flags (open(2)); the last is a copy of the
    /// zygote's writable layer.
    pub disk: Vec<OwnedFd>,
    /// User and cgroups under which it runs; the user must be set.
    pub confinement: Confinement,
}

/// The descriptors a VMM inherits.
#[derive(Debug)]
pub struct Descriptors {
    /// Guest memory.
    pub ram: RamDescriptors,
    /// Disk layers from the base to the writable overlay.
    pub disk: Vec<DiskLayer>,
}

/// Everything needed to start a VM.
#[derive(Debug)]
pub struct LaunchSpec {
    /// Shape of the machine.
    pub shape: MachineShape,
    /// Boot or restore.
    pub purpose: Purpose,
    /// Descriptors that it inherits.
    pub descriptors: Descriptors,
    /// User, cgroups and limits under which the process runs.
    pub confinement: Confinement,
}

/// A VM that was started, with the host ends of its streams.
pub struct Launched {
    /// Control of the VM.
    pub vmm: Box<dyn Vmm>,
    /// Host end of the guest channel.
    pub channel: UnixStream,
    /// The last output of its serial console.
    pub console: ConsoleTail,
}

impl std::fmt::Debug for Launched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Launched").field("channel", &self.channel).finish_non_exhaustive()
    }
}

/// Error between the engine and a VMM.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// No such program on this host.
    #[error(
        "{program} not found on this host: install the package qemu-system-x86, or name the program in MAYFLY_QEMU"
    )]
    NotInstalled {
        /// Program that was looked for.
        program: String,
    },
    /// A program without software emulation, where guests cannot run otherwise.
    #[error(
        "{program} has no software emulation (TCG), only KVM: install the package qemu-system-x86, or unset MAYFLY_QEMU"
    )]
    NoEmulation {
        /// Path of the program.
        program: String,
    },
    /// A program that cannot confine itself.
    #[error(
        "{program} was built without seccomp (-sandbox), which confines it: install the package qemu-system-x86, or name \
         another program in MAYFLY_QEMU"
    )]
    NoSandbox {
        /// Path of the program.
        program: String,
    },
    /// The program answers with something that is no version.
    #[error("cannot tell the version of {program}: {reason}")]
    UnknownVersion {
        /// Path of the program.
        program: String,
        /// Description of what it said instead.
        reason: String,
    },
    /// The firmware of the program is missing.
    #[error(
        "{program} has no qboot.rom (looked in {reason}): install the package qemu-system-data"
    )]
    NoFirmware {
        /// Path of the program.
        program: String,
        /// Places in which it was looked for, or why it could not be.
        reason: String,
    },
    /// The environment says of their confinement what it cannot.
    #[error(transparent)]
    Hardening(#[from] BadHardening),
    /// The root directory of VMMs could not be made.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The process could not be started or waited for.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The control connection failed.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// The process ended although nobody asked it to.
    #[error("the VMM ended unexpectedly ({exit}){}", if stderr.is_empty() { String::new() } else { format!(": {stderr}") })]
    Died {
        /// Exit of the process.
        exit: Exit,
        /// The last line it wrote to standard error.
        stderr: String,
    },
    /// The guest's processors stand still although nobody stopped them.
    #[error("the VMM stopped its guest by itself ({status})")]
    Stopped {
        /// QEMU's word for the cause, such as `internal-error`.
        status: String,
    },
    /// Saving or loading the device state failed.
    #[error("{action} the device state failed: {reason}")]
    DeviceState {
        /// `saving` or `restoring`.
        action: &'static str,
        /// QEMU's words.
        reason: String,
    },
    /// A zygote could not be forked.
    #[error("cannot fork the zygote: {reason}")]
    Fork {
        /// Words of the zygote, or the cause.
        reason: String,
    },
    /// A zygote did not answer in time, or not as one does: it is of no use any more.
    #[error("cannot fork the zygote: {reason}; it is given up")]
    ZygoteLost {
        /// What it did.
        reason: String,
    },
    /// A descriptor or pipe of ours failed.
    #[error("{action}: {cause}")]
    Io {
        /// Operation that was attempted.
        action: &'static str,
        /// Cause of the failure.
        cause: std::io::Error,
    },
}

/// A running VMM process.
#[async_trait::async_trait]
pub trait Vmm: Send + Sync {
    /// Returns the process id on the host.
    fn pid(&self) -> u32;

    /// Waits until the VMM takes orders: ready for [`Vmm::restore`] (a *shell*), or for
    /// [`Vmm::save`] when it was booted.
    async fn wait_ready(&mut self, limit: Duration) -> Result<(), VmmError>;

    /// Hands over the golden's device state; the guest runs as soon as it is loaded. Returns when
    /// the VMM has accepted the state or refused it, which may be after the guest has already
    /// answered on its channel.
    async fn restore(&mut self, device_state: &[u8], limit: Duration) -> Result<(), VmmError>;

    /// Stops the guest and returns its device state. Guest memory must be a
    /// [`RamDescriptors::Template`].
    async fn save(&mut self, limit: Duration) -> Result<Vec<u8>, VmmError>;

    /// Bounds the largest file the process may write, in bytes (setrlimit(2), `RLIMIT_FSIZE`).
    ///
    /// # Errors
    /// [`VmmError`] when the kernel refuses, or the process is gone.
    fn bound_files(&self, most: u64) -> Result<(), VmmError>;

    /// Freezes the guest's CPUs.
    async fn pause(&mut self, limit: Duration) -> Result<(), VmmError>;

    /// Continues after [`Vmm::pause`].
    async fn resume(&mut self, limit: Duration) -> Result<(), VmmError>;

    /// Forks a VMM that was launched as [`Purpose::Zygote`] and is paused. The new one is paused
    /// too, and in the same state.
    async fn fork(&mut self, spec: ForkSpec, limit: Duration) -> Result<Launched, VmmError>;

    /// Has a VMM that was launched as [`Purpose::Zygote`] and is paused for good unmap the pages of
    /// guest memory that it has only read, so that a fork needs not copy their places in its page
    /// tables; returns their number. The forks find them in the page cache.
    async fn unmap_clean(&mut self, limit: Duration) -> Result<u64, VmmError>;

    /// Resolves when the guest will not run on: the process has ended, with how it ended and its
    /// last line on standard error; or it lives and has stopped the guest by itself. Cancel-safe.
    /// Not to be waited for while the VMM restores or saves.
    async fn exited(&mut self) -> VmmError;

    /// Kills the process and waits until it is gone. Idempotent.
    async fn kill(&mut self) -> Result<(), VmmError>;
}

/// Driver that starts VMs of one kind.
#[async_trait::async_trait]
pub trait Driver: Send + Sync {
    /// Returns the short name of the program that runs guests under an accelerator, pinned in
    /// manifests (`qemu`).
    fn name(&self, accel: Accel) -> &'static str;
    /// Returns the version of that program, pinned in manifests.
    fn version(&self, accel: Accel) -> &str;
    /// Returns the machine line, pinned in manifests.
    fn machine(&self) -> &str;
    /// Returns the CPU model for an accelerator, pinned in manifests.
    fn cpu_model(&self, accel: Accel) -> &str;
    /// Returns whether [`Vmm::fork`] works with this accelerator. It does where all of a VM is
    /// memory of its process; under KVM the kernel holds a part of it.
    fn can_fork(&self, accel: Accel) -> bool;
    /// Starts the process and returns at once; the guest is not running yet.
    async fn launch(&self, spec: LaunchSpec) -> Result<Launched, VmmError>;
}
