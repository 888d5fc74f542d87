//! The exchanges outside of yamux: identity in, acknowledgement out, and the end of an open phase.

use super::ChannelError;
use mayfly_protocol::{ACK_MAGIC, Hello, HelloAck, PARKED_MAGIC, Scanner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// What an earlier open phase may have left on the wire, in bytes; more than this is no agent.
const GARBAGE: u64 = 8 << 20;

/// Sends the identity with one write and reads the answer, which in the usual case is one read.
pub async fn greet(stream: &mut UnixStream, hello: &Hello) -> Result<HelloAck, ChannelError> {
    stream.write_all(&hello.encode()?).await?;
    let mut scanner = Scanner::new(ACK_MAGIC);
    let payload = next_payload(stream, &mut scanner, "acknowledgement").await?;
    let ack = HelloAck::decode(&payload)?;
    if !scanner.pending().is_empty() {
        let reason = format!("{} bytes behind its acknowledgement", scanner.pending().len());
        return Err(ChannelError::Protocol { reason });
    }
    if ack.open { Ok(ack) } else { Err(ChannelError::Refused { errors: ack.errors }) }
}

/// Reads away what is left of an open phase, until the guest says that it is parked. `unread` was
/// read before.
pub async fn await_parked(stream: &mut UnixStream, unread: &[u8]) -> Result<(), ChannelError> {
    let mut scanner = Scanner::new(PARKED_MAGIC);
    scanner.push(unread);
    next_payload(stream, &mut scanner, "parked message").await.map(drop)
}

async fn next_payload(
    stream: &mut UnixStream,
    scanner: &mut Scanner,
    what: &str,
) -> Result<Vec<u8>, ChannelError> {
    let mut buffer = [0; 4096];
    loop {
        if let Some(payload) = scanner.next_payload() {
            return Ok(payload);
        }
        if scanner.discarded() > GARBAGE {
            return Err(ChannelError::Protocol {
                reason: format!("no {what} in {} bytes", scanner.discarded()),
            });
        }
        match stream.read(&mut buffer).await? {
            0 => {
                return Err(ChannelError::Closed {
                    reason: format!("it ended before the guest's {what}"),
                });
            }
            count => scanner.push(&buffer[..count]),
        }
    }
}
