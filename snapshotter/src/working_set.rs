//! The working set of a golden image: recording it, and laying its chunks out in one piece.
//!
//! A commit stores chunks in the order of the stream. A session touches them in another one, so a
//! host that has nothing in memory would read its first session's chunks one by one from places all
//! over the packs. Once the order is known, the chunks are copied in that order into packs of their
//! own, which are read in a few large pieces.
//!
//! # What is not moved
//! A chunk has one place, whichever golden images use it. One that lies well in the layout of
//! another golden image stays there: who comes first keeps its order, and whoever shares chunks
//! with it reads a few pieces more. A working set that lies well already, but for chunks like these, is
//! left as it is. A damaged chunk stays where `verify` finds it.

use std::collections::{HashMap, HashSet};

use crate::chunk::CHUNK_SIZE;
use crate::pack::{Location, PackFile, PackWriter, PendingPacks, pack_file_name};
use crate::reserve;
use crate::schema::Table;
use crate::transaction::Transaction;
use crate::{
    ChunkId, ChunkTable, Damage, Error, GoldenName, Result, Store, StreamKind, WorkingSet,
};
use std::sync::atomic::Ordering;

/// Chunks that follow each other in a pack as in a working set are a piece worth keeping when they
/// are at least so many: at most 1 MiB of memory.
const PIECE_CHUNKS: usize = 16;

/// A working set is laid out when it has more pieces than one for so many chunks.
const CHUNKS_PER_PIECE: usize = 64;

/// A chunk and where it is.
pub(crate) type Placed = (ChunkId, Location);

/// Copies of chunks in packs that no metadata refers to yet.
#[derive(Default)]
struct Copies {
    pending: PendingPacks,
    chunks: Vec<Placed>,
}

impl Store {
    /// Records the working set of golden image `name`: indexes of chunks of its RAM stream, in the
    /// order in which a session touches them first. Replaces an earlier one. Lays its chunks out in
    /// that order, in packs of their own, unless they lie so already; packs that lost many chunks
    /// by it are compacted. Set and layout are there in one atomic step.
    ///
    /// When the disk is too full for the copies, the set is recorded and the chunks stay where they
    /// are.
    ///
    /// # Errors
    /// As [`Store::manifest`], with a key also as [`Store::sealed`]; [`Error::NoSuchChunk`] or
    /// [`Error::DuplicateInWorkingSet`] for a bad list; [`Error::Io`], [`Error::DiskFull`] and
    /// [`Error::Database`]. The store is then as before, see [`Store::commit`].
    pub fn set_working_set(&self, name: &str, chunks: Vec<u32>) -> Result<()> {
        let _writer = self.writer()?;
        let name = GoldenName::new(name)?;
        let tidied = self.commit_and_tidy(self.record_set(&name, chunks)?)?;
        tracing::debug!(golden = %name, ?tidied, "working set recorded");
        // The database may have grown.
        reserve::ensure(&self.dir);
        Ok(())
    }

    /// Makes the transaction that records the set. The copies that it refers to are on stable
    /// storage.
    pub(crate) fn record_set(
        &self,
        name: &GoldenName,
        chunks: Vec<u32>,
    ) -> Result<Transaction<'_>> {
        // A seal must not be put on what somebody altered.
        let mut manifest =
            if self.seal_key.is_some() { self.sealed(name)?.0 } else { self.db.manifest(name)? };
        let golden = || name.to_string();
        let ram = &manifest.streams.ram;
        if let Some(index) = chunks.iter().map(|i| u64::from(*i)).find(|i| *i >= ram.chunks) {
            let stream = StreamKind::Ram;
            return Err(Error::NoSuchChunk { golden: golden(), stream, index, chunks: ram.chunks });
        }
        let set = WorkingSet(chunks);
        if let Some(index) = set.first_duplicate() {
            return Err(Error::DuplicateInWorkingSet { golden: golden(), index });
        }
        manifest.working_set_chunks = set.0.len() as u64;

        let copies = match self.lay_out(name, &set) {
            Err(error @ Error::DiskFull { .. }) => {
                tracing::warn!(golden = %name, %error, "the working set was not laid out");
                Copies::default()
            }
            other => other?,
        };
        let mut transaction = Transaction::new(&self.db);
        let (encoded, set) = (manifest.encode(), set.encode());
        transaction.put(Table::WorkingSets, &**name, &set);
        transaction.put(Table::Manifests, &**name, &encoded);
        self.put_seal(&mut transaction, name, &encoded, &set);
        if !copies.chunks.is_empty() {
            let next_pack = self.next_pack.load(Ordering::Relaxed);
            transaction.add_packs(&copies.pending.packs, next_pack);
            for (id, location) in copies.chunks {
                transaction.locate(id, location)?;
            }
        }
        copies.pending.keep();
        Ok(transaction)
    }

    /// Copies the chunks of `set` that do not lie well into new packs, in its order.
    fn lay_out(&self, name: &str, set: &WorkingSet) -> Result<Copies> {
        let mut chunks = self.placed(name, set)?;
        let kept = self.laid_out_for_others(name)?;
        chunks.retain(|(id, _)| !kept.contains(id));
        if pieces(&chunks) <= 1 + chunks.len() / CHUNKS_PER_PIECE {
            return Ok(Copies::default());
        }
        let mut packs: HashMap<u64, Result<PackFile, Damage>> = HashMap::new();
        let mut writer = PackWriter::new(&self.packs, &self.next_pack);
        let mut copies = Vec::with_capacity(chunks.len());
        let mut buffer = vec![0; CHUNK_SIZE];
        for (id, old) in chunks {
            let pack =
                packs.entry(old.pack).or_insert_with(|| PackFile::open(&self.packs, old.pack));
            let stored = pack.as_ref().map_err(Clone::clone).and_then(|pack| {
                let raw = buffer.get_mut(..old.raw_len as usize).ok_or(Damage::NoLocation)?;
                pack.read_stored(&old, id, raw)
            });
            match stored {
                Ok(stored) => {
                    copies.push((id, writer.append(id, old.raw_len, old.codec, &stored)?));
                }
                Err(damage) => {
                    let pack = pack_file_name(old.pack);
                    tracing::warn!(chunk = %id, pack, %damage, "a chunk was not laid out");
                }
            }
        }
        Ok(Copies { pending: writer.finish()?, chunks: copies })
    }

    /// The stored chunks of `set` in its order, each once. Empty when the chunk table is damaged.
    pub(crate) fn placed(&self, name: &str, set: &WorkingSet) -> Result<Vec<Placed>> {
        let bytes = self.db.table_bytes(name, StreamKind::Ram)?.unwrap_or_default();
        let Ok(table) = ChunkTable::decode(&bytes) else {
            return Ok(Vec::new());
        };
        let mut seen = HashSet::new();
        let mut placed = Vec::with_capacity(set.0.len());
        for index in &set.0 {
            let Some(id) = table.chunks.get(*index as usize).copied().flatten() else {
                continue;
            };
            if seen.insert(id)
                && let Some(entry) = self.db.chunk(&id)?
            {
                placed.push((id, entry.location));
            }
        }
        Ok(placed)
    }

    /// The chunks that lie well for golden images other than `name`.
    pub(crate) fn laid_out_for_others(&self, name: &str) -> Result<HashSet<ChunkId>> {
        let mut kept = HashSet::new();
        for other in self.db.names()?.into_iter().filter(|other| other != name) {
            // Damage is for `verify` to tell; a damaged golden image needs no order.
            let set = self.db.working_set(&other).and_then(|set| self.placed(&other, &set));
            if let Ok(set) = set {
                keep_pieces(&set, &mut kept);
            }
        }
        Ok(kept)
    }
}

/// How many pieces the chunks are read in, each a run of records of one pack.
pub(crate) fn pieces(chunks: &[Placed]) -> usize {
    let follows = |pair: &&[Placed]| {
        let (before, after) = (&pair[0].1, &pair[1].1);
        (before.pack, before.end()) == (after.pack, after.offset)
    };
    chunks.len() - chunks.windows(2).filter(follows).count()
}

/// Adds the chunks to `kept` that lie in pieces of [`PIECE_CHUNKS`] or more. Chunks of other packs
/// in between do not end a piece.
fn keep_pieces(chunks: &[Placed], kept: &mut HashSet<ChunkId>) {
    let mut by_pack: HashMap<u64, Vec<Placed>> = HashMap::new();
    for placed in chunks {
        by_pack.entry(placed.1.pack).or_default().push(*placed);
    }
    for chunks in by_pack.values() {
        for piece in chunks.chunk_by(|before, after| before.1.end() == after.1.offset) {
            if piece.len() >= PIECE_CHUNKS {
                kept.extend(piece.iter().map(|(id, _)| *id));
            }
        }
    }
}
