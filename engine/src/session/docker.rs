//! A session's Docker daemon, seen from the host.

use std::path::{Path, PathBuf};

use mayfly_guest::channel::Channel;
use mayfly_guest::docker::GUEST_SOCKET;
use tokio::net::UnixListener;

use super::SessionError;

/// A forwarded Docker socket on this host; removed when dropped.
#[derive(Debug)]
pub struct DockerSocket {
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl DockerSocket {
    pub(super) fn serve(guest: &Channel, path: PathBuf) -> Result<Self, SessionError> {
        let listener = UnixListener::bind(&path)
            .map_err(|cause| SessionError::Io { action: "make the docker socket", cause })?;
        let forward = guest.forward_docker(listener, GUEST_SOCKET);
        let task = tokio::spawn(async move {
            let error = forward.await;
            tracing::debug!(%error, "docker socket closed");
        });
        Ok(Self { path, task })
    }

    /// Returns the path on this host.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for DockerSocket {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}
