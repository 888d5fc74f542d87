//! The daemon's Unix socket.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mayfly_host::layout::{Layout, LayoutError};
use tokio::net::{UnixListener, UnixStream};

/// Reason why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The folder of the socket cannot be made.
    #[error(transparent)]
    Folder(#[from] LayoutError),
    /// The socket is taken: another daemon answers there.
    #[error(
        "another mayfly daemon serves {path}: stop it, or give this one another socket with --socket"
    )]
    Taken {
        /// Path of the socket.
        path: PathBuf,
    },
    /// Something else has its name.
    #[error("{path} is there and is no socket: remove it, or give another path with --socket")]
    NotASocket {
        /// Path that is taken.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {path}: {cause}")]
    Io {
        /// Path of the socket.
        path: PathBuf,
        /// Cause of the failure.
        cause: io::Error,
    },
}

/// A listening socket that only its owner can open.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    name: SocketName,
}

/// The socket's name in the file system; removed when dropped, unless another socket has it
/// meanwhile.
#[derive(Debug)]
pub struct SocketName {
    path: PathBuf,
    inode: (u64, u64),
}

impl UnixSocket {
    /// Listens on `path`; its folder is made when missing.
    ///
    /// # Errors
    /// [`SocketError`].
    pub async fn bind(path: &Path) -> Result<Self, SocketError> {
        if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
            Layout::create(folder)?;
        }
        refuse_taken(path).await?;
        // It gets its name when it has its mode: there is no moment in which others could connect.
        // The rename also replaces what a dead daemon has left.
        let draft = path.with_extension(format!("{}.new", std::process::id()));
        let _ = std::fs::remove_file(&draft);
        let bound = || -> io::Result<_> {
            let listener = UnixListener::bind(&draft)?;
            std::fs::set_permissions(&draft, Permissions::from_mode(0o600))?;
            std::fs::rename(&draft, path)?;
            Ok((listener, inode(path)?))
        };
        match bound() {
            Ok((listener, inode)) => {
                Ok(Self { listener, name: SocketName { path: path.to_owned(), inode } })
            }
            Err(cause) => {
                let _ = std::fs::remove_file(&draft);
                Err(SocketError::Io { path: path.to_owned(), cause })
            }
        }
    }

    /// Returns the path of the socket.
    pub fn path(&self) -> &Path {
        &self.name.path
    }

    /// Splits it into the listener and its name, which goes when the second is dropped.
    pub fn into_parts(self) -> (UnixListener, SocketName) {
        (self.listener, self.name)
    }
}

async fn refuse_taken(path: &Path) -> Result<(), SocketError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(cause) => Err(SocketError::Io { path: path.to_owned(), cause }),
        Ok(found) if !found.file_type().is_socket() => {
            Err(SocketError::NotASocket { path: path.to_owned() })
        }
        Ok(_) => match UnixStream::connect(path).await {
            Ok(_) => Err(SocketError::Taken { path: path.to_owned() }),
            Err(_) => Ok(()),
        },
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Drop for SocketName {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|now| now == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_served_socket_is_refused_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/mayfly.sock");
        let socket = UnixSocket::bind(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777,
            0o700
        );
        assert!(matches!(UnixSocket::bind(&path).await, Err(SocketError::Taken { .. })));
        // What kill -9 leaves: the name without a listener.
        let (listener, name) = socket.into_parts();
        drop(listener);
        let _left = std::mem::ManuallyDrop::new(name);
        let (_listener, name) = UnixSocket::bind(&path).await.unwrap().into_parts();
        UnixStream::connect(&path).await.unwrap();
        drop(name);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "x").unwrap();
        assert!(matches!(UnixSocket::bind(&path).await, Err(SocketError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
    }
}
