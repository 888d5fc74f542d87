//! A guest's Docker daemon: where it listens, whether it answers, and how docker clients of this
//! host reach it.

mod relay;

pub use relay::{Connect, relay};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::channel::{Channel, ChannelError, GuestStream};

/// Path of Docker's socket in a guest.
pub const GUEST_SOCKET: &str = "/run/docker.sock";
/// Path of containerd's debug socket in a guest.
const CONTAINERD_DEBUG_SOCKET: &str = "/run/containerd/debug.sock";

/// Most bytes that are read of a memory profile.
const MAX_PROFILE: u64 = 16 << 20;

/// Sends one `GET /_ping` of the Docker Engine API (docs.docker.com/engine/api, "Ping"), through
/// the channel.
///
/// # Errors
/// [`ChannelError::Closed`] when the daemon answers anything but 200.
pub async fn ping(guest: &Channel) -> Result<(), ChannelError> {
    let mut stream = get(guest, GUEST_SOCKET, "/_ping").await?;
    let mut answer = [0u8; 64];
    let mut length = 0;
    // The status line is all that is wanted; a guest that sends less and closes, or something else,
    // is refused.
    while length < 12 {
        match stream.read(&mut answer[length..]).await? {
            0 => break,
            n => length += n,
        }
    }
    let status = String::from_utf8_lossy(&answer[..length]);
    if status.starts_with("HTTP/1.") && status.get(9..12) == Some("200") {
        return Ok(());
    }
    let line = status.lines().next().unwrap_or_default().escape_default().to_string();
    Err(ChannelError::Closed {
        reason: format!("the guest's Docker daemon answered a ping with \"{line}\""),
    })
}

/// Makes dockerd and containerd collect their garbage, by asking each for a memory profile of after
/// a collection (pkg.go.dev/net/http/pprof, `heap?gc=1`).
///
/// # Errors
/// [`ChannelError::Guest`] where one does not listen.
pub async fn collect_garbage(guest: &Channel) -> Result<(), ChannelError> {
    for socket in [GUEST_SOCKET, CONTAINERD_DEBUG_SOCKET] {
        let stream = get(guest, socket, "/debug/pprof/heap?gc=1").await?;
        // The profile itself is of no use.
        tokio::io::copy(&mut stream.take(MAX_PROFILE), &mut tokio::io::sink()).await?;
    }
    Ok(())
}

/// Asks a daemon of the guest for `path`; what can be read then is its answer, up to the end.
async fn get(guest: &Channel, socket: &str, path: &str) -> Result<GuestStream, ChannelError> {
    let mut stream = guest.connect_unix(socket).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}
