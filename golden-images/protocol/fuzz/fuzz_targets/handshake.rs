//! Handshake messages: the scanner must stay bounded, and what decodes must encode again to the
//! same message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_protocol::{
    ACK_MAGIC, HELLO_MAGIC, Hello, HelloAck, MAX_HANDSHAKE, Scanner, encode_handshake,
};

fuzz_target!(|bytes: &[u8]| {
    let cut = usize::from(bytes.first().copied().unwrap_or(0)) + 1;
    for magic in [HELLO_MAGIC, ACK_MAGIC] {
        let mut scanner = Scanner::new(magic);
        for piece in bytes.chunks(cut) {
            scanner.push(piece);
            while let Some(payload) = scanner.next_payload() {
                assert!(payload.len() <= MAX_HANDSHAKE);
            }
            assert!(scanner.pending().len() < 20 + MAX_HANDSHAKE + cut);
        }
    }
    if bytes.len() <= MAX_HANDSHAKE {
        let mut scanner = Scanner::new(ACK_MAGIC);
        scanner.push(&encode_handshake(&ACK_MAGIC, bytes));
        assert_eq!(scanner.next_payload().as_deref(), Some(bytes));
    }
    if let Ok(hello) = Hello::decode(bytes) {
        let mut scanner = Scanner::new(HELLO_MAGIC);
        scanner.push(&hello.encode().unwrap());
        assert_eq!(Hello::decode(&scanner.next_payload().unwrap()).unwrap(), hello);
    }
    if let Ok(ack) = HelloAck::decode(bytes) {
        let mut scanner = Scanner::new(ACK_MAGIC);
        scanner.push(&ack.encode());
        HelloAck::decode(&scanner.next_payload().unwrap()).unwrap();
    }
});
