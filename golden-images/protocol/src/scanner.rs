//! The handshake envelope: magic, length, payload, found again after any garbage.

/// Magic that starts a [`crate::Hello`], engine to guest. Its first byte can never be a yamux
/// header (version 0).
pub const HELLO_MAGIC: [u8; 16] = *b"\xffMAYFLY-HELLO\r\n\x01";

/// Magic that starts a [`crate::HelloAck`], guest to engine.
pub const ACK_MAGIC: [u8; 16] = *b"\xffMAYFLY-ACKED\r\n\x01";

/// Magic that the guest sends when it has left the open phase and is about to block in `read(2)`;
/// its payload is empty.
pub const PARKED_MAGIC: [u8; 16] = *b"\xffMAYFLY-PARKD\r\n\x01";

/// Upper bound of a handshake payload in bytes.
pub const MAX_HANDSHAKE: usize = 4096;

const HEADER: usize = 16 + 4;

/// Encodes one handshake message: `magic`, the payload's length as u32 little-endian, `payload`.
///
/// # Panics
/// When `payload` is longer than [`MAX_HANDSHAKE`]; both handshake messages check their fields
/// before.
pub fn encode_handshake(magic: &[u8; 16], payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() <= MAX_HANDSHAKE, "handshake payload of {} bytes", payload.len());
    let mut out = Vec::with_capacity(HEADER + payload.len());
    out.extend_from_slice(magic);
    out.extend_from_slice(
        &u32::try_from(payload.len()).expect("no more than MAX_HANDSHAKE").to_le_bytes(),
    );
    out.extend_from_slice(payload);
    out
}

/// Scanner that finds handshake messages in a byte stream and drops everything before their magic.
///
/// Memory stays bounded: at most one message and one `push` are held.
#[derive(Debug)]
pub struct Scanner {
    magic: [u8; 16],
    buffer: Vec<u8>,
    discarded: u64,
}

impl Scanner {
    /// Creates a scanner for messages that start with `magic`.
    pub fn new(magic: [u8; 16]) -> Self {
        Self { magic, buffer: Vec::with_capacity(2 * MAX_HANDSHAKE), discarded: 0 }
    }

    /// Adds bytes as they came from the port.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns how many bytes were dropped so far because no message started in them.
    pub fn discarded(&self) -> u64 {
        self.discarded
    }

    /// Returns how many bytes were pushed and belong to no message yet.
    pub fn pending(&self) -> &[u8] {
        &self.buffer
    }

    /// Returns the payload of the next complete message, or `None` until more bytes are pushed.
    pub fn next_payload(&mut self) -> Option<Vec<u8>> {
        loop {
            let Some(start) =
                self.buffer.windows(self.magic.len()).position(|window| window == self.magic)
            else {
                // The tail may be the first bytes of a magic.
                self.discard(self.buffer.len().saturating_sub(self.magic.len() - 1));
                return None;
            };
            self.discard(start);
            let length = self.buffer.get(16..HEADER)?;
            let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
            if length > MAX_HANDSHAKE {
                self.discard(1);
                continue;
            }
            let payload = self.buffer.get(HEADER..HEADER + length)?.to_vec();
            self.buffer.drain(..HEADER + length);
            return Some(payload);
        }
    }

    fn discard(&mut self, count: usize) {
        self.buffer.drain(..count);
        self.discarded = self.discarded.saturating_add(count as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_length_beyond_the_limit_is_garbage_not_a_message() {
        let mut scanner = Scanner::new(HELLO_MAGIC);
        scanner.push(&HELLO_MAGIC);
        scanner.push(&u32::MAX.to_le_bytes());
        scanner.push(&encode_handshake(&HELLO_MAGIC, b"real"));
        assert_eq!(scanner.next_payload().as_deref(), Some(&b"real"[..]));
        assert_eq!(scanner.discarded(), 20);
    }

    proptest! {
        #[test]
        fn a_message_is_found_behind_any_garbage_and_in_any_cut(
            garbage in proptest::collection::vec(any::<u8>(), 0..200),
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            cut in 1usize..50,
        ) {
            let mut wire = garbage.clone();
            wire.extend(encode_handshake(&ACK_MAGIC, &payload));
            let mut scanner = Scanner::new(ACK_MAGIC);
            let mut found = None;
            for piece in wire.chunks(cut) {
                scanner.push(piece);
                if let Some(payload) = scanner.next_payload() {
                    prop_assert!(found.is_none());
                    found = Some(payload);
                }
            }
            prop_assert_eq!(found, Some(payload));
            prop_assert_eq!(scanner.discarded(), garbage.len() as u64);
        }

        #[test]
        fn memory_stays_bounded_on_noise(noise in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let mut scanner = Scanner::new(HELLO_MAGIC);
            for piece in noise.chunks(64) {
                scanner.push(piece);
                let _ = scanner.next_payload();
                prop_assert!(scanner.pending().len() < HEADER + MAX_HANDSHAKE + 64);
            }
        }
    }
}
