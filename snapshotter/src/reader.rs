//! Reading a stream back, every chunk verified.

use crate::chunk::chunk_len;
use crate::db::Db;
use crate::fsutil::io_error;
use crate::pack::{Location, PackFile, pack_file_name};
use crate::{
    BadChunk, CHUNK_SIZE, ChunkId, ChunkTable, Damage, Digest, Error, Manifest, Progress,
    ReadTimes, Result, Store, StreamKind,
};
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Tries of a read-only store to look a stream up while a writer replaces or compacts it.
const TRIES: u32 = 5;

/// Reader of one stream of a golden image. `Send + Sync`. All locations are in memory and all packs
/// are open, so it needs neither the store nor the database any more, and works on when the golden
/// image is replaced or removed.
#[derive(Debug)]
pub struct StreamReader {
    golden: String,
    kind: StreamKind,
    table: ChunkTable,
    /// Per chunk: its place in `locations`, or [`NOWHERE`] for zeros.
    slots: Vec<u32>,
    locations: Vec<Slot>,
    packs: Vec<Result<PackFile, (u64, Damage)>>,
}

const NOWHERE: u32 = u32::MAX;

/// Where a chunk is, its pack as a place in `packs`; `None` when the store does not know.
#[derive(Debug)]
struct Slot(Option<(u32, Location)>);

impl Store {
    /// Opens one stream of a golden image for reading.
    ///
    /// # Errors
    /// [`Error::Stale`] when the golden image is not the one of `manifest` any more,
    /// [`Error::DamagedGolden`], [`Error::BadChunk`] when a chunk has no location or a pack is
    /// missing or no pack, [`Error::Database`].
    pub fn reader(&self, manifest: &Manifest, kind: StreamKind) -> Result<StreamReader> {
        self.reader_unchecked(manifest, kind, |reader| match reader.first_unreachable() {
            Some(bad) => Err(Error::BadChunk(Box::new(bad))),
            None => Ok(()),
        })
    }

    /// Like [`Store::reader`], with the caller's own `check` of the result.
    pub(crate) fn reader_unchecked(
        &self,
        manifest: &Manifest,
        kind: StreamKind,
        check: impl Fn(&StreamReader) -> Result<()>,
    ) -> Result<StreamReader> {
        let mut tries = 1;
        loop {
            let result = {
                let _view = self.view_shared();
                load(&self.db, &self.packs, manifest, kind)
                    .and_then(|reader| check(&reader).map(|()| reader))
            };
            match result {
                // The view of a read-only store may be older than the packs it finds.
                Err(Error::Stale { .. } | Error::BadChunk(_))
                    if self.db.is_read_only() && tries < TRIES =>
                {
                    self.refresh()?;
                    tries += 1;
                }
                other => return other,
            }
        }
    }
}

fn load(db: &Db, packs: &Path, manifest: &Manifest, kind: StreamKind) -> Result<StreamReader> {
    let golden = manifest.name.to_string();
    let expected = manifest.stream(kind);
    let bytes = match db.table_bytes(&golden, kind)? {
        Some(bytes) if Digest::of(&bytes) == expected.table_blake3 => bytes,
        other => {
            // Not the table of this manifest: damage, when the manifest is still the current one.
            let current = db
                .manifest(&golden)
                .is_ok_and(|m| m.stream(kind).table_blake3 == expected.table_blake3);
            if !current {
                return Err(Error::Stale { name: golden });
            }
            let what = "a chunk table";
            let cause = match other.as_deref().map(ChunkTable::decode) {
                None => crate::FormatError::Truncated { what, need: 1, have: 0 },
                Some(Err(e)) => e,
                Some(Ok(_)) => crate::FormatError::Checksum { what },
            };
            return Err(Error::DamagedGolden { golden, cause });
        }
    };
    let table = ChunkTable::decode(&bytes)
        .map_err(|cause| Error::DamagedGolden { golden: golden.clone(), cause })?;

    let mut slots = Vec::with_capacity(table.chunks.len());
    let mut locations = Vec::new();
    let mut slot_of: HashMap<ChunkId, u32> = HashMap::new();
    let mut opened: Vec<Result<PackFile, (u64, Damage)>> = Vec::new();
    let mut place_of: HashMap<u64, u32> = HashMap::new();
    for chunk in &table.chunks {
        let Some(id) = chunk else {
            slots.push(NOWHERE);
            continue;
        };
        if let Some(slot) = slot_of.get(id) {
            slots.push(*slot);
            continue;
        }
        let location = db.chunk(id)?.map(|entry| {
            let pack = entry.location.pack;
            let place = *place_of.entry(pack).or_insert_with(|| {
                opened.push(PackFile::open(packs, pack).map_err(|damage| (pack, damage)));
                u32::try_from(opened.len() - 1).expect("no more packs than chunks")
            });
            (place, entry.location)
        });
        let slot = u32::try_from(locations.len()).expect("fewer chunks than a slot can number");
        locations.push(Slot(location));
        slot_of.insert(*id, slot);
        slots.push(slot);
    }
    Ok(StreamReader { golden, kind, table, slots, locations, packs: opened })
}

impl StreamReader {
    /// Returns the name of the golden image.
    pub fn golden(&self) -> &str {
        &self.golden
    }

    /// Returns the kind of the stream.
    pub fn kind(&self) -> StreamKind {
        self.kind
    }

    /// Returns the length of the stream in bytes.
    pub fn len(&self) -> u64 {
        self.table.len
    }

    /// Returns whether the stream has no bytes.
    pub fn is_empty(&self) -> bool {
        self.table.len == 0
    }

    /// Returns the number of bytes of every chunk but the last.
    pub fn chunk_size(&self) -> usize {
        CHUNK_SIZE
    }

    /// Returns the number of chunks.
    pub fn chunk_count(&self) -> usize {
        self.slots.len()
    }

    /// Returns the number of bytes of chunk `index`; 0 beyond the end.
    pub fn chunk_len(&self, index: usize) -> usize {
        chunk_len(self.table.len, index as u64)
    }

    /// Returns whether chunk `index` is zeros and thus not stored. False beyond the end.
    pub fn is_zero(&self, index: usize) -> bool {
        self.slots.get(index) == Some(&NOWHERE)
    }

    /// Returns the id of chunk `index`; `None` for zeros and beyond the end.
    pub fn chunk_id(&self, index: usize) -> Option<ChunkId> {
        self.table.chunks.get(index).copied().flatten()
    }

    /// Reads chunk `index` into the first [`chunk_len`](Self::chunk_len) bytes of `out` and
    /// verifies it against its id. Callable from any number of threads at once.
    ///
    /// # Errors
    /// [`Error::BadChunk`] when it cannot be read or is not what was stored, `out` may then hold
    /// unverified bytes; [`Error::NoSuchChunk`]; [`Error::ShortBuffer`].
    pub fn read_chunk(&self, index: usize, out: &mut [u8]) -> Result<ReadTimes> {
        let Some(slot) = self.slots.get(index) else {
            let (golden, chunks) = (self.golden.clone(), self.slots.len() as u64);
            return Err(Error::NoSuchChunk {
                golden,
                stream: self.kind,
                index: index as u64,
                chunks,
            });
        };
        let (need, have) = (self.chunk_len(index), out.len());
        let Some(out) = out.get_mut(..need) else {
            return Err(Error::ShortBuffer { need, have });
        };
        match self.table.chunks[index] {
            None => {
                out.fill(0);
                Ok(ReadTimes::default())
            }
            Some(id) => {
                let Slot(location) = &self.locations[*slot as usize];
                self.read_at(location.as_ref(), id, out)
                    .map_err(|damage| Error::BadChunk(Box::new(self.bad(index, id, damage))))
            }
        }
    }

    fn read_at(
        &self,
        location: Option<&(u32, Location)>,
        id: ChunkId,
        out: &mut [u8],
    ) -> Result<ReadTimes, Damage> {
        let (place, location) = location.ok_or(Damage::NoLocation)?;
        let pack = self.packs[*place as usize].as_ref().map_err(|(_, damage)| damage.clone())?;
        pack.read(location, id, out)
    }

    /// Where the record of chunk `index` is: its pack as a place, for [`StreamReader::pack`], and
    /// the bytes. `None` when none is stored or known.
    pub(crate) fn record(&self, index: usize) -> Option<(u32, Range<u64>)> {
        let Slot(location) = self.locations.get(*self.slots.get(index)? as usize)?;
        location.as_ref().map(|(place, location)| (*place, location.offset..location.end()))
    }

    /// The pack at `place`, unless it could not be opened.
    pub(crate) fn pack(&self, place: u32) -> Option<&PackFile> {
        self.packs.get(place as usize)?.as_ref().ok()
    }

    /// Writes the whole stream to `file`, which is truncated first; zero chunks become holes.
    ///
    /// # Errors
    /// As [`read_chunk`](Self::read_chunk), and [`Error::DiskFull`] or [`Error::Io`] for the file,
    /// which is then incomplete.
    pub fn copy_to(&self, file: &File, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let target = format!("the copy of the {} of {}", self.kind, self.golden);
        let io = |e| io_error("write", Path::new(&target), e);
        file.set_len(0).and_then(|()| file.set_len(self.len())).map_err(io)?;
        let stored = (0..self.chunk_count()).filter(|i| !self.is_zero(*i));
        let total_bytes = stored.clone().map(|i| self.chunk_len(i) as u64).sum();
        let mut done_bytes = 0;
        let mut buffer = vec![0; CHUNK_SIZE];
        for index in stored {
            let chunk = &mut buffer[..self.chunk_len(index)];
            self.read_chunk(index, chunk)?;
            file.write_all_at(chunk, index as u64 * CHUNK_SIZE as u64).map_err(io)?;
            done_bytes += chunk.len() as u64;
            progress(Progress { done_bytes, total_bytes });
        }
        Ok(())
    }

    /// The first chunk without a location or whose pack could not be opened.
    fn first_unreachable(&self) -> Option<BadChunk> {
        if self.packs.iter().all(Result::is_ok) && self.locations.iter().all(|l| l.0.is_some()) {
            return None;
        }
        (0..self.chunk_count()).find_map(|index| {
            let id = self.chunk_id(index)?;
            let damage = match &self.locations[self.slots[index] as usize].0 {
                None => Damage::NoLocation,
                Some((place, _)) => self.packs[*place as usize].as_ref().err()?.1.clone(),
            };
            Some(self.bad(index, id, damage))
        })
    }

    fn bad(&self, index: usize, id: ChunkId, damage: Damage) -> BadChunk {
        let location = self.locations[self.slots[index] as usize].0.as_ref();
        BadChunk {
            golden: self.golden.clone(),
            stream: self.kind,
            index: index as u64,
            id,
            pack: location.map(|(_, l)| pack_file_name(l.pack)),
            offset: location.map_or(0, |(_, l)| l.offset),
            damage,
        }
    }

    /// Whether pack `n` could not be opened because it is gone; a newer view of the store may know
    /// where it went.
    pub(crate) fn misses_packs(&self) -> Option<BadChunk> {
        self.first_unreachable()
            .filter(|bad| matches!(bad.damage, Damage::PackMissing | Damage::NoLocation))
    }
}
