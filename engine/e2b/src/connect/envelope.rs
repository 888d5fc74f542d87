//! Envelopes: a byte of flags, the length of what follows in four bytes, the most significant first,
//! and a message.

use bytes::{Buf, Bytes, BytesMut};
use mayfly_daemon::http::body::BODY_LIMIT;
use serde::Serialize;

use super::error::{Code, ConnectError};

/// Longest message, in bytes.
pub const MAX_MESSAGE: usize = BODY_LIMIT;
/// Bytes before a message.
const HEAD: usize = 5;
const COMPRESSED: u8 = 1;
pub(super) const END: u8 = 2;

/// What an envelope holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Envelope {
    /// A message.
    Message(Bytes),
    /// The end of a stream, with what is said of it.
    End(Bytes),
}

/// Reader of envelopes from bytes that come in pieces.
#[derive(Debug, Default)]
pub struct Envelopes {
    bytes: BytesMut,
}

impl Envelopes {
    /// Takes more bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns the next envelope, once all of it has come.
    ///
    /// # Errors
    /// [`ConnectError`] for a message that is compressed, longer than [`MAX_MESSAGE`], or of a kind
    /// that there is not; nothing follows.
    #[expect(clippy::should_implement_trait, reason = "more may come after `None`")]
    pub fn next(&mut self) -> Result<Option<Envelope>, ConnectError> {
        let Some((head, _)) = self.bytes.split_first_chunk::<HEAD>() else { return Ok(None) };
        let [flags, length @ ..] = *head;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            let message =
                format!("a message of {length} bytes; at most {MAX_MESSAGE} are possible");
            return Err(ConnectError::new(Code::ResourceExhausted, message));
        }
        if flags & COMPRESSED != 0 {
            let message = "a compressed message: send it as it is";
            return Err(ConnectError::new(Code::Unimplemented, message));
        }
        if flags & !END != 0 {
            return Err(ConnectError::invalid(format!("an envelope with flags {flags:#x}")));
        }
        if self.bytes.len() < HEAD + length {
            return Ok(None);
        }
        self.bytes.advance(HEAD);
        let message = self.bytes.split_to(length).freeze();
        Ok(Some(if flags & END == 0 { Envelope::Message(message) } else { Envelope::End(message) }))
    }

    /// Returns how many bytes wait for the rest of their envelope.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns whether none wait.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Puts a message into an envelope.
pub(super) fn encode(flags: u8, message: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![flags, 0, 0, 0, 0];
    if let Err(error) = serde_json::to_writer(&mut bytes, message) {
        // No type of ours has a map with keys other than strings, the one thing that JSON cannot
        // say.
        tracing::error!(%error, "cannot write a message of JSON");
        bytes.truncate(HEAD);
        bytes.extend_from_slice(b"{}");
    }
    let length = u32::try_from(bytes.len() - HEAD).unwrap_or(u32::MAX);
    bytes[1..HEAD].copy_from_slice(&length.to_be_bytes());
    // It grew to up to twice its length, and may wait.
    bytes.shrink_to_fit();
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(bytes: &[u8], piece: usize) -> (Vec<Envelope>, Option<Code>) {
        let (mut reader, mut all) = (Envelopes::default(), Vec::new());
        for piece in bytes.chunks(piece) {
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

    #[test]
    fn what_is_no_envelope_is_refused_before_its_message_comes() {
        for (bytes, code) in [
            (&[1, 0, 0, 0, 0][..], Code::Unimplemented),
            (&[4, 0, 0, 0, 0], Code::InvalidArgument),
            (&[0, 0xff, 0xff, 0xff, 0xff], Code::ResourceExhausted),
            (&[0, 0, 0x40, 0, 1], Code::ResourceExhausted),
        ] {
            assert_eq!(read(bytes, 5), (vec![], Some(code)), "{bytes:?}");
        }
    }

    #[test]
    fn a_message_and_the_end_come_back() {
        let bytes = [encode(0, &json!({"a": 1})), encode(END, &json!({}))].concat();
        let wanted =
            vec![Envelope::Message(Bytes::from("{\"a\":1}")), Envelope::End(Bytes::from("{}"))];
        for piece in 1..bytes.len() {
            assert_eq!(read(&bytes, piece), (wanted.clone(), None));
        }
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            bytes in prop::collection::vec(prop_oneof![Just(0_u8), 0_u8..6, any::<u8>()], 0..60),
            piece in 1_usize..20,
        ) {
            prop_assert_eq!(read(&bytes, piece), read(&bytes, 1));
        }
    }
}
