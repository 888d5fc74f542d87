//! Turning a stream into chunks: find the data, read, hash, look up, compress on two threads; write
//! on the caller's.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use parking_lot::Mutex;
use zstd::bulk::Compressor;

use crate::chunk::{chunk_len, is_zero};
use crate::db::Db;
use crate::extents::chunk_runs;
use crate::fsutil::io_error;
use crate::pack::{Codec, Location, PackFile, PackWriter, PendingPacks, ZSTD_LEVEL};
use crate::{CHUNK_SIZE, ChunkId, ChunkTable, Error, Progress, Result};

const WORKERS: usize = 2;
/// Chunks a worker takes at a time: 1 MiB.
const RUN_CHUNKS: usize = 16;
/// Finished runs that may wait to be written. Memory is bounded by `(WORKERS + QUEUE + 1) * 1 MiB`
/// and change.
const QUEUE: usize = 4;

/// An opened stream and where its data is.
pub(crate) struct Input<'a> {
    pub file: &'a File,
    /// Path, for messages.
    pub path: &'a Path,
    pub len: u64,
    pub extents: Vec<Range<u64>>,
}

impl Input<'_> {
    /// Returns the number of bytes of the chunks that will be read.
    pub fn data_bytes(&self) -> u64 {
        chunk_runs(&self.extents, self.len, u64::MAX).iter().map(|run| self.run_bytes(run)).sum()
    }

    fn run_bytes(&self, run: &Range<u64>) -> u64 {
        self.len.min(run.end * CHUNK_SIZE as u64) - run.start * CHUNK_SIZE as u64
    }
}

/// A chunk a worker is done with.
struct Done {
    index: u64,
    /// `None`: zeros.
    id: Option<ChunkId>,
    /// Set on the first sight of a chunk that has to be written.
    stored: Option<(Codec, Vec<u8>)>,
}

/// All streams of one snapshot go through one of these.
pub(crate) struct Ingest<'a> {
    db: &'a Db,
    packs: &'a Path,
    writer: PackWriter<'a>,
    cancel: &'a AtomicBool,
    /// Chunks some worker has taken on, so that equal ones are stored once.
    claimed: Mutex<HashSet<ChunkId>>,
    /// Packs opened to check chunks that are already stored.
    open: Mutex<HashMap<u64, Option<Arc<PackFile>>>>,
    /// Chunks written, with their locations.
    pub written: HashMap<ChunkId, Location>,
    progress: Progress,
}

impl<'a> Ingest<'a> {
    pub fn new(
        db: &'a Db,
        packs: &'a Path,
        next_pack: &'a AtomicU64,
        cancel: &'a AtomicBool,
        total_bytes: u64,
    ) -> Self {
        Self {
            db,
            packs,
            writer: PackWriter::new(packs, next_pack),
            cancel,
            claimed: Mutex::default(),
            open: Mutex::default(),
            written: HashMap::new(),
            progress: Progress { done_bytes: 0, total_bytes },
        }
    }

    /// Stores one stream and gives its table.
    pub fn stream(
        &mut self,
        input: &Input<'_>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ChunkTable> {
        let mut table = ChunkTable::zeros(input.len);
        let runs = chunk_runs(&input.extents, input.len, RUN_CHUNKS as u64);
        let next = AtomicUsize::new(0);
        let worker = Worker {
            db: self.db,
            packs: self.packs,
            claimed: &self.claimed,
            open: &self.open,
            input,
            runs: &runs,
            next: &next,
        };
        let (sender, receiver) = sync_channel::<Result<(u64, Vec<Done>)>>(QUEUE);
        thread::scope(|scope| {
            for _ in 0..WORKERS.min(runs.len()) {
                let sender = sender.clone();
                let worker = &worker;
                scope.spawn(move || worker.run(&sender));
            }
            drop(sender);
            // Owned here, so that leaving early makes the workers' next send fail and end them.
            for message in receiver {
                let (bytes, chunks) = message?;
                if self.cancel.load(Ordering::Relaxed) {
                    return Err(Error::Cancelled);
                }
                for done in chunks {
                    let at = usize::try_from(done.index).expect("a chunk of this table");
                    table.chunks[at] = done.id;
                    if let (Some(id), Some((codec, stored))) = (done.id, done.stored) {
                        let raw_len = u32::try_from(chunk_len(input.len, done.index))
                            .expect("at most CHUNK_SIZE");
                        let location = self.writer.append(id, raw_len, codec, &stored)?;
                        self.written.insert(id, location);
                    }
                }
                self.progress.done_bytes += bytes;
                progress(self.progress);
            }
            Ok(table)
        })
    }

    /// Makes what was written durable.
    pub fn finish(self) -> Result<(PendingPacks, HashMap<ChunkId, Location>)> {
        Ok((self.writer.finish()?, self.written))
    }
}

/// What the worker threads share.
struct Worker<'a> {
    db: &'a Db,
    packs: &'a Path,
    claimed: &'a Mutex<HashSet<ChunkId>>,
    open: &'a Mutex<HashMap<u64, Option<Arc<PackFile>>>>,
    input: &'a Input<'a>,
    runs: &'a [Range<u64>],
    next: &'a AtomicUsize,
}

impl Worker<'_> {
    fn run(&self, sender: &SyncSender<Result<(u64, Vec<Done>)>>) {
        let mut buffer = vec![0; RUN_CHUNKS * CHUNK_SIZE];
        let mut compressor = match Compressor::new(ZSTD_LEVEL) {
            Ok(compressor) => compressor,
            Err(e) => return drop(sender.send(Err(io_error("compress", self.input.path, e)))),
        };
        while let Some(run) = self.runs.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let done = self.one_run(run, &mut buffer, &mut compressor);
            let failed = done.is_err();
            // A send fails when the receiver gave up, after an error or a cancellation.
            if sender.send(done).is_err() || failed {
                return;
            }
        }
    }

    fn one_run(
        &self,
        run: &Range<u64>,
        buffer: &mut [u8],
        compressor: &mut Compressor<'_>,
    ) -> Result<(u64, Vec<Done>)> {
        let bytes = self.input.run_bytes(run);
        let buffer = &mut buffer[..usize::try_from(bytes).expect("at most RUN_CHUNKS chunks")];
        let io = |e| io_error("read", self.input.path, e);
        self.input.file.read_exact_at(buffer, run.start * CHUNK_SIZE as u64).map_err(|e| {
            if e.kind() == io::ErrorKind::UnexpectedEof {
                io(io::Error::other("it became shorter while it was read; the VM must be stopped"))
            } else {
                io(e)
            }
        })?;
        let mut done = Vec::with_capacity(RUN_CHUNKS);
        for (index, chunk) in run.clone().zip(buffer.chunks(CHUNK_SIZE)) {
            if is_zero(chunk) {
                done.push(Done { index, id: None, stored: None });
                continue;
            }
            let id = ChunkId::of(chunk);
            let first = self.claimed.lock().insert(id);
            let stored = if first && !self.is_stored(id, chunk.len())? {
                Some(compress(chunk, compressor).map_err(io)?)
            } else {
                None
            };
            done.push(Done { index, id: Some(id), stored });
        }
        Ok((bytes, done))
    }

    /// Whether a good copy is in the store. A damaged one is written again, so that building a
    /// golden image anew repairs it and all that share the chunk.
    fn is_stored(&self, id: ChunkId, len: usize) -> Result<bool> {
        let Some(entry) = self.db.chunk(&id)? else {
            return Ok(false);
        };
        if entry.location.raw_len as usize != len {
            return Ok(false);
        }
        let pack = {
            let mut open = self.open.lock();
            let number = entry.location.pack;
            open.entry(number)
                .or_insert_with(|| PackFile::open(self.packs, number).ok().map(Arc::new))
                .clone()
        };
        let mut copy = vec![0; len];
        Ok(pack.is_some_and(|pack| match pack.read(&entry.location, id, &mut copy) {
            Ok(_) => true,
            Err(damage) => {
                tracing::warn!(chunk = %id, pack = pack.name(), %damage, "storing a damaged chunk again");
                false
            }
        }))
    }
}

fn compress(chunk: &[u8], compressor: &mut Compressor<'_>) -> io::Result<(Codec, Vec<u8>)> {
    let packed = compressor.compress(chunk)?;
    Ok(if packed.len() < chunk.len() {
        (Codec::Zstd, packed)
    } else {
        (Codec::Raw, chunk.to_vec())
    })
}
