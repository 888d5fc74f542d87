//! The host end of a live session's Docker daemon: a Unix socket for stock clients, whose
//! connections count as use of the session.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt;
use mayfly_guest::docker::{self, GUEST_SOCKET};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::live::LiveSession;

/// Most connections at a time; more wait in the socket's backlog.
const MAX_CONNECTIONS: usize = 128;
/// Only the daemon's user may connect: what answers is root in the guest.
const MODE: u32 = 0o600;
/// Pause after a failed accept(2), which out of descriptors fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A served socket; dropping it ends its connections and removes it.
#[derive(Debug)]
pub(super) struct DockerForward {
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl DockerForward {
    pub fn serve(path: PathBuf, session: Weak<LiveSession>) -> io::Result<Self> {
        let listener = UnixListener::bind(&path)?;
        // From here on the socket is removed again whatever fails.
        let forward = Self { path, task: tokio::spawn(accept(listener, session)) };
        std::fs::set_permissions(&forward.path, std::fs::Permissions::from_mode(MODE))?;
        Ok(forward)
    }
}

impl Drop for DockerForward {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept(listener: UnixListener, session: Weak<LiveSession>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Dropped with this task, and then ends what it carries.
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((client, _)) => {
                let Some(session) = session.upgrade() else { return };
                connections.spawn(async move {
                    let _place = place;
                    carry(session, client).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept on a docker socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn carry(session: Arc<LiveSession>, client: UnixStream) {
    let _active = session.active();
    let connect = {
        let session = session.clone();
        move || {
            let session = session.clone();
            async move { session.session().guest().connect_unix(GUEST_SOCKET).await }.boxed()
        }
    };
    // A connection the guest refuses is closed at once, which a client sees as an end before any
    // answer.
    if let Err(error) = docker::relay(client, Box::new(connect)).await {
        tracing::debug!(session = session.id(), %error, "docker connection");
    }
}
