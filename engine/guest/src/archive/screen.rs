//! Validation of tar headers before extraction.
//!
//! The `tar` crate reads the long names and extensions that go before an entry into memory as a
//! whole, whatever length their sender gives them, and lets some extensions change how the bytes
//! behind them are read. A guest's agent writes none of these but long names and maps of sparse
//! files (GNU tar manual, "Basic Tar Format", "Old GNU Format"), so nothing else passes here; and the
//! maps are read and checked here, so that the crate sees plain files of data alone.

use std::cell::RefCell;
use std::io::{self, Read};
use std::rc::Rc;

use mayfly_sparse::Map;
use tar::{EntryType, Header};

/// Where the map of the entry that is being read is left, for whoever unpacks it.
pub type MapOfEntry = Rc<RefCell<Option<Map>>>;

const BLOCK: usize = 512;
/// Longest name, in bytes: 16 times what Linux takes (`PATH_MAX`).
const NAME_LIMIT: u64 = 64 << 10;

/// An archive whose headers are checked as it is read.
#[derive(Debug)]
pub struct Screened<R> {
    inner: R,
    header: [u8; BLOCK],
    /// Bytes of the header that were not handed out yet, at its end.
    header_left: usize,
    /// Bytes until the next header.
    content_left: u64,
    ended: bool,
    map: MapOfEntry,
}

impl<R: Read> Screened<R> {
    /// Creates a reader of the archive in `inner`.
    pub fn new(inner: R) -> Self {
        let map = MapOfEntry::default();
        Self { inner, header: [0; BLOCK], header_left: 0, content_left: 0, ended: false, map }
    }

    /// Returns where the map of a sparse file is as soon as its entry was read.
    pub fn map(&self) -> MapOfEntry {
        Rc::clone(&self.map)
    }

    /// Reads the next header, or what there is of it.
    fn next_header(&mut self) -> io::Result<usize> {
        let mut length = 0;
        while length < BLOCK {
            match self.inner.read(&mut self.header[length..]) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if length < BLOCK {
            // No header: whoever unpacks it sees the end, or complains.
            self.header.copy_within(..length, BLOCK - length);
            self.ended = true;
        } else if self.header == [0; BLOCK] {
            self.ended = true;
        } else {
            let header = Header::from_byte_slice(&self.header);
            self.content_left = check(header)?;
            let sparse = header.entry_type() == EntryType::GNUSparse;
            let map = sparse.then(|| Map::read(header, &mut self.inner)).transpose();
            *self.map.borrow_mut() = map.map_err(told)?;
            if sparse {
                self.header = as_plain(header);
            }
        }
        Ok(length)
    }
}

/// What is wrong with a map is the guest's doing.
fn told(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::InvalidData => refused(&error.to_string()),
        _ => error,
    }
}

/// The header of a regular file with the data of a sparse one.
fn as_plain(header: &Header) -> [u8; BLOCK] {
    let mut header = header.clone();
    header.set_entry_type(EntryType::Regular);
    header.set_cksum();
    *header.as_bytes()
}

/// The bytes that follow a header before the next one.
fn check(header: &Header) -> io::Result<u64> {
    let kind = header.entry_type();
    let size = header.entry_size()?;
    if matches!(kind, EntryType::XHeader | EntryType::XGlobalHeader) {
        return Err(refused("an archive with extensions that were not asked for"));
    }
    if matches!(kind, EntryType::GNULongName | EntryType::GNULongLink) && size > NAME_LIMIT {
        return Err(refused("a name that is longer than any name"));
    }
    // More than fits the archive's own arithmetic is more than anyone can send.
    size.checked_next_multiple_of(BLOCK as u64)
        .filter(|length| *length <= 1 << 62)
        .ok_or_else(|| refused("a file of an impossible size"))
}

fn refused(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the guest sent {what}"))
}

impl<R: Read> Read for Screened<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        if self.header_left == 0 && self.content_left == 0 && !self.ended {
            self.header_left = self.next_header()?;
        }
        if self.header_left > 0 {
            let count = self.header_left.min(out.len());
            let from = BLOCK - self.header_left;
            out[..count].copy_from_slice(&self.header[from..from + count]);
            self.header_left -= count;
            return Ok(count);
        }
        if self.ended {
            return self.inner.read(out);
        }
        let room = usize::try_from(self.content_left).map_or(out.len(), |left| left.min(out.len()));
        let count = self.inner.read(&mut out[..room])?;
        if count == 0 {
            self.ended = true;
        }
        self.content_left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(kind: EntryType, size: u64) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn screened(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Screened::new(bytes).read_to_end(&mut out).map(|_| out)
    }

    #[test]
    fn what_no_agent_writes_is_refused_before_its_content_is_read() {
        for (kind, size) in [
            (EntryType::XHeader, 10),
            (EntryType::XGlobalHeader, 10),
            // Its map has no data.
            (EntryType::GNUSparse, 10),
            (EntryType::GNULongName, NAME_LIMIT + 1),
            (EntryType::GNULongLink, 1 << 40),
            (EntryType::Regular, u64::MAX),
            (EntryType::Directory, u64::MAX - 600),
        ] {
            // Also behind an entry that is fine.
            let archive =
                [header(EntryType::Regular, 3), vec![b'x'; BLOCK], header(kind, size)].concat();
            // No end: whoever read on would meet it.
            let mut reader = Screened::new(archive.as_slice().chain(io::repeat(b'x')));
            let mut out = Vec::new();
            let error = (&mut reader).take(1 << 20).read_to_end(&mut out).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{kind:?} {size}");
            assert_eq!(out.len(), 2 * BLOCK, "{kind:?} {size}");
        }
        let name = [header(EntryType::GNULongName, 200), vec![b'x'; BLOCK], vec![0; 1024]].concat();
        assert_eq!(screened(&name).unwrap(), name);
    }

    #[test]
    fn content_is_not_taken_for_a_header() {
        let inside = header(EntryType::XHeader, 10);
        let archive =
            [header(EntryType::Regular, BLOCK as u64), inside.clone(), vec![0; 1024], inside]
                .concat();
        // Behind the end, anything may follow.
        assert_eq!(screened(&archive).unwrap(), archive);
    }

    proptest! {
        #[test]
        fn what_passes_is_unchanged(bytes in proptest::collection::vec(any::<u8>(), 0..3000), piece in 1usize..700) {
            let mut reader = Screened::new(bytes.as_slice());
            let (mut out, mut buffer) = (Vec::new(), vec![0; piece]);
            let refused = loop {
                match reader.read(&mut buffer) {
                    Ok(0) => break false,
                    Ok(count) => out.extend_from_slice(&buffer[..count]),
                    Err(_) => break true,
                }
            };
            // The maps of sparse files, of type `S`, do not pass.
            if !bytes.chunks(BLOCK).any(|block| block.get(156) == Some(&b'S')) {
                prop_assert!(bytes.starts_with(&out));
                prop_assert!(refused || out.len() == bytes.len());
            }
        }
    }
}
