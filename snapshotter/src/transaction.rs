//! A transaction: one atomic change of the metadata, with the reference counts that follow from it.

use crate::db::{Batch, ChunkEntry, Db, PackEntry, seal_key, table_key};
use crate::pack::{Location, PackSummary};
use crate::schema::Table;
use crate::{ChunkId, ChunkTable, Result, StreamKind};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A chunk as it is in the database and as it will be.
struct Touched {
    before: Option<ChunkEntry>,
    /// `None` until the chunk has a location.
    location: Option<Location>,
    references: u64,
}

/// Collects changes; [`Transaction::commit`] writes them in one step.
pub(crate) struct Transaction<'a> {
    db: &'a Db,
    batch: Batch,
    chunks: HashMap<ChunkId, Touched>,
    packs: BTreeMap<u64, PackEntry>,
}

/// What a committed transaction did to the packs.
#[derive(Debug, Default)]
pub(crate) struct PackChanges {
    /// Packs without a live chunk, with their file lengths. Their files can be deleted.
    pub dead: Vec<(u64, u64)>,
    /// Packs that lost live chunks and still have some.
    pub thinned: Vec<(u64, PackEntry)>,
}

impl<'a> Transaction<'a> {
    pub fn new(db: &'a Db) -> Self {
        Self { db, batch: Batch::default(), chunks: HashMap::new(), packs: BTreeMap::new() }
    }

    pub fn put(&mut self, table: Table, key: impl AsRef<[u8]>, value: &[u8]) {
        self.batch.put(table, key, value);
    }

    pub fn delete(&mut self, table: Table, key: impl AsRef<[u8]>) {
        self.batch.delete(table, key);
    }

    /// Adds packs; none of their chunks count as live until they get a location in them.
    pub fn add_packs(&mut self, packs: &[PackSummary], next_pack: u64) {
        for p in packs {
            let entry =
                PackEntry { file_len: p.file_len, chunks: p.chunks, live_chunks: 0, live_bytes: 0 };
            self.packs.insert(p.id, entry);
        }
        self.batch.put_next_pack(next_pack);
    }

    /// Gives a chunk a location: its first one, or a better one.
    pub fn locate(&mut self, id: ChunkId, location: Location) -> Result<()> {
        self.touch(id)?.location = Some(location);
        Ok(())
    }

    /// Counts one more golden image that uses the chunk.
    pub fn reference(&mut self, id: ChunkId) -> Result<()> {
        self.touch(id)?.references += 1;
        Ok(())
    }

    /// Deletes everything about golden image `name` and drops its references.
    pub fn drop_golden(&mut self, name: &str) -> Result<()> {
        match self.db.tables(name)? {
            Ok(tables) => {
                for id in distinct_ids(&tables) {
                    let db = self.db;
                    let chunk = self.touch(id)?;
                    chunk.references = chunk.references.checked_sub(1).ok_or_else(|| {
                        db.damaged("a chunk entry", format!("the reference count of {id}"))
                    })?;
                }
            }
            Err(error) => {
                tracing::warn!(golden = name, %error, "counting all references again");
                self.recount_without(name)?;
            }
        }
        for kind in StreamKind::ALL {
            self.delete(Table::ChunkTables, table_key(name, kind));
        }
        self.delete(Table::WorkingSets, name);
        self.delete(Table::Meta, seal_key(name));
        self.delete(Table::Manifests, name);
        Ok(())
    }

    /// Counts the references of all golden images but `name`, whose chunk table cannot be read. A
    /// golden image that is damaged itself has none: it cannot be restored any more.
    fn recount_without(&mut self, name: &str) -> Result<()> {
        let mut counts: HashMap<ChunkId, u64> = HashMap::new();
        for other in self.db.names()?.into_iter().filter(|n| n != name) {
            match self.db.tables(&other)? {
                Ok(tables) => distinct_ids(&tables)
                    .into_iter()
                    .for_each(|id| *counts.entry(id).or_default() += 1),
                Err(error) => tracing::warn!(golden = other, %error, "its chunks are given up"),
            }
        }
        let db = self.db;
        db.for_each_chunk(|id, before| {
            let counted = counts.get(&id).copied().unwrap_or(0);
            // What this transaction added so far stays on top.
            let touched = self.chunks.entry(id).or_insert_with(|| Touched::of(Some(before)));
            touched.references = touched.references - before.references + counted;
            Ok(())
        })
    }

    /// Writes everything. After an error the state on disk may be the old or the new one until the
    /// store is opened again, so no file either refers to may be deleted.
    pub fn commit(mut self) -> Result<PackChanges> {
        let mut thinned = Vec::new();
        for (id, chunk) in std::mem::take(&mut self.chunks) {
            let after = match chunk.location {
                Some(location) if chunk.references > 0 => {
                    Some(ChunkEntry { location, references: chunk.references })
                }
                _ => None,
            };
            if after == chunk.before {
                continue;
            }
            let old = chunk.before.map(|c| c.location);
            let new = after.map(|c| c.location);
            if old != new {
                if let Some(location) = old {
                    let db = self.db;
                    let pack = self.pack(location.pack)?;
                    let bytes = pack.live_bytes.checked_sub(location.record_len());
                    match (pack.live_chunks.checked_sub(1), bytes) {
                        (Some(chunks), Some(bytes)) => {
                            (pack.live_chunks, pack.live_bytes) = (chunks, bytes);
                        }
                        _ => {
                            return Err(db.damaged(
                                "a pack entry",
                                format!("the counts of pack {}", location.pack),
                            ));
                        }
                    }
                    thinned.push(location.pack);
                }
                if let Some(location) = new {
                    let pack = self.pack(location.pack)?;
                    pack.live_chunks += 1;
                    pack.live_bytes += location.record_len();
                }
            }
            match after {
                Some(entry) => self.batch.put_chunk(&id, &entry),
                None if chunk.before.is_some() => self.batch.delete(Table::Chunks, id.as_bytes()),
                None => {}
            }
        }
        let mut changes = PackChanges::default();
        for (id, entry) in &self.packs {
            if entry.live_chunks == 0 {
                self.batch.delete(Table::Packs, id.to_be_bytes());
                changes.dead.push((*id, entry.file_len));
            } else {
                self.batch.put_pack(*id, entry);
            }
        }
        thinned.sort_unstable();
        thinned.dedup();
        changes.thinned = thinned
            .into_iter()
            .map(|id| (id, self.packs[&id]))
            .filter(|(_, p)| p.live_chunks > 0)
            .collect();
        self.db.write(&self.batch)?;
        Ok(changes)
    }

    fn touch(&mut self, id: ChunkId) -> Result<&mut Touched> {
        use std::collections::hash_map::Entry;
        Ok(match self.chunks.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Touched::of(self.db.chunk(&id)?)),
        })
    }

    fn pack(&mut self, id: u64) -> Result<&mut PackEntry> {
        use std::collections::btree_map::Entry;
        Ok(match self.packs.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let pack = self.db.pack(id)?;
                entry.insert(pack.ok_or_else(|| {
                    self.db.damaged("the pack entries", format!("pack {id} is missing"))
                })?)
            }
        })
    }
}

impl Touched {
    fn of(before: Option<ChunkEntry>) -> Self {
        Self {
            before,
            location: before.map(|c| c.location),
            references: before.map_or(0, |c| c.references),
        }
    }
}

/// The ids in `tables`, each once.
pub(crate) fn distinct_ids(tables: &[ChunkTable]) -> HashSet<ChunkId> {
    tables.iter().flat_map(ChunkTable::ids).copied().collect()
}
