//! Verified reads from one pack file.

use super::format::{
    Codec, Location, PACK_HEADER_LEN, PackHeader, RECORD_HEADER_LEN, RecordHeader, pack_file_name,
};
use crate::{CHUNK_SIZE, ChunkId, Damage, FormatError, ReadTimes};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;
use zstd::bulk::Decompressor;

/// Per-thread state of reads: a zstd context is 100 KB and costs more to make than a chunk costs to
/// expand.
struct Scratch {
    record: Vec<u8>,
    zstd: Option<Decompressor<'static>>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { record: Vec::new(), zstd: None }) };
}

/// An open pack. Stays readable after its file was deleted.
#[derive(Debug)]
pub(crate) struct PackFile {
    pub id: u64,
    file: File,
}

impl PackFile {
    /// Opens pack `id` in directory `packs` and checks its header.
    pub fn open(packs: &Path, id: u64) -> Result<Self, Damage> {
        let file = match File::open(packs.join(pack_file_name(id))) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Damage::PackMissing),
            Err(e) => return Err(Damage::Io(e.to_string())),
        };
        let mut head = [0; PACK_HEADER_LEN];
        read_exact_at(&file, &mut head, 0)?;
        let header = PackHeader::parse(&head).map_err(Damage::PackHeader)?;
        if header.pack != id {
            let reason = format!("it says pack {}, its file name {id}", header.pack);
            return Err(Damage::PackHeader(FormatError::Content {
                what: "the pack header",
                reason,
            }));
        }
        Ok(Self { id, file })
    }

    /// Returns the file name of the pack.
    pub fn name(&self) -> String {
        pack_file_name(self.id)
    }

    /// Opens a handle for a sequential walk with its own position.
    pub fn reopen(&self, packs: &Path) -> io::Result<File> {
        File::open(packs.join(self.name()))
    }

    /// Asks the kernel to read these bytes into its page cache, and does not wait. It is advice: what
    /// comes of it is not told.
    pub fn read_ahead(&self, start: u64, len: u64) {
        if let (Ok(start), Ok(len)) = (i64::try_from(start), i64::try_from(len)) {
            let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
            let _ = posix_fadvise(&self.file, start, len, advice);
        }
    }

    /// Reads chunk `id` at `location` into `out`, which must have exactly its uncompressed length,
    /// and verifies it. On an error `out` may hold unverified bytes.
    pub fn read(
        &self,
        location: &Location,
        id: ChunkId,
        out: &mut [u8],
    ) -> Result<ReadTimes, Damage> {
        debug_assert_eq!(out.len(), location.raw_len as usize);
        let expected = location.header(id);
        // Locations come from the database; one that no record can have must not make us allocate
        // by it.
        if location.stored_len as usize > CHUNK_SIZE || location.raw_len as usize != out.len() {
            return Err(Damage::RecordHeader(
                "its location in the metadata is not possible".to_owned(),
            ));
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let start = Instant::now();
            scratch.record.resize(RECORD_HEADER_LEN + location.stored_len as usize, 0);
            read_exact_at(&self.file, &mut scratch.record, location.offset)?;
            let (head, stored) = scratch.record.split_at(RECORD_HEADER_LEN);
            match RecordHeader::parse(head) {
                Ok(found) if found == expected => {}
                Ok(_) => {
                    return Err(Damage::RecordHeader("it describes another chunk".to_owned()));
                }
                Err(e) => return Err(Damage::RecordHeader(e.to_string())),
            }
            let read_done = Instant::now();
            match location.codec {
                Codec::Raw if stored.len() == out.len() => out.copy_from_slice(stored),
                Codec::Raw => return Err(Damage::RecordHeader("its lengths differ".to_owned())),
                Codec::Zstd => {
                    let zstd = match &mut scratch.zstd {
                        Some(zstd) => zstd,
                        none => none.insert(
                            Decompressor::new().map_err(|e| Damage::Decompress(e.to_string()))?,
                        ),
                    };
                    let len = zstd
                        .decompress_to_buffer(stored, out)
                        .map_err(|e| Damage::Decompress(e.to_string()))?;
                    if len != out.len() {
                        return Err(Damage::Decompress(format!(
                            "{len} bytes instead of {}",
                            out.len()
                        )));
                    }
                }
            }
            let decompress_done = Instant::now();
            let found = ChunkId::of(out);
            if found != id {
                return Err(Damage::Content { found });
            }
            Ok(ReadTimes {
                read: read_done - start,
                decompress: decompress_done - read_done,
                hash: decompress_done.elapsed(),
            })
        })
    }

    /// Reads and verifies as [`PackFile::read`] does, and returns the bytes as they are stored.
    pub fn read_stored(
        &self,
        location: &Location,
        id: ChunkId,
        out: &mut [u8],
    ) -> Result<Vec<u8>, Damage> {
        self.read(location, id, out)?;
        // A read that succeeded leaves its record there.
        Ok(SCRATCH.with_borrow(|scratch| scratch.record[RECORD_HEADER_LEN..].to_vec()))
    }
}

fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> Result<(), Damage> {
    file.read_exact_at(out, offset).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => Damage::Truncated {
            need: offset.saturating_add(out.len() as u64),
            have: file.metadata().map_or(0, |m| m.len()),
        },
        _ => Damage::Io(e.to_string()),
    })
}
