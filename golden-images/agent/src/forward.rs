//! Forwards a stream to a Unix socket or a TCP port of the guest, with half-close both ways (docker
//! attach needs it).

use crate::wire::{Wire, invalid, reply};
use mayfly_protocol::{ByteString, Duplex, FrameError, GuestError, Reply};
use std::net::{Ipv4Addr, Ipv6Addr};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::compat::FuturesAsyncReadCompatExt;

/// Serves a Connect stream.
pub async fn unix(wire: Wire, path: &ByteString) -> Result<(), FrameError> {
    let connected = UnixStream::connect(path.as_path()).await;
    run(wire, reply(format_args!("connect to {path}"), connected)).await
}

/// Serves a ConnectTcp stream.
pub async fn tcp(wire: Wire, port: u16) -> Result<(), FrameError> {
    run(wire, connect_tcp(port).await).await
}

/// A server that listens on one of the two addresses only is found on it.
async fn connect_tcp(port: u16) -> Reply<TcpStream> {
    if port == 0 {
        return Err(invalid("0 is no TCP port to connect to"));
    }
    let socket = match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Ok(socket) => socket,
        Err(first) => TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.map_err(|second| {
            GuestError::io(
                format_args!("connect to port {port}: [::1]: {second}; 127.0.0.1"),
                &first,
            )
        })?,
    };
    // The bytes come in pieces of the channel's making; the next one must not wait for an
    // acknowledgement.
    reply(format_args!("set TCP_NODELAY on port {port}"), socket.set_nodelay(true))?;
    Ok(socket)
}

/// Answers, and copies until both directions are closed or one end is gone.
pub async fn run(
    mut wire: Wire,
    connected: Reply<impl AsyncRead + AsyncWrite + Unpin>,
) -> Result<(), FrameError> {
    let mut socket = match connected {
        Ok(socket) => {
            wire.send_now(&Reply::<()>::Ok(())).await?;
            socket
        }
        Err(error) => {
            wire.send(&Reply::<()>::Err(error))?;
            return wire.close().await;
        }
    };
    let mut stream = Duplex::new(wire.into_reader()).compat();
    tokio::io::copy_bidirectional(&mut stream, &mut socket).await?;
    Ok(())
}
