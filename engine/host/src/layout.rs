//! Layout of Mayfly's files on a host, and of its own helper programs.

use std::path::{Path, PathBuf};

/// Folder for everything that survives a reboot, unless `MAYFLY_HOME` names another.
pub const DEFAULT_HOME: &str = "/var/lib/mayfly";
/// Folder for sockets and other state of running processes, unless `MAYFLY_RUN` names another.
/// Should be a tmpfs.
pub const DEFAULT_RUN: &str = "/run/mayfly";
/// The key that golden images are sealed with, unless `MAYFLY_SEAL_KEY` names another file. It is
/// kept away from what it seals.
pub const DEFAULT_SEAL_KEY: &str = "/etc/mayfly/seal.key";

/// Error of an installation from which something is missing.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A helper program or library was found in none of its places.
    #[error(
        "{what} not found (looked for {looked_for}): build it with ./mayfly, or name its folder in MAYFLY_LIBEXEC"
    )]
    MissingHelper {
        /// Name of what is missing.
        what: &'static str,
        /// The places, comma-separated.
        looked_for: String,
    },
    /// A folder could not be made.
    #[error("cannot create {path}: {cause}")]
    Create {
        /// Path of the folder.
        path: PathBuf,
        /// Cause of the failure.
        cause: std::io::Error,
    },
}

/// The two roots of our files on this host, and the key that is in neither.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    home: PathBuf,
    run: PathBuf,
    seal_key: PathBuf,
}

impl Layout {
    /// Roots from `MAYFLY_HOME` and `MAYFLY_RUN`, or the defaults.
    pub fn from_env() -> Self {
        Self::new(from_env("MAYFLY_HOME", DEFAULT_HOME), from_env("MAYFLY_RUN", DEFAULT_RUN))
    }

    /// Roots at the given folders, with this host's seal key: that of `MAYFLY_SEAL_KEY`, or the
    /// default. The homes of a host share it.
    pub fn new(home: impl Into<PathBuf>, run: impl Into<PathBuf>) -> Self {
        Self {
            home: home.into(),
            run: run.into(),
            seal_key: from_env("MAYFLY_SEAL_KEY", DEFAULT_SEAL_KEY),
        }
    }

    /// Returns the root of everything that survives a reboot.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Returns the root of runtime state.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// Returns the path of the key that golden images are sealed with.
    pub fn seal_key(&self) -> &Path {
        &self.seal_key
    }

    /// Returns the folder of the snapshot store.
    pub fn store(&self) -> PathBuf {
        self.home.join("store")
    }

    /// Returns the folder of the boot artifacts of golden images, content-addressed.
    pub fn images(&self) -> PathBuf {
        self.home.join("images")
    }

    /// Returns the folder of the disk deltas of golden images as files that a VMM can open, named
    /// by content.
    pub fn disks(&self) -> PathBuf {
        self.home.join("disks")
    }

    /// Returns the path of the socket of this host's pager.
    pub fn pager_socket(&self) -> PathBuf {
        self.run.join("pager.sock")
    }

    /// Returns the path of the socket of this host's daemon.
    pub fn api_socket(&self) -> PathBuf {
        self.run.join("mayfly.sock")
    }

    /// Returns the folder with one folder for each engine process that lives.
    pub fn engines(&self) -> PathBuf {
        self.run.join("engines")
    }

    /// Facts found out once per host boot.
    pub fn facts(&self) -> PathBuf {
        self.run.join("facts")
    }

    /// Makes a folder and its parents, readable by root alone.
    ///
    /// # Errors
    /// [`LayoutError::Create`].
    pub fn create(path: &Path) -> Result<(), LayoutError> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|cause| LayoutError::Create { path: path.to_owned(), cause })
    }
}

fn from_env(name: &str, default: &str) -> PathBuf {
    std::env::var_os(name).map_or_else(|| default.into(), PathBuf::from)
}

/// Returns the path of the preload library that connects stock QEMU to the pager.
///
/// # Errors
/// [`LayoutError::MissingHelper`].
pub fn preload_library() -> Result<PathBuf, LayoutError> {
    find("the preload library", &["libmayfly_preload.so"])
}

/// Returns the path of the static guest agent.
///
/// # Errors
/// [`LayoutError::MissingHelper`].
pub fn guest_agent() -> Result<PathBuf, LayoutError> {
    // Cargo's folder of a build with an explicit target comes first: only that one is static.
    find(
        "the static guest agent",
        &["../x86_64-unknown-linux-gnu/release/mayfly-agent", "mayfly-agent"],
    )
}

/// Returns the path of the `mayfly` program itself, to start the pager with; tests and benches run
/// from another executable beside it.
///
/// # Errors
/// [`LayoutError::MissingHelper`].
pub fn mayfly_program() -> Result<PathBuf, LayoutError> {
    if let Ok(current) = std::env::current_exe()
        && current.file_name().is_some_and(|name| name == "mayfly")
    {
        return Ok(current);
    }
    find("the mayfly program", &["mayfly"])
}

/// Looks in `MAYFLY_LIBEXEC`, then beside this executable, then one folder up (where Cargo puts
/// tests and benches).
fn find(what: &'static str, names: &[&str]) -> Result<PathBuf, LayoutError> {
    let mut folders: Vec<PathBuf> =
        std::env::var_os("MAYFLY_LIBEXEC").map(PathBuf::from).into_iter().collect();
    if let Some(beside) =
        std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned))
    {
        folders.extend(beside.parent().map(Path::to_owned));
        folders.insert(folders.len() - 1, beside);
    }
    let candidates: Vec<PathBuf> =
        folders.iter().flat_map(|dir| names.iter().map(|name| dir.join(name))).collect();
    let looked_for =
        || candidates.iter().map(|c| c.display().to_string()).collect::<Vec<_>>().join(", ");
    candidates
        .iter()
        .find(|c| c.is_file())
        .cloned()
        .ok_or_else(|| LayoutError::MissingHelper { what, looked_for: looked_for() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_helper_names_the_places() {
        let error = find("the gizmo", &["no-such-gizmo"]).unwrap_err().to_string();
        assert!(error.contains("the gizmo") && error.contains("no-such-gizmo"), "{error}");
    }
}
