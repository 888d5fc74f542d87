//! The byte layout of a pack. All integers are little-endian.
//!
//! ```text
//! pack    header(24)  record*
//! header  magic "MAYFPACK"  version u32 = 1  reserved u32 = 0  pack id u64
//! record  magic "MFCR"  codec u8  zero(3)  raw length u32  stored length u32  chunk id(32)  stored bytes
//! ```
//!
//! A record says all about itself, so a pack can be walked without the database.

use crate::envelope::FormatError;
use crate::{CHUNK_SIZE, ChunkId};
use serde::{Deserialize, Serialize};

/// Bytes of the header of a pack.
pub const PACK_HEADER_LEN: usize = 24;
/// Bytes of the header of a record.
pub const RECORD_HEADER_LEN: usize = 48;
/// zstd level of stored chunks: RAM is compressed once per build, and 3 is the level where zstd
/// still keeps up with the disk.
pub(crate) const ZSTD_LEVEL: i32 = 3;

const PACK_MAGIC: [u8; 8] = *b"MAYFPACK";
const PACK_VERSION: u32 = 1;
const RECORD_MAGIC: [u8; 4] = *b"MFCR";
const PACK: &str = "the pack header";
const RECORD: &str = "a pack record header";

/// Encoding of a chunk's stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Codec {
    /// Bytes as they are, because compression did not make them fewer.
    Raw,
    /// Single zstd frame.
    Zstd,
}

/// The first bytes of a pack file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackHeader {
    /// Number of the pack; its file is named after it.
    pub pack: u64,
}

impl PackHeader {
    /// Encodes the header.
    pub fn encode(&self) -> [u8; PACK_HEADER_LEN] {
        let mut bytes = [0; PACK_HEADER_LEN];
        bytes[..8].copy_from_slice(&PACK_MAGIC);
        bytes[8..12].copy_from_slice(&PACK_VERSION.to_le_bytes());
        bytes[16..].copy_from_slice(&self.pack.to_le_bytes());
        bytes
    }

    /// Reads the header from the first [`PACK_HEADER_LEN`] of `bytes`.
    ///
    /// # Errors
    /// [`FormatError`] for bytes that are truncated, altered or of another format version.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let b = bytes.first_chunk::<PACK_HEADER_LEN>().ok_or(FormatError::Truncated {
            what: PACK,
            need: PACK_HEADER_LEN,
            have: bytes.len(),
        })?;
        if b[..8] != PACK_MAGIC {
            return Err(FormatError::Magic { what: PACK });
        }
        let found = u32_at(b, 8);
        if found != PACK_VERSION {
            return Err(FormatError::Version { what: PACK, found, supported: PACK_VERSION });
        }
        if u32_at(b, 12) != 0 {
            return Err(malformed(PACK, "a reserved field is not zero"));
        }
        Ok(Self { pack: u64::from(u32_at(b, 16)) | u64::from(u32_at(b, 20)) << 32 })
    }
}

/// Header that precedes the stored bytes of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// blake3 of the uncompressed bytes.
    pub id: ChunkId,
    /// Uncompressed length, 1 to [`CHUNK_SIZE`].
    pub raw_len: u32,
    /// Length of the stored bytes: `raw_len` for [`Codec::Raw`], less for [`Codec::Zstd`].
    pub stored_len: u32,
    /// Encoding of the bytes.
    pub codec: Codec,
}

impl RecordHeader {
    /// Encodes the header.
    pub fn encode(&self) -> [u8; RECORD_HEADER_LEN] {
        let mut bytes = [0; RECORD_HEADER_LEN];
        bytes[..4].copy_from_slice(&RECORD_MAGIC);
        bytes[4] = match self.codec {
            Codec::Raw => 0,
            Codec::Zstd => 1,
        };
        bytes[8..12].copy_from_slice(&self.raw_len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.stored_len.to_le_bytes());
        bytes[16..].copy_from_slice(self.id.as_bytes());
        bytes
    }

    /// Reads the header from the first [`RECORD_HEADER_LEN`] of `bytes`.
    ///
    /// # Errors
    /// [`FormatError`] for bytes that are truncated, altered or not consistent.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let b = bytes.first_chunk::<RECORD_HEADER_LEN>().ok_or(FormatError::Truncated {
            what: RECORD,
            need: RECORD_HEADER_LEN,
            have: bytes.len(),
        })?;
        if b[..4] != RECORD_MAGIC {
            return Err(FormatError::Magic { what: RECORD });
        }
        let codec = match b[4] {
            0 => Codec::Raw,
            1 => Codec::Zstd,
            other => return Err(malformed(RECORD, format!("unknown codec {other}"))),
        };
        if b[5..8] != [0; 3] {
            return Err(malformed(RECORD, "a reserved field is not zero"));
        }
        let (raw_len, stored_len) = (u32_at(b, 8), u32_at(b, 12));
        if raw_len == 0 || raw_len as usize > CHUNK_SIZE {
            return Err(malformed(RECORD, format!("a chunk of {raw_len} bytes")));
        }
        let fits = match codec {
            Codec::Raw => stored_len == raw_len,
            Codec::Zstd => (1..raw_len).contains(&stored_len),
        };
        if !fits {
            return Err(malformed(
                RECORD,
                format!("{raw_len} bytes stored as {stored_len} with {codec:?}"),
            ));
        }
        let mut id = [0; 32];
        id.copy_from_slice(&b[16..]);
        Ok(Self { id: ChunkId::from_bytes(id), raw_len, stored_len, codec })
    }

    /// Returns the number of bytes of the whole record.
    pub const fn record_len(&self) -> u64 {
        RECORD_HEADER_LEN as u64 + self.stored_len as u64
    }
}

/// Location of a chunk, with all its record header says except the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// Number of the pack.
    pub pack: u64,
    /// Offset of the record header in the pack.
    pub offset: u64,
    /// Uncompressed length.
    pub raw_len: u32,
    /// Stored length, without the record header.
    pub stored_len: u32,
    /// Encoding of the stored bytes.
    pub codec: Codec,
}

impl Location {
    /// Returns the header the record must have.
    pub const fn header(&self, id: ChunkId) -> RecordHeader {
        RecordHeader { id, raw_len: self.raw_len, stored_len: self.stored_len, codec: self.codec }
    }

    /// Returns the number of bytes of the whole record.
    pub const fn record_len(&self) -> u64 {
        RECORD_HEADER_LEN as u64 + self.stored_len as u64
    }

    /// Returns where the record ends in the pack. A location may come from a damaged database.
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.record_len())
    }
}

/// Name of the file of pack `id`.
pub(crate) fn pack_file_name(id: u64) -> String {
    format!("{id:016x}.pack")
}

/// The pack id in a file name, if it is one that [`pack_file_name`] makes.
pub(crate) fn parse_pack_file_name(name: &str) -> Option<u64> {
    let id = u64::from_str_radix(name.strip_suffix(".pack")?, 16).ok()?;
    (pack_file_name(id) == name).then_some(id)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn malformed(what: &'static str, reason: impl Into<String>) -> FormatError {
    FormatError::Content { what, reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::CHUNK_SIZE_U32;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pack_header_round_trips_and_sees_every_flipped_bit(pack: u64, at in 0..PACK_HEADER_LEN, bit in 0..8u8) {
            let header = PackHeader { pack };
            let mut bytes = header.encode();
            prop_assert_eq!(PackHeader::parse(&bytes).unwrap(), header);
            prop_assert!(PackHeader::parse(&bytes[..at]).is_err());
            bytes[at] ^= 1 << bit;
            prop_assert_ne!(PackHeader::parse(&bytes).ok(), Some(header));
        }

        #[test]
        fn record_header_round_trips_and_sees_every_flipped_bit(
            id: [u8; 32], raw_len in 2..=CHUNK_SIZE_U32, saved: prop::sample::Index, at in 0..RECORD_HEADER_LEN, bit in 0..8u8,
        ) {
            let saved = u32::try_from(saved.index(raw_len as usize)).unwrap();
            let codec = if saved == 0 { Codec::Raw } else { Codec::Zstd };
            let header = RecordHeader { id: ChunkId::from_bytes(id), raw_len, stored_len: raw_len - saved, codec };
            let mut bytes = header.encode();
            prop_assert_eq!(RecordHeader::parse(&bytes).unwrap(), header);
            prop_assert!(RecordHeader::parse(&bytes[..at]).is_err());
            bytes[at] ^= 1 << bit;
            prop_assert_ne!(RecordHeader::parse(&bytes).ok(), Some(header));
        }

        #[test]
        fn whatever_parses_encodes_to_the_same_bytes(tail: [u8; RECORD_HEADER_LEN - 4]) {
            let mut bytes = [0; RECORD_HEADER_LEN];
            bytes[..4].copy_from_slice(&RECORD_MAGIC);
            bytes[4..].copy_from_slice(&tail);
            bytes[4] &= 1;
            bytes[5..8].fill(0);
            bytes[10..12].fill(0);
            bytes[14..16].fill(0);
            if let Ok(header) = RecordHeader::parse(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }

    #[test]
    fn file_names() {
        assert_eq!(parse_pack_file_name(&pack_file_name(0xab)), Some(0xab));
        for other in [
            "ab.pack",
            "00000000000000AB.pack",
            "00000000000000ab.pac",
            "+0000000000000ab.pack",
            ".pack",
        ] {
            assert_eq!(parse_pack_file_name(other), None, "{other}");
        }
    }
}
