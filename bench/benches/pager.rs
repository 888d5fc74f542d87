//! The whole path of a page fault: guest memory, userfaultfd, pager, chunk source, page cache, and
//! back.
//!
//! A pager in threads of this process serves a memory image; this thread is the VMM and its guest.
//! One touch per chunk is measured, the first one: what the later pages of a chunk cost is the
//! kernel's business alone. Every run checks the counters, so that a benchmark which does not
//! measure what its name says panics.
//!
//! Needs root and userfaultfd(2); says so and measures nothing without.

#![allow(clippy::unwrap_used, reason = "a benchmark ends when something fails")]

mod pages;

use std::{
    fs::File,
    num::NonZero,
    os::fd::OwnedFd,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use criterion::{BatchSize, Bencher, Criterion, Throughput, criterion_group, criterion_main};
use mayfly_pager::{
    AttachRequest, Attachment, ChunkSource, Mode, OpenedSource, PagerClient, PagerConfig,
    ReadReport, SourceError, SourceResolver, Uffd, handshake,
};
use mayfly_snapshotter::{CHUNK_SIZE, ChunkId};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use tempfile::TempDir;

/// Chunks of the image: 16 MiB.
const CHUNKS: usize = 256;
/// Only ends a run that hangs.
const LIMIT: Duration = Duration::from_secs(30);

/// An image in memory whose chunks are verified as those of a store are.
struct MemoryImage {
    chunks: Vec<Chunk>,
    /// How often a chunk was read, counted before anybody can see it.
    reads: AtomicU64,
}

struct Chunk {
    id: ChunkId,
    bytes: Vec<u8>,
    /// The byte at [`PROBE`].
    probe: u8,
}

/// Where a chunk is touched: in a page of text, whose bytes are not zero, so that a page of zeros
/// would show.
const PROBE: usize = 2 * 4096 + 7;

impl MemoryImage {
    fn new() -> Self {
        let chunk = |bytes: Vec<u8>| Chunk { id: ChunkId::of(&bytes), probe: bytes[PROBE], bytes };
        let chunks: Vec<_> = (0..CHUNKS as u64).map(pages::chunk).map(chunk).collect();
        assert!(chunks.iter().all(|chunk| chunk.probe != 0));
        Self { chunks, reads: AtomicU64::new(0) }
    }
}

impl ChunkSource for MemoryImage {
    fn len(&self) -> u64 {
        (CHUNKS * CHUNK_SIZE) as u64
    }

    fn chunk_size(&self) -> usize {
        CHUNK_SIZE
    }

    fn is_zero(&self, _: usize) -> bool {
        false
    }

    fn read(&self, i: usize, buf: &mut [u8]) -> Result<ReadReport, SourceError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let chunk = &self.chunks[i];
        buf.copy_from_slice(&chunk.bytes);
        let start = Instant::now();
        let good = ChunkId::of(buf) == chunk.id;
        let hash = start.elapsed();
        if good { Ok(ReadReport { hash }) } else { Err(SourceError::new("hash mismatch")) }
    }
}

/// Knows the one image under every name.
struct OneImage(Arc<MemoryImage>);

impl SourceResolver for OneImage {
    fn open(&self, _: &str) -> Result<OpenedSource, SourceError> {
        Ok(OpenedSource {
            key: "image".to_owned(),
            source: Arc::clone(&self.0) as _,
            working_set: Vec::new(),
        })
    }
}

/// A pager on a socket of its own; ends when dropped.
struct Pager {
    client: PagerClient,
    image: Arc<MemoryImage>,
    thread: Option<JoinHandle<()>>,
    _dir: TempDir,
}

impl Pager {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("pager.sock");
        let image = Arc::new(MemoryImage::new());
        let resolver = Arc::new(OneImage(Arc::clone(&image)));
        let client = PagerClient::new(&socket);
        let serve = move || mayfly_pager::serve(&socket, resolver, PagerConfig::default()).unwrap();
        let thread = Some(std::thread::spawn(serve));
        client.wait_ready(LIMIT).unwrap();
        Self { client, image, thread, _dir: dir }
    }

    fn attach(&self, mode: Mode) -> Attachment {
        let request =
            AttachRequest { golden: "golden".into(), mode, record: false, session: "bench".into() };
        self.client.attach(&request).unwrap()
    }

    /// Evicts every chunk.
    fn make_cold(&self) {
        let start = Instant::now();
        // A chunk is pinned for a moment longer than it takes the guest to go on.
        while self.client.host_stats().unwrap().resident_bytes > 0 {
            assert!(start.elapsed() < LIMIT, "chunks stay resident");
            self.client.evict(u64::MAX).unwrap();
        }
    }

    /// Fetches every chunk.
    fn make_resident(&self) {
        let guest = Guest::start(self, Mode::Shared);
        (0..CHUNKS).for_each(|chunk| guest.touch(chunk));
        assert_eq!(self.client.host_stats().unwrap().resident_bytes, self.image.len());
    }

    fn reads(&self) -> u64 {
        self.image.reads.load(Ordering::Relaxed)
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        let _ = self.client.shutdown(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A VMM with its guest memory mapped, registered and handed over.
struct Guest<'a> {
    base: NonNull<u8>,
    image: &'a MemoryImage,
    attachment: Attachment,
    /// Kept open while there is guest memory, as every VMM must.
    _uffd: Uffd,
    _handshake: OwnedFd,
}

impl<'a> Guest<'a> {
    fn start(pager: &'a Pager, mode: Mode) -> Self {
        let mut attachment = pager.attach(mode);
        let len = NonZero::new(usize::try_from(attachment.ram_bytes()).unwrap()).unwrap();
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let base = match attachment.take_ram_file().map(File::from) {
            // SAFETY: a new mapping at an address of the kernel's choice.
            Some(file) => unsafe { mmap(None, len, prot, MapFlags::MAP_PRIVATE, &file, 0) },
            // SAFETY: as above.
            None => unsafe { mmap_anonymous(None, len, prot, MapFlags::MAP_PRIVATE) },
        }
        .unwrap();
        let uffd = Uffd::new().unwrap();
        uffd.register(base.as_ptr() as u64, len.get() as u64).unwrap();
        let socket = attachment.take_handshake().unwrap();
        let region =
            handshake::Region { base: base.as_ptr() as u64, size: len.get() as u64, offset: 0 };
        handshake::send(&socket, &[region], &uffd).unwrap();
        Self { base: base.cast(), image: &pager.image, attachment, _uffd: uffd, _handshake: socket }
    }

    /// Reads one byte of a chunk.
    fn touch(&self, chunk: usize) {
        // SAFETY: within the mapping, which lives as long as the guest; nothing in this process
        // writes it.
        let found = unsafe { self.base.add(chunk * CHUNK_SIZE + PROBE).read_volatile() };
        assert_eq!(found, self.image.chunks[chunk].probe, "chunk {chunk}");
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let len = usize::try_from(self.image.len()).unwrap();
        // SAFETY: the mapping was made in `start`, and nothing refers to it any more.
        let _ = unsafe { munmap(self.base.cast(), len) };
    }
}

/// What a session finds in the page cache.
#[derive(Clone, Copy, PartialEq)]
enum Cache {
    Cold,
    Resident,
}

/// Measures the first touch of chunks. Guests come and go outside of the measured time.
fn first_touches(b: &mut Bencher<'_>, pager: &Pager, mode: Mode, cache: Cache) {
    pager.make_resident();
    b.iter_custom(|iterations| {
        let (mut left, mut total) = (usize::try_from(iterations).unwrap(), Duration::ZERO);
        while left > 0 {
            if cache == Cache::Cold {
                pager.make_cold();
            }
            let guest = Guest::start(pager, mode);
            // Where there are faults, the first one also waits until the pager has taken the
            // handshake: not measured.
            guest.touch(0);
            let (touches, reads) = (left.min(CHUNKS - 1), pager.reads());
            let start = Instant::now();
            (1..=touches).for_each(|chunk| guest.touch(chunk));
            total += start.elapsed();
            left -= touches;

            let read = pager.reads() - reads;
            assert_eq!(read, if cache == Cache::Cold { touches as u64 } else { 0 }, "chunks read");
            let faults = guest.attachment.stats().unwrap().counters.faults;
            let faulting = mode == Mode::Copy || cache == Cache::Cold;
            assert_eq!(faults, if faulting { touches as u64 + 1 } else { 0 }, "faults");
        }
        total
    });
}

fn pager(c: &mut Criterion) {
    if let Err(why) = usable() {
        eprintln!("pager: SKIPPED, nothing is measured: {why}");
        return;
    }
    let pager = Pager::start();

    let mut group = c.benchmark_group("pager/first-touch");
    group.throughput(Throughput::Bytes(CHUNK_SIZE as u64));
    for (mode, name) in [(Mode::Shared, "shared"), (Mode::Copy, "private-copy")] {
        group.bench_function(format!("{name}/cold"), |b| {
            first_touches(b, &pager, mode, Cache::Cold);
        });
        group.bench_function(format!("{name}/resident"), |b| {
            first_touches(b, &pager, mode, Cache::Resident);
        });
    }
    group.finish();

    let mut group = c.benchmark_group("pager/session");
    // The end of a session is a closed connection: the pager sees it in its own time, before it
    // takes many more.
    group.bench_function("attach-detach", |b| b.iter(|| drop(pager.attach(Mode::Shared))));
    // As a VMM starts: attach, map, register, hand over, touch. The page is resident.
    pager.make_resident();
    group.bench_function("start", |b| {
        let start = |()| {
            let guest = Guest::start(&pager, Mode::Shared);
            guest.touch(0);
            guest
        };
        b.iter_batched(|| (), start, BatchSize::PerIteration);
    });
    group.finish();
}

/// Whether this process can do what a pager and a VMM do.
fn usable() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("not root".to_owned());
    }
    Uffd::new().map(drop).map_err(|error| format!("no userfaultfd: {error}"))
}

criterion_group!(benches, pager);
criterion_main!(benches);
