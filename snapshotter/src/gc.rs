//! Removing golden images, deleting packs nobody needs, and compacting packs that are mostly dead.

use crate::db::PackEntry;
use crate::fsutil::{io_error, remove_file};
use crate::pack::{PackFile, PackWriter, Walk, pack_file_name};
use crate::reserve;
use crate::transaction::{PackChanges, Transaction};
use crate::{CHUNK_SIZE, Error, GoldenName, Result, Store};
use std::io::{self, BufReader};
use std::sync::atomic::Ordering;

/// A pack with fewer dead bytes is not compacted: the space is not worth the copying.
const COMPACT_DEAD_BYTES: u64 = 1 << 20;

/// Which share of a pack has to be dead so that it is compacted.
#[derive(Clone, Copy)]
enum Threshold {
    /// More is dead than live: a removal may be the answer to a full disk, and copies little.
    Half,
    /// At least a fifth. At most four bytes are copied for one that is won.
    Fifth,
}

impl Threshold {
    fn is_met(self, pack: &PackEntry) -> bool {
        let dead = dead_bytes(pack);
        let share = match self {
            Self::Half => dead > pack.live_bytes,
            Self::Fifth => dead.saturating_mul(4) >= pack.live_bytes,
        };
        share && dead >= COMPACT_DEAD_BYTES
    }
}

fn dead_bytes(pack: &PackEntry) -> u64 {
    pack.file_len.saturating_sub(pack.live_bytes)
}

/// Result of removing a golden image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Bytes given back to the file system. Less than the image's stored bytes when other images
    /// share its chunks.
    pub freed_bytes: u64,
    /// Packs deleted because none of their chunks was needed.
    pub packs_deleted: u64,
    /// Packs whose remaining chunks were moved to a new pack.
    pub packs_compacted: u64,
    /// Bytes of unneeded chunks left in packs, because too few, or because a pack could not be
    /// compacted. They go with the golden images that use the rest of those packs.
    pub dead_bytes_left: u64,
}

impl Store {
    /// Removes golden image `name`, in one atomic step, then frees the space that only it used.
    /// Chunks shared with other golden images stay. Works for a damaged golden image too. Sessions
    /// and readers that have its packs open keep them.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::UnknownGolden`], [`Error::ReadOnly`], [`Error::DiskFull`],
    /// [`Error::Database`]. Failing to free space once the golden image is gone is not an error;
    /// the next [`Store::open`] frees it.
    pub fn remove(&self, name: &str) -> Result<Removed> {
        let name = GoldenName::new(name)?;
        let _writer = self.writer()?;
        let names = self.db.names()?;
        if !names.iter().any(|n| *n == *name) {
            return Err(Error::UnknownGolden { name: name.to_string(), known: names });
        }
        let mut transaction = Transaction::new(&self.db);
        transaction.drop_golden(&name)?;
        reserve::release(&self.dir);
        let removed = self.commit_and_collect(transaction);
        reserve::ensure(&self.dir);
        removed
    }

    /// Commits, then deletes and compacts the packs that became dead by it.
    pub(crate) fn commit_and_collect(&self, transaction: Transaction<'_>) -> Result<Removed> {
        let (changes, mut removed) = self.commit_and_delete(transaction)?;
        self.collect(changes.thinned, Threshold::Half, &mut removed);
        Ok(removed)
    }

    /// Commits what moves chunks, then compacts all packs of which a fifth is dead: those that the
    /// chunks were in, and those that an earlier move was interrupted at.
    pub(crate) fn commit_and_tidy(&self, transaction: Transaction<'_>) -> Result<Removed> {
        let (_, mut removed) = self.commit_and_delete(transaction)?;
        match self.db.packs() {
            Ok(packs) => self.collect(packs, Threshold::Fifth, &mut removed),
            Err(error) => tracing::warn!(%error, "no pack was compacted"),
        }
        Ok(removed)
    }

    fn collect(&self, packs: Vec<(u64, PackEntry)>, threshold: Threshold, removed: &mut Removed) {
        for (id, pack) in packs {
            if !threshold.is_met(&pack) {
                removed.dead_bytes_left += dead_bytes(&pack);
                continue;
            }
            match self.compact(id, &pack) {
                Ok(compacted) => {
                    removed.packs_compacted += 1;
                    removed.freed_bytes += compacted;
                }
                Err(error) => {
                    tracing::warn!(pack = pack_file_name(id), %error, "a pack was not compacted");
                    removed.dead_bytes_left += dead_bytes(&pack);
                }
            }
        }
    }

    /// Commits, then deletes the packs that became dead by it.
    pub(crate) fn commit_and_delete(
        &self,
        transaction: Transaction<'_>,
    ) -> Result<(PackChanges, Removed)> {
        let _view = self.view_exclusive();
        let changes = transaction.commit()?;
        let mut removed = Removed::default();
        for (id, _) in &changes.dead {
            let path = self.packs.join(pack_file_name(*id));
            match remove_file(&path) {
                Ok(bytes) => {
                    removed.packs_deleted += 1;
                    removed.freed_bytes += bytes;
                }
                Err(error) => {
                    tracing::warn!(%error, "a dead pack was not deleted; the next start will");
                }
            }
        }
        Ok((changes, removed))
    }

    /// Moves the live chunks of pack `id` to a new pack and deletes the old one. Returns the bytes
    /// won. The chunks stay in one pack and in their order, so that a working set that was laid out
    /// in it stays so. Does nothing unless every live chunk is intact: what is damaged has to stay
    /// where `verify` finds it.
    fn compact(&self, id: u64, entry: &PackEntry) -> Result<u64> {
        let path = self.packs.join(pack_file_name(id));
        let io = |e| io_error("compact", &path, e);
        let damaged = |what: String| io(io::Error::new(io::ErrorKind::InvalidData, what));
        let pack = PackFile::open(&self.packs, id).map_err(|e| damaged(e.to_string()))?;
        let (_, walk) =
            Walk::new(BufReader::with_capacity(1 << 20, pack.reopen(&self.packs).map_err(io)?))
                .map_err(io)?;

        let mut writer = PackWriter::new(&self.packs, &self.next_pack);
        let mut moved = Vec::new();
        let mut buffer = vec![0; CHUNK_SIZE];
        for record in walk {
            let record = record.map_err(io)?;
            let header = record.header;
            let Some(chunk) = self.db.chunk(&header.id)? else {
                continue;
            };
            let old = chunk.location;
            if (old.pack, old.offset) != (id, record.offset) {
                continue;
            }
            let raw = &mut buffer[..header.raw_len as usize];
            pack.read(&old, header.id, raw)
                .map_err(|e| damaged(format!("chunk {}: {e}", header.id.short())))?;
            moved.push((
                header.id,
                writer.append(header.id, header.raw_len, header.codec, &record.stored)?,
            ));
        }
        if moved.len() as u64 != entry.live_chunks {
            return Err(damaged(format!("{} of {} chunks found", moved.len(), entry.live_chunks)));
        }
        let pending = writer.finish()?;
        let new_bytes: u64 = pending.packs.iter().map(|p| p.file_len).sum();
        let mut transaction = Transaction::new(&self.db);
        transaction.add_packs(&pending.packs, self.next_pack.load(Ordering::Relaxed));
        for (chunk, location) in moved {
            transaction.locate(chunk, location)?;
        }
        pending.keep();
        let (_, removed) = self.commit_and_delete(transaction)?;
        Ok(removed.freed_bytes.saturating_sub(new_bytes))
    }
}
