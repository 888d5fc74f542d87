//! Errors of a build, one clear line each: what was tried, why it failed, what to do next.

use std::io;
use std::path::{Path, PathBuf};

use crate::kernel::KernelError;
use crate::modules::ModulesError;
use crate::recipe::RecipeError;

/// Space that a build of the default recipe needs with everything that is removed at its end, in
/// MiB.
pub(crate) const NEED_MIB: u64 = 2048;

/// How a static agent is built.
pub(crate) const BUILD_COMMAND: &str = "RUSTFLAGS='-C target-feature=+crt-static' cargo build --release -p mayfly-agent --target x86_64-unknown-linux-gnu";

/// Reason why a build failed. No variant leaves anything behind in the cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The recipe is not valid.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The process has not the rights that mmdebstrap, mounts and device nodes need.
    #[error("building a golden image needs root: run the command as root")]
    NotRoot,
    /// The kernel makes no user namespace, which is what keeps a recipe from the host.
    #[error("cannot make a user namespace to install packages in: {reason}; {remedy}")]
    UserNamespace {
        /// What stands in the way.
        reason: String,
        /// What helps.
        remedy: &'static str,
    },
    /// A program of the host is missing.
    #[error("`{tool}` is not installed: run `apt-get install {package}`")]
    ToolMissing {
        /// Name of the program.
        tool: &'static str,
        /// Debian package that has it.
        package: &'static str,
    },
    /// The guest agent binary is missing.
    #[error("no guest agent at {path}: build it with `{}`", BUILD_COMMAND)]
    AgentMissing {
        /// Path at which it was looked for.
        path: PathBuf,
    },
    /// The guest agent binary cannot run as the first process of an initramfs.
    #[error("the guest agent {path} is unusable: {reason}; build it with `{}`", BUILD_COMMAND)]
    AgentUnusable {
        /// The binary.
        path: PathBuf,
        /// Description of what is wrong with it.
        reason: String,
    },
    /// The suite has no such package.
    #[error(
        "package \"{package}\" does not exist in Debian {suite}: correct [debian] packages in the recipe (`apt-cache search` finds names)"
    )]
    PackageMissing {
        /// Package name as the recipe has it.
        package: String,
        /// Suite of the recipe.
        suite: String,
    },
    /// The packages of the recipe conflict or have unsatisfiable dependencies.
    #[error("the packages of the recipe cannot be installed together in Debian {suite}: {detail}")]
    PackagesConflict {
        /// Suite of the recipe.
        suite: String,
        /// The package manager's words.
        detail: String,
    },
    /// The package mirror was not reachable or refused.
    #[error(
        "cannot fetch packages from {mirror}: {detail}; check the network or set [debian] mirror in the recipe"
    )]
    Mirror {
        /// Mirror of the recipe.
        mirror: String,
        /// The package manager's words.
        detail: String,
    },
    /// A `setup` command of the recipe failed.
    #[error("setup command {number} (`{command}`) failed: {detail}")]
    Setup {
        /// Position in the recipe, from 1.
        number: usize,
        /// The command.
        command: String,
        /// The last lines it printed.
        detail: String,
    },
    /// A user of the recipe could not be made.
    #[error("cannot make user {name}: {detail}")]
    User {
        /// Name of the user.
        name: String,
        /// The last line that useradd(8) printed.
        detail: String,
    },
    /// The default user is nobody.
    #[error(
        "the root file system has no user {name:?}, whom default_user names: add a [[user]] of that name, or the package that makes it"
    )]
    DefaultUserMissing {
        /// Name of the user.
        name: String,
    },
    /// A child process failed in a way that has no variant of its own.
    #[error("{program} failed ({status}): {detail}")]
    Tool {
        /// Name of the program.
        program: &'static str,
        /// Exit status in words.
        status: String,
        /// The last lines it printed.
        detail: String,
    },
    /// The host's disk is full.
    #[error(transparent)]
    DiskFull(#[from] DiskFullError),
    /// The content does not fit the disk size that the recipe asks for.
    #[error(
        "the root file system needs {need_mib} MiB and [vm] disk_mib is {disk_mib}: raise disk_mib to at least {need_mib}"
    )]
    DiskTooSmall {
        /// Content plus file system overhead and a little free space, in MiB.
        need_mib: u64,
        /// The recipe's disk size, in MiB.
        disk_mib: u64,
    },
    /// Docker is enabled, but the packages do not bring it.
    #[error(
        "[docker] is enabled but the root file system has no {path}: add \"{package}\" to [debian] packages, or set enabled = false"
    )]
    DockerMissing {
        /// Program that is missing.
        path: &'static str,
        /// Package that usually has it.
        package: &'static str,
    },
    /// The recipe's own settings of dockerd cannot be used.
    #[error("cannot use {path}, which a setup command or a package has made: {reason}")]
    DaemonJson {
        /// Path inside the golden image's root.
        path: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A `files` entry of a docker image names a file that the golden image's own root does not
    /// have.
    #[error(
        "docker image \"{tag}\": the root file system has no regular file {path}: add the package that has it"
    )]
    ImageFileMissing {
        /// Tag of the image.
        tag: String,
        /// Path inside the golden image's root.
        path: String,
    },
    /// The kernel package has no usable kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A kernel module that booting needs is missing.
    #[error(transparent)]
    Modules(#[from] ModulesError),
    /// The build was cancelled.
    #[error("the build was cancelled; nothing was kept")]
    Cancelled,
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

/// The host's disk (or tmpfs) ran out of space.
#[derive(Debug, thiserror::Error)]
#[error(
    "no space left while writing {}: about {need_mib} MiB are needed and {free_mib} MiB are free; free some space or choose another cache directory",
    .path.display()
)]
pub struct DiskFullError {
    /// Directory or file that was written.
    pub path: PathBuf,
    /// Estimate of the space that a build needs, in MiB.
    pub need_mib: u64,
    /// Free space at the time of the failure, in MiB.
    pub free_mib: u64,
}

impl DiskFullError {
    /// An error for `path`, measuring the free space now.
    pub(crate) fn at(path: &Path, need_mib: u64) -> Self {
        let free_mib = free_mib(path).unwrap_or(0);
        Self { path: path.to_owned(), need_mib, free_mib }
    }
}

/// Free space of the file system that holds `path` (or its nearest existing parent), in MiB.
pub(crate) fn free_mib(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|p| p.exists())?;
    let stat = nix::sys::statvfs::statvfs(existing).ok()?;
    Some(stat.blocks_available() * stat.fragment_size() / (1 << 20))
}

/// Attaches what was tried and where to an I/O result; ENOSPC and EDQUOT become [`DiskFullError`].
pub(crate) trait IoContext<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|cause| match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                DiskFullError::at(path, NEED_MIB).into()
            }
            _ => Error::Io { action, path: path.to_owned(), cause },
        })
    }
}

impl<T> IoContext<T> for nix::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(io::Error::from).context(action, path)
    }
}
