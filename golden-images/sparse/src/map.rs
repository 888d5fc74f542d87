//! The extents of data in a file, and their form in an archive.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

/// Extents of one file at most, in what is written and in what is read.
pub const MAX_EXTENTS: usize = 65_536;

/// Bytes of a block of an archive. All extents but the last are as many of them as they have.
pub(crate) const BLOCK: u64 = 512;

/// A stretch of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

impl Extent {
    pub(crate) fn end(self) -> u64 {
        self.offset + self.length
    }
}

/// The extents of data in a file, in order, apart from each other and within its size; the rest of
/// it is holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    extents: Vec<Extent>,
    size: u64,
}

impl Map {
    pub(crate) fn new(extents: Vec<Extent>, size: u64) -> Self {
        Self { extents, size }
    }

    /// Returns the extents.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Returns the bytes of the file, holes included.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the bytes of its data.
    pub fn data(&self) -> u64 {
        self.extents.iter().map(|extent| extent.length).sum()
    }

    /// Makes `header`, a GNU one, that of the sparse file; returns the blocks that come between it
    /// and the data. Its checksum is still to be set.
    pub fn write(&self, header: &mut Header) -> Vec<u8> {
        header.set_entry_type(EntryType::GNUSparse);
        header.set_size(self.data());
        let hole_at_end = self.extents.last().is_none_or(|last| last.end() < self.size);
        let end = hole_at_end.then_some(Extent { offset: self.size, length: 0 });
        let mut rest = self.extents.iter().copied().chain(end).peekable();
        let mut fill = |blocks: &mut [GnuSparseHeader]| {
            for (block, extent) in blocks.iter_mut().zip(std::iter::from_fn(|| rest.next())) {
                block.set_offset(extent.offset);
                block.set_length(extent.length);
            }
            rest.peek().is_some()
        };
        let mut more = false;
        if let Some(gnu) = header.as_gnu_mut() {
            gnu.set_real_size(self.size);
            more = fill(&mut gnu.sparse);
            gnu.set_is_extended(more);
        }
        let mut blocks = Vec::new();
        while more {
            let mut block = GnuExtSparseHeader::new();
            more = fill(&mut block.sparse);
            block.set_is_extended(more);
            blocks.extend_from_slice(block.as_bytes());
        }
        blocks
    }

    /// Reads the map of an entry whose header is `header`, with the blocks that follow it in `more`.
    ///
    /// # Errors
    /// `InvalidData` for a map that is out of order, overlaps, leads beyond the file, has another
    /// sum than the entry's data, or has more than [`MAX_EXTENTS`] extents; what reading `more`
    /// gives.
    pub fn read(header: &Header, more: &mut impl Read) -> io::Result<Self> {
        let Some(gnu) = header.as_gnu() else { return Err(bad("is in no header of GNU tar")) };
        let mut map = Self { extents: Vec::new(), size: number(gnu.real_size())? };
        if i64::try_from(map.size).is_err() {
            return Err(bad("is of a file of an impossible size"));
        }
        let mut data = 0;
        for block in &gnu.sparse {
            map.take(block, &mut data)?;
        }
        let mut block = GnuExtSparseHeader::new();
        block.set_is_extended(gnu.is_extended());
        let mut blocks = 0;
        while block.is_extended() {
            blocks += 1;
            if blocks > MAX_EXTENTS / block.sparse.len() + 1 {
                return Err(bad("has too many extents"));
            }
            more.read_exact(block.as_mut_bytes())?;
            for block in &block.sparse {
                map.take(block, &mut data)?;
            }
        }
        if data == number(header.entry_size())? {
            Ok(map)
        } else {
            Err(bad("has not all of its data"))
        }
    }

    /// Adds an extent; `data` are the bytes of those before.
    fn take(&mut self, block: &GnuSparseHeader, data: &mut u64) -> io::Result<()> {
        if block.is_empty() {
            return Ok(());
        }
        let (offset, length) = (number(block.offset())?, number(block.length())?);
        let end = offset.checked_add(length).filter(|end| *end <= self.size);
        if end.is_none() {
            return Err(bad("leads beyond the end of its file"));
        }
        if self.extents.last().is_some_and(|last| last.end() > offset) {
            return Err(bad("is out of order"));
        }
        if length == 0 {
            return Ok(());
        }
        if !data.is_multiple_of(BLOCK) {
            return Err(bad("has an extent that ends within a block"));
        }
        if self.extents.len() == MAX_EXTENTS {
            return Err(bad("has too many extents"));
        }
        // Within the size, and apart from each other: their sum is, too.
        *data += length;
        self.extents.push(Extent { offset, length });
        Ok(())
    }

    /// Returns a reader of the data in `file`; where that has become shorter, zeros take its place.
    pub fn content<'a>(&'a self, file: &'a File) -> impl Read + 'a {
        Content { file, extents: self.extents.iter(), now: Extent { offset: 0, length: 0 } }
    }
}

/// A field of a header, whose own error has another kind.
fn number(field: io::Result<u64>) -> io::Result<u64> {
    field.map_err(|_| bad("has a field that is no number"))
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the map of a sparse file {what}"))
}

struct Content<'a> {
    file: &'a File,
    extents: std::slice::Iter<'a, Extent>,
    now: Extent,
}

impl Read for Content<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.now.length == 0 {
            let Some(next) = self.extents.next() else { return Ok(0) };
            self.now = *next;
        }
        let room = usize::try_from(self.now.length).map_or(out.len(), |left| left.min(out.len()));
        let out = &mut out[..room];
        let count = match self.file.read_at(out, self.now.offset)? {
            0 => {
                out.fill(0);
                room
            }
            count => count,
        };
        self.now.offset += count as u64;
        self.now.length -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(extents: &[(u64, u64)], size: u64) -> Map {
        let extents =
            extents.iter().map(|(offset, length)| Extent { offset: *offset, length: *length });
        Map::new(extents.collect(), size)
    }

    fn written(map: &Map) -> (Header, Vec<u8>) {
        let mut header = Header::new_gnu();
        let blocks = map.write(&mut header);
        (header, blocks)
    }

    #[test]
    fn what_is_written_is_read() {
        let many: Vec<_> = (0..1000).map(|n| (n * 1024, 512)).collect();
        for map in [
            map(&[], 1 << 40),
            map(&[(0, 512)], 1024),
            map(&[(512, 3)], 515),
            map(&many[..4], 4096),
            map(&many[..5], 5 * 1024),
            map(&many, 1 << 42),
            map(&[(1 << 41, 4096)], (1 << 41) + 4096),
        ] {
            let (header, blocks) = written(&map);
            assert_eq!(blocks.len() % 512, 0);
            let mut rest = &*blocks;
            assert_eq!(Map::read(&header, &mut rest).unwrap(), map);
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn hostile_maps_are_refused() {
        for (extents, size) in [
            (&[(512, 512), (0, 512)][..], 2048),
            (&[(0, 1024), (512, 512)], 2048),
            (&[(0, 1024)], 1023),
            (&[(2048, 512)], 1024),
            (&[(u64::MAX - 511, 512)], 1 << 40),
            (&[(512, u64::MAX)], 1 << 40),
            (&[(0, 100), (512, 512)], 1024),
            (&[], u64::MAX),
        ] {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::GNUSparse);
            header.set_size(
                extents.iter().fold(0, |sum: u64, (_, length)| sum.wrapping_add(*length)),
            );
            let gnu = header.as_gnu_mut().unwrap();
            gnu.set_real_size(size);
            for (block, (offset, length)) in gnu.sparse.iter_mut().zip(extents) {
                block.set_offset(*offset);
                block.set_length(*length);
            }
            let error = Map::read(&header, &mut io::empty()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{extents:?} {size}: {error}");
        }
        let (mut header, _) = written(&map(&[(0, 512)], 1024));
        header.set_size(1024);
        assert!(Map::read(&header, &mut io::empty()).is_err(), "another sum");
    }

    #[test]
    fn maps_without_end_are_cut() {
        let (mut header, _) = written(&map(&[], 1 << 40));
        header.as_gnu_mut().unwrap().set_is_extended(true);
        for full in [false, true] {
            let mut block = GnuExtSparseHeader::new();
            block.set_is_extended(true);
            if full {
                for block in &mut block.sparse {
                    block.set_offset(1 << 40);
                    block.set_length(0);
                }
            }
            let blocks = block.as_bytes().repeat(MAX_EXTENTS);
            let mut rest = &*blocks;
            let error = Map::read(&header, &mut rest).unwrap_err();
            assert!(error.to_string().contains("too many"), "{error}");
            assert!(blocks.len() - rest.len() < 4 << 20);
        }
        let cut = Map::read(&header, &mut &[0; 100][..]).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
    }

    proptest! {
        #[test]
        fn what_is_read_lies_in_its_file(bytes in proptest::collection::vec(any::<u8>(), 126), more in proptest::collection::vec(any::<u8>(), 0..1100), size in any::<u64>()) {
            let mut header = Header::new_gnu();
            header.as_mut_bytes()[386..386 + 110].copy_from_slice(&bytes[..110]);
            header.set_size(size);
            if let Ok(map) = Map::read(&header, &mut &*more) {
                let mut end = 0;
                for extent in map.extents() {
                    prop_assert!(extent.offset >= end && extent.length > 0);
                    end = extent.end();
                }
                prop_assert!(end <= map.size() && map.data() == size);
            }
        }
    }
}
