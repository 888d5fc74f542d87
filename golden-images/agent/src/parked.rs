//! The parked phase: block in read(2) until a Hello comes. Golden images are snapshotted here.

use crate::identity::Identity;
use crate::port::Port;
use mayfly_protocol::{
    ApplyError, HELLO_MAGIC, Hello, HelloAck, PARKED_MAGIC, PROTOCOL_VERSION, Scanner,
    encode_handshake,
};
use std::io;

/// Waits for a Hello, applies it and answers. `None` when the stream has ended for good.
///
/// `unread` is looked at first: bytes that the open phase has read and could not use. With
/// `announce` the engine is told that the open phase is over.
pub fn wait(
    port: &Port,
    identity: &mut Identity,
    unread: &[u8],
    announce: bool,
) -> io::Result<Option<String>> {
    port.block()?;
    if announce && let Err(error) = port.write_all(&encode_handshake(&PARKED_MAGIC, &[])) {
        // The host end is gone; it may come back to a port that waits, and a socket shows its end
        // at the next read.
        crate::console::say(&format!("could not tell that the channel is parked: {error}"));
    }
    let mut scanner = Scanner::new(HELLO_MAGIC);
    scanner.push(unread);
    let mut buffer = [0; 4096];
    let ready = HelloAck {
        protocol: PROTOCOL_VERSION,
        agent: env!("CARGO_PKG_VERSION").into(),
        open: true,
        errors: vec![],
    };
    // Encoded before the wait: all of this runs while a session is waited for, the less of it the
    // better.
    let ready_message = ready.encode();
    loop {
        if let Some(payload) = scanner.next_payload() {
            match Hello::decode(&payload) {
                Ok(hello) => {
                    let errors = identity.apply(&hello);
                    if errors.is_empty() {
                        port.write_all(&ready_message)?;
                    } else {
                        port.write_all(&HelloAck { errors, ..ready }.encode())?;
                    }
                    return Ok(Some(hello.session));
                }
                Err(error) => {
                    let errors = vec![ApplyError {
                        step: "hello".into(),
                        errno: 0,
                        message: error.to_string(),
                    }];
                    port.write_all(&HelloAck { open: false, errors, ..ready.clone() }.encode())?;
                }
            }
            continue;
        }
        match port.read(&mut buffer)? {
            Some(count) => scanner.push(&buffer[..count]),
            None => return Ok(None),
        }
    }
}
