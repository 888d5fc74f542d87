//! A walk over all records of a pack, without the database.

use super::format::{PACK_HEADER_LEN, PackHeader, RECORD_HEADER_LEN, RecordHeader};
use crate::envelope::FormatError;
use std::io::{self, Read};

/// Record met on a walk. Its stored bytes are not checked against its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackRecord {
    /// Offset of the record header in the pack.
    pub offset: u64,
    /// The record header.
    pub header: RecordHeader,
    /// The bytes behind it, as stored.
    pub stored: Vec<u8>,
}

/// Iterates over the records of a pack read from `R`; ends after the first error, because nothing
/// behind a damaged header can be trusted to be a header.
#[derive(Debug)]
pub struct Walk<R> {
    source: R,
    offset: u64,
    done: bool,
}

impl<R: Read> Walk<R> {
    /// Reads the pack header.
    ///
    /// # Errors
    /// An I/O error, or one of kind `InvalidData` that wraps a [`FormatError`].
    pub fn new(mut source: R) -> io::Result<(PackHeader, Self)> {
        let mut head = Vec::new();
        source.by_ref().take(PACK_HEADER_LEN as u64).read_to_end(&mut head)?;
        let header = PackHeader::parse(&head).map_err(invalid)?;
        Ok((header, Self { source, offset: PACK_HEADER_LEN as u64, done: false }))
    }

    fn record(&mut self) -> io::Result<Option<PackRecord>> {
        let mut head = Vec::with_capacity(RECORD_HEADER_LEN);
        self.source.by_ref().take(RECORD_HEADER_LEN as u64).read_to_end(&mut head)?;
        if head.is_empty() {
            return Ok(None);
        }
        let header = RecordHeader::parse(&head).map_err(invalid)?;
        // At most CHUNK_SIZE: parse() checked it.
        let need = header.stored_len as usize;
        let mut stored = Vec::with_capacity(need);
        self.source.by_ref().take(need as u64).read_to_end(&mut stored)?;
        if stored.len() < need {
            return Err(invalid(FormatError::Truncated {
                what: "a pack record",
                need,
                have: stored.len(),
            }));
        }
        let offset = self.offset;
        self.offset += header.record_len();
        Ok(Some(PackRecord { offset, header, stored }))
    }
}

impl<R: Read> Iterator for Walk<R> {
    type Item = io::Result<PackRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.record().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

fn invalid(error: FormatError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChunkId;
    use crate::pack::Codec;
    use proptest::prelude::*;

    fn pack(contents: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = PackHeader { pack: 7 }.encode().to_vec();
        for c in contents {
            let len = u32::try_from(c.len()).unwrap();
            let header = RecordHeader {
                id: ChunkId::of(c),
                raw_len: len,
                stored_len: len,
                codec: Codec::Raw,
            };
            bytes.extend_from_slice(&header.encode());
            bytes.extend_from_slice(c);
        }
        bytes
    }

    proptest! {
        #[test]
        fn walks_every_record_and_reports_a_cut(
            contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 0..10),
            cut: prop::sample::Index,
        ) {
            let bytes = pack(&contents);
            let (header, walk) = Walk::new(&bytes[..]).unwrap();
            prop_assert_eq!(header.pack, 7);
            let records: Vec<_> = walk.collect::<io::Result<_>>().unwrap();
            prop_assert_eq!(records.len(), contents.len());
            let mut ends = vec![PACK_HEADER_LEN];
            for (record, content) in records.iter().zip(&contents) {
                prop_assert_eq!(&record.stored, content);
                prop_assert_eq!(usize::try_from(record.offset).unwrap(), *ends.last().unwrap());
                ends.push(usize::try_from(record.offset + record.header.record_len()).unwrap());
            }

            let cut = cut.index(bytes.len());
            match Walk::new(&bytes[..cut]) {
                Err(_) => prop_assert!(cut < PACK_HEADER_LEN),
                Ok((_, walk)) => {
                    let results: Vec<_> = walk.collect();
                    // A cut between two records cannot be seen without the database.
                    prop_assert_eq!(results.iter().any(Result::is_err), !ends.contains(&cut));
                }
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(tail: Vec<u8>) {
            let mut bytes = pack(&[vec![1]]);
            bytes.extend_from_slice(&tail);
            let (_, walk) = Walk::new(&bytes[..]).unwrap();
            prop_assert!(walk.count() >= 1);
        }
    }
}
