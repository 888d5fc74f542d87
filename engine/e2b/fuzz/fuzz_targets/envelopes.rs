//! Envelopes of a client's stream: however they are cut, the same messages come, none of them longer
//! than the bound.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_e2b::connect::{Code, Envelope, Envelopes, MAX_MESSAGE};

fn read(bytes: &[u8], piece: usize) -> (Vec<Envelope>, Option<Code>) {
    let (mut reader, mut all) = (Envelopes::default(), Vec::new());
    for piece in bytes.chunks(piece.max(1)) {
        reader.feed(piece);
        loop {
            match reader.next() {
                Ok(Some(envelope)) => all.push(envelope),
                Ok(None) => break,
                Err(error) => return (all, Some(error.code())),
            }
        }
    }
    (all, None)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    let whole = read(bytes, bytes.len());
    assert_eq!(whole, read(bytes, usize::from(*piece)));
    for envelope in &whole.0 {
        let (Envelope::Message(message) | Envelope::End(message)) = envelope;
        assert!(message.len() <= MAX_MESSAGE);
    }
});
