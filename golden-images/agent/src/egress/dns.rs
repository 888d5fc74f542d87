//! Carries DNS queries of the guest to the engine, and its answers back. Looks into neither.

use crate::wire::{Event, Wire};
use mayfly_protocol::{DnsMessage, FrameError, MAX_DNS_IN_FLIGHT, MAX_DNS_MESSAGE, decode_frame};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::Poll;
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

/// Relays until the engine ends the stream.
pub async fn relay(wire: &mut Wire, sockets: &[UdpSocket]) -> Result<(), FrameError> {
    // Who waits for the answer with this tag: a socket of ours, and the client behind it.
    let mut waiting: HashMap<u32, (usize, SocketAddr)> = HashMap::new();
    let mut next_tag = 0_u32;
    // One byte more, so that a message that is too long does not pass as one that was cut.
    let mut buffer = vec![0; MAX_DNS_MESSAGE + 1];
    loop {
        tokio::select! {
            event = wire.event() => match event? {
                Event::Input(None) => return Ok(()),
                Event::Input(Some(payload)) => {
                    let answer: DnsMessage = decode_frame(&payload)?;
                    if let Some((socket, client)) = waiting.remove(&answer.tag) {
                        // A client that is gone, or a full socket buffer: DNS clients ask again.
                        let _ = sockets[socket].try_send_to(&answer.message, client);
                    }
                }
                Event::Drained => {}
            },
            received = receive(sockets, &mut buffer) => {
                let Ok((socket, length, client)) = received else { continue };
                if length > MAX_DNS_MESSAGE || waiting.len() >= MAX_DNS_IN_FLIGHT {
                    continue;
                }
                next_tag = next_tag.wrapping_add(1);
                waiting.insert(next_tag, (socket, client));
                wire.send(&DnsMessage { tag: next_tag, message: buffer[..length].to_vec() })?;
            }
        }
    }
}

/// The next datagram: index of its socket, length, sender.
async fn receive(
    sockets: &[UdpSocket],
    buffer: &mut [u8],
) -> io::Result<(usize, usize, SocketAddr)> {
    poll_fn(|cx| {
        for (index, socket) in sockets.iter().enumerate() {
            let mut read = ReadBuf::new(buffer);
            if let Poll::Ready(received) = socket.poll_recv_from(cx, &mut read) {
                return Poll::Ready(received.map(|client| (index, read.filled().len(), client)));
            }
        }
        Poll::Pending
    })
    .await
}
