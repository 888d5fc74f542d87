//! Forwards a stream to a Unix socket of the guest, with half-close both ways (docker attach needs it).

use crate::wire::{Wire, reply};
use mayfly_protocol::{ByteString, Duplex, FrameError};
use tokio::net::UnixStream;
use tokio_util::compat::FuturesAsyncReadCompatExt;

/// Connects, answers, and copies until both directions are closed or one end is gone.
pub async fn run(mut wire: Wire, path: &ByteString) -> Result<(), FrameError> {
    let connected = reply(format_args!("connect to {path}"), UnixStream::connect(path.as_path()).await);
    let mut socket = match connected {
        Ok(socket) => {
            wire.send_now(&mayfly_protocol::Reply::<()>::Ok(())).await?;
            socket
        }
        Err(error) => {
            wire.send(&mayfly_protocol::Reply::<()>::Err(error))?;
            return wire.close().await;
        }
    };
    let mut stream = Duplex::new(wire.into_reader()).compat();
    tokio::io::copy_bidirectional(&mut stream, &mut socket).await?;
    Ok(())
}
