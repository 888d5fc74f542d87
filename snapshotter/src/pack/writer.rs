//! Writing packs: under a temporary name first, durable before they get their own.

use super::format::{Codec, Location, PACK_HEADER_LEN, PackHeader, RecordHeader, pack_file_name};
use crate::fsutil::{io_error, sync_dir};
use crate::{ChunkId, Result};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use tempfile::NamedTempFile;

/// How names of unfinished packs begin. [`Store::open`](crate::Store::open) deletes what a crash
/// left of them.
pub(crate) const TEMP_PREFIX: &str = ".unfinished-";

/// A pack is closed and the next one begun at this length: compaction rewrites at most this much at
/// once.
const PACK_TARGET_LEN: u64 = 256 << 20;

/// A pack that has its name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackSummary {
    pub id: u64,
    pub file_len: u64,
    pub chunks: u64,
}

/// Packs that have their names, but that no committed metadata refers to yet. Deletes them when
/// dropped.
#[derive(Debug, Default)]
pub(crate) struct PendingPacks {
    pub packs: Vec<PackSummary>,
    paths: Vec<PathBuf>,
}

impl PendingPacks {
    /// Keeps the packs; call it before metadata that refers to them is written. If the write then
    /// fails, whether it reached the disk is unknown, so the packs have to stay until the next
    /// [`Store::open`](crate::Store::open) knows.
    pub fn keep(mut self) {
        self.paths.clear();
    }
}

impl Drop for PendingPacks {
    fn drop(&mut self) {
        for path in &self.paths {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "an unused pack could not be deleted; the next start will");
            }
        }
    }
}

struct Current {
    id: u64,
    out: BufWriter<NamedTempFile>,
    len: u64,
    chunks: u64,
}

/// Appends chunk records to as many packs as are needed.
pub(crate) struct PackWriter<'a> {
    dir: &'a Path,
    next_id: &'a AtomicU64,
    current: Option<Current>,
    pending: PendingPacks,
}

impl<'a> PackWriter<'a> {
    /// Writes into `dir`, taking pack ids from `next_id`.
    pub fn new(dir: &'a Path, next_id: &'a AtomicU64) -> Self {
        Self { dir, next_id, current: None, pending: PendingPacks::default() }
    }

    /// Appends one record.
    pub fn append(
        &mut self,
        id: ChunkId,
        raw_len: u32,
        codec: Codec,
        stored: &[u8],
    ) -> Result<Location> {
        let io = |e| io_error("write a pack in", self.dir, e);
        let stored_len = u32::try_from(stored.len()).expect("no more than CHUNK_SIZE");
        let header = RecordHeader { id, raw_len, stored_len, codec };
        if self.current.as_ref().is_some_and(|c| c.len + header.record_len() > PACK_TARGET_LEN) {
            self.seal()?;
        }
        let current = match &mut self.current {
            Some(current) => current,
            none => {
                let pack = self.next_id.fetch_add(1, Ordering::Relaxed);
                let file = tempfile::Builder::new()
                    .prefix(TEMP_PREFIX)
                    .tempfile_in(self.dir)
                    .map_err(io)?;
                let mut out = BufWriter::with_capacity(1 << 20, file);
                out.write_all(&PackHeader { pack }.encode()).map_err(io)?;
                none.insert(Current { id: pack, out, len: PACK_HEADER_LEN as u64, chunks: 0 })
            }
        };
        current
            .out
            .write_all(&header.encode())
            .and_then(|()| current.out.write_all(stored))
            .map_err(io)?;
        let stored_len = header.stored_len;
        let location =
            Location { pack: current.id, offset: current.len, raw_len, stored_len, codec };
        current.len += header.record_len();
        current.chunks += 1;
        Ok(location)
    }

    /// Makes all packs durable under their own names.
    pub fn finish(mut self) -> Result<PendingPacks> {
        self.seal()?;
        if !self.pending.packs.is_empty() {
            sync_dir(self.dir)?;
        }
        Ok(self.pending)
    }

    fn seal(&mut self) -> Result<()> {
        let Some(Current { id, out, len, chunks }) = self.current.take() else {
            return Ok(());
        };
        let path = self.dir.join(pack_file_name(id));
        let file =
            out.into_inner().map_err(|e| io_error("write a pack in", self.dir, e.into_error()))?;
        file.as_file().sync_all().map_err(|e| io_error("sync a pack in", self.dir, e))?;
        file.persist_noclobber(&path).map_err(|e| io_error("name the pack", &path, e.error))?;
        self.pending.packs.push(PackSummary { id, file_len: len, chunks });
        self.pending.paths.push(path);
        Ok(())
    }
}
