//! The page cache of one RAM image: its file, its chunk states, and the pages it should hold.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};

use crate::{
    ram_file::RamFile,
    source::{ChunkSource, OpenedSource},
    stats::ImageStats,
    table::{Need, Table, Turn},
    uffd::PAGE,
};

/// Who waits for a chunk of an image.
pub(crate) trait Waits {
    /// Whether it copies the chunk, which must not be evicted until it has.
    fn copies(&self) -> bool;
    /// Whether nothing is served to it any more.
    fn is_over(&self) -> bool;
}

/// Why an image cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error(
        "golden {golden}: RAM image of {len} bytes in chunks of {chunk} bytes cannot be served: {why}"
    )]
    Shape { golden: String, len: u64, chunk: usize, why: &'static str },
    #[error(
        "cannot make the page-cache file of {len} bytes: {errno}: free memory or raise the process's limits"
    )]
    File { len: u64, errno: nix::errno::Errno },
}

/// The page cache of one RAM image, for whose chunks a `W` may wait.
pub(crate) struct Image<W> {
    pub golden: String,
    pub key: String,
    pub source: Arc<dyn ChunkSource>,
    pub file: RamFile,
    pub working_set: Vec<u32>,
    /// Private to one recording session: starts empty and is never shared.
    pub recording: bool,
    /// Number of sessions attached.
    pub sessions: AtomicUsize,
    /// A prefetch of the working set is queued or running.
    pub prefetching: AtomicBool,
    /// Holds pages the pager did not place; nobody may be served from it any more.
    condemned: AtomicBool,
    len: u64,
    chunk_size: u64,
    table: Mutex<State<W>>,
    /// Resident bytes of all images, kept in step with `State::resident`.
    host_resident: Arc<AtomicU64>,
}

struct State<W> {
    table: Table<W>,
    /// Bytes of the chunks that are asked for, filling, present or being punched: no more may be
    /// allocated in the file.
    resident: u64,
}

impl<W: Waits> Image<W> {
    pub fn new(
        golden: &str,
        opened: OpenedSource,
        recording: bool,
        host_resident: Arc<AtomicU64>,
    ) -> Result<Self, ImageError> {
        let OpenedSource { key, source, mut working_set } = opened;
        let (len, chunk) = (source.len(), source.chunk_size());
        let shape = |why| ImageError::Shape { golden: golden.to_owned(), len, chunk, why };
        if len == 0 || !len.is_multiple_of(PAGE) {
            return Err(shape("its length is not a multiple of 4096"));
        }
        if !chunk.is_power_of_two() || !(PAGE..=2 << 20).contains(&(chunk as u64)) {
            return Err(shape("chunks must be a power of two from 4096 to 2 MiB"));
        }
        let chunks =
            u32::try_from(len.div_ceil(chunk as u64)).map_err(|_| shape("too many chunks"))?;
        if recording {
            working_set.clear();
        }
        working_set.retain(|&c| c < chunks);
        let file = RamFile::new(len).map_err(|errno| ImageError::File { len, errno })?;
        let table = Table::new(chunks as usize, &working_set);
        Ok(Self {
            golden: golden.to_owned(),
            key,
            source,
            file,
            working_set,
            recording,
            sessions: AtomicUsize::new(0),
            prefetching: AtomicBool::new(false),
            condemned: AtomicBool::new(false),
            len,
            chunk_size: chunk as u64,
            table: Mutex::new(State { table, resident: 0 }),
            host_resident,
        })
    }

    fn state(&self) -> MutexGuard<'_, State<W>> {
        self.table.lock()
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn chunk_size(&self) -> u64 {
        self.chunk_size
    }

    pub fn chunks(&self) -> u32 {
        u32::try_from(self.len.div_ceil(self.chunk_size))
            .expect("checked when the image was opened")
    }

    /// Returns the chunk that holds byte `offset`.
    pub fn chunk_of(&self, offset: u64) -> u32 {
        u32::try_from(offset / self.chunk_size).expect("offset inside the image")
    }

    /// Returns the range of bytes of `chunk`.
    pub fn range(&self, chunk: u32) -> Range<u64> {
        let start = u64::from(chunk) * self.chunk_size;
        start..(start + self.chunk_size).min(self.len)
    }

    fn bytes(&self, chunk: u32) -> u64 {
        let range = self.range(chunk);
        range.end - range.start
    }

    /// Returns whether a fault on `chunk` is answered with zero pages, with no memory of the cache:
    /// chunks known to be zero, except for those of the working set, which are made resident so
    /// that later sessions do not fault on them.
    pub fn is_plain_zero(&self, chunk: u32) -> bool {
        self.source.is_zero(chunk as usize) && !self.state().table.in_working_set(chunk)
    }

    /// Requests a chunk; see [`Table::request`].
    pub fn request(&self, chunk: u32, waiter: W, pin: bool) -> Need {
        let mut state = self.state();
        let need = state.table.request(chunk, waiter, pin);
        if need == Need::Ask {
            self.charge(&mut state, chunk);
        }
        need
    }

    /// Gives a chunk that was asked for its turn; see [`Table::turn`].
    pub fn turn(&self, chunk: u32) -> Turn<W> {
        let mut state = self.state();
        let turn = state.table.turn(chunk, W::is_over);
        if matches!(turn, Turn::Over(_)) {
            self.discharge(&mut state, chunk);
        }
        turn
    }

    /// Calls `each` with those who wait for `chunk`, under the lock of the image.
    pub fn for_waiters(&self, chunk: u32, each: impl FnMut(&W)) {
        self.state().table.waiters(chunk).iter().for_each(each);
    }

    /// Prefetches a chunk; see [`Table::prefetch`].
    pub fn prefetch(&self, chunk: u32) -> bool {
        let mut state = self.state();
        let start = state.table.prefetch(chunk);
        if start {
            self.charge(&mut state, chunk);
        }
        start
    }

    /// Tells the source which chunks of this part of the working set will be read.
    pub fn will_read(&self, part: Range<usize>) {
        let mut chunks = self.working_set[part].to_vec();
        {
            let state = self.state();
            chunks.retain(|&chunk| state.table.is_absent(chunk));
        }
        self.source.will_read(&chunks);
    }

    fn charge(&self, state: &mut State<W>, chunk: u32) {
        state.resident += self.bytes(chunk);
        self.host_resident.fetch_add(self.bytes(chunk), Ordering::Relaxed);
    }

    fn discharge(&self, state: &mut State<W>, chunk: u32) {
        state.resident -= self.bytes(chunk);
        self.host_resident.fetch_sub(self.bytes(chunk), Ordering::Relaxed);
    }

    /// Notes a fill that succeeded; see [`Table::filled`].
    pub fn filled(&self, chunk: u32, number: u64) -> Vec<W> {
        self.state().table.filled(chunk, number, W::copies)
    }

    /// Notes a fill that failed; see [`Table::unfilled`]; punches what may have been written.
    pub fn unfilled(&self, chunk: u32) -> Vec<W> {
        let range = self.range(chunk);
        let _ = self.file.punch(range.start, range.end - range.start);
        let mut state = self.state();
        self.discharge(&mut state, chunk);
        state.table.unfilled(chunk)
    }

    /// Unpins a chunk; see [`Table::unpin`].
    pub fn unpin(&self, chunk: u32) {
        self.state().table.unpin(chunk);
    }

    /// Returns the number of the oldest resident chunk; see [`Table::oldest`].
    pub fn oldest(&self, working_set: bool) -> Option<u64> {
        self.state().table.oldest(working_set)
    }

    /// Evicts the oldest chunk of a class. Returns the bytes freed, and the chunk when it must be
    /// asked for again at once.
    pub fn evict(&self, working_set: bool) -> Option<Evicted<W>> {
        let chunk = self.state().table.evict(working_set)?;
        let range = self.range(chunk);
        let bytes = range.end - range.start;
        if self.file.punch(range.start, bytes).is_err() {
            let waiters = self.state().table.kept(chunk, W::copies);
            return Some(Evicted { bytes: 0, refill: None, kept: waiters });
        }
        let mut state = self.state();
        let refill = state.table.evicted(chunk);
        if !refill {
            self.discharge(&mut state, chunk);
        }
        Some(Evicted { bytes, refill: refill.then_some(chunk), kept: Vec::new() })
    }

    /// Returns whether the file holds only what the pager placed; `false` condemns the image for
    /// good. The kernel allocates zero pages for touches through an unregistered mapping, see the
    /// crate's documentation.
    pub fn is_intact(&self) -> bool {
        if self.condemned.load(Ordering::Relaxed) {
            return false;
        }
        let state = self.state();
        let intact = self.file.allocated().is_ok_and(|bytes| bytes <= state.resident);
        drop(state);
        if !intact {
            self.condemned.store(true, Ordering::Relaxed);
        }
        intact
    }

    pub fn is_condemned(&self) -> bool {
        self.condemned.load(Ordering::Relaxed)
    }

    pub fn resident(&self) -> u64 {
        self.state().resident
    }

    pub fn working_set_absent(&self) -> usize {
        self.state().table.working_set_absent()
    }

    pub fn stats(&self) -> ImageStats {
        ImageStats {
            golden: self.golden.clone(),
            key: self.key.clone(),
            ram_bytes: self.len,
            resident_bytes: self.resident(),
            sessions: self.sessions.load(Ordering::Relaxed) as u64,
            working_set: self.working_set.len() as u64,
            working_set_absent: self.working_set_absent() as u64,
            recording: self.recording,
        }
    }
}

impl<W> Drop for Image<W> {
    fn drop(&mut self) {
        let state = self.table.get_mut();
        self.host_resident.fetch_sub(state.resident, Ordering::Relaxed);
    }
}

/// What an eviction did.
pub(crate) struct Evicted<W> {
    /// Bytes punched out.
    pub bytes: u64,
    /// The chunk must be asked for again: a fault came meanwhile.
    pub refill: Option<u32>,
    /// Punching failed and these still wait for the resident chunk.
    pub kept: Vec<W>,
}
