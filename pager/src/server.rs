//! A pager process: its socket, its threads, its end.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::socket::SockType,
};

use crate::{
    cache::Cache, config::PagerConfig, control::Control, fatal, fill::FillPool, listen::listen_at,
    source::SourceResolver, threads::Threads, watchdog::Watchdog,
};

/// How long the end of a pager waits for the threads of its sessions, which takes no time unless a
/// VMM keeps a lock that its thread waits for.
const END_LIMIT: Duration = Duration::from_secs(1);

/// Reason why a pager could not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another pager holds the socket.
    #[error("a pager already serves {0}: use it, or shut it down first")]
    AlreadyRunning(PathBuf),
    /// The socket could not be made.
    #[error(
        "cannot listen on {path}: {error}: the directory must exist, be writable, and the path stay under 108 bytes"
    )]
    Socket {
        /// Path of the socket.
        path: PathBuf,
        /// Error that the system reported.
        error: io::Error,
    },
    /// A thread or descriptor could not be had.
    #[error("cannot start the pager's threads: {0}")]
    Start(io::Error),
}

/// Serves sessions on a Unix socket at `socket_path` until a client asks for the end, or
/// [`PagerConfig::idle_exit`] passes. A stale socket of a pager that died is replaced;
/// `<socket_path>.lock` tells the two apart.
///
/// Only root and the pager's own user are served, by the socket's mode (0600) and by the peer's
/// credentials.
///
/// When one of its threads panics, or one that serves faults is stuck in the pager's own work for
/// [`PagerConfig::stall_limit`], the *process* ends with status 70: the owners of all sessions
/// learn of it, and nothing hangs. When a thread waits for its VMM, that session alone fails.
///
/// # Errors
/// [`ServeError`]: the socket is taken or cannot be made, or the system has no thread or descriptor left.
pub fn serve(
    socket_path: &Path,
    resolver: Arc<dyn SourceResolver>,
    config: PagerConfig,
) -> Result<(), ServeError> {
    let (listener, _lock) = claim(socket_path)?;
    let cache = Arc::new(Cache::new(config.budget_bytes));
    let _guard = fatal::EndOnPanic("control");
    let (pool, fillers) = FillPool::start(cache, config.fill_threads).map_err(ServeError::Start)?;
    let threads = Arc::new(Threads::new(Arc::clone(&pool)));
    let outcome = Watchdog::start(Arc::clone(&threads), config.stall_limit).and_then(|_watchdog| {
        let (pool, sessions) = (Arc::clone(&pool), Arc::clone(&threads));
        let control = Control::new(listener, pool, sessions, resolver, config);
        let outcome = control.and_then(Control::run);
        threads.stop(END_LIMIT);
        outcome
    });
    pool.stop();
    for filler in fillers {
        let _ = filler.join();
    }
    let _ = std::fs::remove_file(socket_path);
    outcome.map_err(ServeError::Start)
}

/// Binds the socket, alone.
fn claim(path: &Path) -> Result<(OwnedFd, Flock<File>), ServeError> {
    let socket_error = |error| ServeError::Socket { path: path.to_owned(), error };
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
    let lock = match Flock::lock(file.map_err(socket_error)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((_, Errno::EAGAIN)) => return Err(ServeError::AlreadyRunning(path.to_owned())),
        Err((_, errno)) => return Err(socket_error(errno.into())),
    };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(socket_error(error)),
        _ => {}
    }
    let listener =
        listen_at(path, SockType::SeqPacket).map_err(|errno| socket_error(errno.into()))?;
    Ok((listener, lock))
}
