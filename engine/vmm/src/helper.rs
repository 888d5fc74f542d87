//! Programs of Mayfly's own that read what guests or servers send: confined as VMMs are.

use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use crate::jail::{self, JailError, JailRoot, PidNamespace};
use crate::process::Surroundings;
use crate::{Confinement, ProcessError, VmmProcess};

/// Where the program is in its root.
const PROGRAM: &str = "/mayfly/program";

/// A program with a root directory in which there is nothing but what it is loaded from.
#[derive(Debug)]
pub struct Helper {
    root: Arc<JailRoot>,
}

impl Helper {
    /// Makes the root of `program`, at the existing folder `staging`, where nothing is left. Blocks.
    ///
    /// # Errors
    /// [`JailError`].
    pub fn new(program: &Path, staging: &Path) -> Result<Self, JailError> {
        let files = jail::loaded_by(&[program])?;
        let root = JailRoot::make(&files, &[(PROGRAM, program)], false, staging)?;
        Ok(Self { root: Arc::new(root) })
    }

    /// Starts the program, with the descriptors of `inherit` at the given numbers and no other
    /// above 2, standard input and output on `/dev/null`, and no environment. It has namespaces of
    /// its own, also an empty network, and ends with this process.
    ///
    /// # Errors
    /// [`ProcessError::Start`] when fork, confinement or exec fails.
    pub async fn start(
        &self,
        arguments: Vec<String>,
        inherit: Vec<(OwnedFd, RawFd)>,
        confinement: Confinement,
    ) -> Result<VmmProcess, ProcessError> {
        let root = Arc::clone(&self.root);
        let within = Surroundings { jail: root, pids: PidNamespace::Own, own_cores: false };
        let environment = self.root.search_path().map(|path| ("LD_LIBRARY_PATH", path.to_owned()));
        let environment = environment.into_iter().collect();
        VmmProcess::start_in(Some(within), PROGRAM, arguments, environment, inherit, confinement)
            .await
    }
}
