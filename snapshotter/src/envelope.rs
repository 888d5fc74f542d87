//! The frame around every piece of metadata:
//! `magic(4) version(u32 LE) payload blake3(32, over all before it)`.
//!
//! The checksum is tested before the version is believed, so an altered version field reads as
//! damage, not as a file of a newer release.

use crate::Digest;

const HEAD: usize = 8;
const TAIL: usize = 32;

/// Bytes that are not what they should be. `what` names the thing that was read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The file has too few bytes.
    #[error("{what} is truncated: {have} bytes, at least {need} needed")]
    Truncated {
        /// The thing that was read.
        what: &'static str,
        /// The least number of bytes it must have.
        need: usize,
        /// The number of bytes it had.
        have: usize,
    },
    /// The first bytes are not those of this kind of thing.
    #[error("{what} does not begin with its magic number")]
    Magic {
        /// The thing that was read.
        what: &'static str,
    },
    /// Written by a release with another format.
    #[error("{what} has format version {found}, this release reads version {supported}")]
    Version {
        /// The thing that was read.
        what: &'static str,
        /// The version found in it.
        found: u32,
        /// The version this code reads and writes.
        supported: u32,
    },
    /// The bytes were altered after they were written.
    #[error("{what} does not match its checksum")]
    Checksum {
        /// The thing that was read.
        what: &'static str,
    },
    /// Intact by its checksum (or without one), but not meaningful.
    #[error("{what} is malformed: {reason}")]
    Content {
        /// The thing that was read.
        what: &'static str,
        /// Description of what is wrong with it.
        reason: String,
    },
}

/// One kind of enveloped metadata.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Envelope {
    /// Name of the document, for messages.
    pub what: &'static str,
    pub magic: [u8; 4],
    pub version: u32,
}

impl Envelope {
    /// Frames `payload`.
    pub fn seal(&self, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + payload.len() + TAIL);
        bytes.extend_from_slice(&self.magic);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(payload);
        let sum = Digest::of(&bytes);
        bytes.extend_from_slice(sum.as_bytes());
        bytes
    }

    /// Checks the frame and gives the payload.
    pub fn open<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], FormatError> {
        let what = self.what;
        if bytes.len() < HEAD + TAIL {
            return Err(FormatError::Truncated { what, need: HEAD + TAIL, have: bytes.len() });
        }
        let (body, sum) = bytes.split_at(bytes.len() - TAIL);
        if body[..4] != self.magic {
            return Err(FormatError::Magic { what });
        }
        if Digest::of(body).as_bytes() != sum {
            return Err(FormatError::Checksum { what });
        }
        let found = u32::from_le_bytes([body[4], body[5], body[6], body[7]]);
        if found != self.version {
            return Err(FormatError::Version { what, found, supported: self.version });
        }
        Ok(&body[HEAD..])
    }

    /// Creates a [`FormatError::Content`] of this kind.
    pub fn malformed(&self, reason: &(impl ToString + ?Sized)) -> FormatError {
        FormatError::Content { what: self.what, reason: reason.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KIND: Envelope = Envelope { what: "test", magic: *b"TEST", version: 3 };

    #[test]
    fn another_version_is_named() {
        let newer = Envelope { version: 4, ..KIND }.seal(b"x");
        assert_eq!(
            KIND.open(&newer),
            Err(FormatError::Version { what: "test", found: 4, supported: 3 })
        );
    }

    proptest! {
        #[test]
        fn round_trip(payload: Vec<u8>) {
            let sealed = KIND.seal(&payload);
            prop_assert_eq!(KIND.open(&sealed).unwrap(), &payload[..]);
        }

        #[test]
        fn any_flipped_bit_or_cut_is_an_error(payload: Vec<u8>, at: prop::sample::Index, bit in 0..8u8) {
            let sealed = KIND.seal(&payload);
            let at = at.index(sealed.len());
            prop_assert!(KIND.open(&sealed[..at]).is_err());
            let mut altered = sealed;
            altered[at] ^= 1 << bit;
            prop_assert!(KIND.open(&altered).is_err());
        }
    }
}
