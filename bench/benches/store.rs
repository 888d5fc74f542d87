//! Costs of a chunk (hash, compression, expansion, verified read) and of a snapshot (commit, open).
//!
//! The stores are made in the directory for temporary files; set `TMPDIR` to measure another disk.

#![allow(clippy::unwrap_used, reason = "a benchmark ends when something fails")]

mod pages;

use std::{
    collections::BTreeMap, fs::File, hint::black_box, os::unix::fs::FileExt,
    sync::atomic::AtomicBool,
};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mayfly_snapshotter::{
    CHUNK_SIZE, ChunkId, Digest, FileRef, HostPins, Manifest, NewSnapshot, Store, StreamKind,
    VmShape,
};
use tempfile::TempDir;
use zstd::bulk::{Compressor, Decompressor};

/// The level the store compresses with.
const ZSTD_LEVEL: i32 = 3;
/// Chunks of the RAM image: 64 MiB.
const IMAGE_CHUNKS: usize = 1024;
/// Every so many chunks one holds data, the others are holes: 340 MB of 1 GiB in a golden with
/// dockerd warm.
const DATA_EVERY: usize = 3;
/// Different chunks to work on in turn, so that no branch predictor and no cache close to the CPU
/// learns one by heart.
const DISTINCT: u64 = 64;

static NEVER: AtomicBool = AtomicBool::new(false);

/// A stopped VM: a sparse RAM image, a device state, no disk delta.
struct Vm {
    ram: File,
    device: File,
    disk: File,
}

impl Vm {
    fn new() -> Self {
        let ram = tempfile::tempfile().unwrap();
        ram.set_len((IMAGE_CHUNKS * CHUNK_SIZE) as u64).unwrap();
        for i in data_chunks() {
            ram.write_all_at(&pages::chunk(i as u64), (i * CHUNK_SIZE) as u64).unwrap();
        }
        let device = tempfile::tempfile().unwrap();
        device.write_all_at(&pages::chunk(u64::MAX), 0).unwrap();
        Self { ram, device, disk: tempfile::tempfile().unwrap() }
    }

    fn commit(&self, store: &Store, name: &str) -> Manifest {
        let new = NewSnapshot {
            name,
            build_key: Digest::of(name.as_bytes()).to_string(),
            pins: HostPins {
                arch: "x86_64".into(),
                vmm: "qemu".into(),
                vmm_version: "10.0.2".into(),
                machine: "microvm".into(),
                accel: "tcg".into(),
                cpu_model: "max".into(),
                kernel_blake3: Digest::of(b"kernel"),
            },
            vm: VmShape {
                vcpus: 1,
                memory_bytes: (IMAGE_CHUNKS * CHUNK_SIZE) as u64,
                kernel_cmdline: String::new(),
            },
            base_disk: FileRef {
                file_name: "base.img".into(),
                blake3: Digest::of(b"base"),
                len: 4,
            },
            ram: (&self.ram).into(),
            device: (&self.device).into(),
            disk: (&self.disk).into(),
            labels: BTreeMap::new(),
        };
        store.commit(new, &mut |_| {}, &NEVER).unwrap()
    }
}

fn data_chunks() -> impl Iterator<Item = usize> + Clone {
    (0..IMAGE_CHUNKS).step_by(DATA_EVERY)
}

fn new_store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

/// The work on the bytes of one chunk.
fn chunk(c: &mut Criterion) {
    let chunks: Vec<Vec<u8>> = (0..DISTINCT).map(pages::chunk).collect();
    let mut compressor = Compressor::new(ZSTD_LEVEL).unwrap();
    let packed: Vec<Vec<u8>> =
        chunks.iter().map(|chunk| compressor.compress(chunk).unwrap()).collect();
    let packed_bytes: usize = packed.iter().map(Vec::len).sum();
    println!(
        "chunk: zstd {ZSTD_LEVEL} stores 1/{:.2}",
        chunks.len() as f64 * CHUNK_SIZE as f64 / packed_bytes as f64
    );

    let mut group = c.benchmark_group("chunk");
    group.throughput(Throughput::Bytes(CHUNK_SIZE as u64));
    group.bench_function("hash", |b| {
        let mut next = chunks.iter().cycle();
        b.iter(|| ChunkId::of(next.next().unwrap()));
    });
    group.bench_function("compress", |b| {
        let mut next = chunks.iter().cycle();
        let mut out = vec![0; zstd::zstd_safe::compress_bound(CHUNK_SIZE)];
        b.iter(|| compressor.compress_to_buffer(next.next().unwrap(), &mut out).unwrap());
    });
    group.bench_function("decompress", |b| {
        let mut decompressor = Decompressor::new().unwrap();
        let mut next = packed.iter().cycle();
        let mut out = vec![0; CHUNK_SIZE];
        b.iter(|| {
            assert_eq!(
                decompressor.decompress_to_buffer(next.next().unwrap(), &mut out).unwrap(),
                CHUNK_SIZE
            );
        });
    });
    group.finish();
}

/// A commit of the whole image, counted in bytes that are not holes.
fn commit(c: &mut Criterion) {
    let vm = Vm::new();
    let mut group = c.benchmark_group("commit");
    group.sample_size(10);
    group.throughput(Throughput::Bytes((data_chunks().count() * CHUNK_SIZE) as u64));
    // The store is made before and removed after the measured time.
    group.bench_function("fresh", |b| {
        b.iter_batched(
            new_store,
            |(dir, store)| {
                let manifest = vm.commit(&store, "golden");
                (manifest, store, dir)
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("duplicate", |b| {
        let (_dir, store) = new_store();
        vm.commit(&store, "golden");
        let before = store.usage().unwrap().pack_bytes;
        b.iter(|| vm.commit(&store, "copy"));
        assert_eq!(
            store.usage().unwrap().pack_bytes,
            before,
            "a duplicate has stored chunks again"
        );
    });
    group.finish();
}

/// What a session's page-in costs the store.
fn read(c: &mut Criterion) {
    let (dir, store) = new_store();
    let manifest = Vm::new().commit(&store, "golden");
    let mut group = c.benchmark_group("read");
    // The packs are in the host's page cache by then: this is the work, not the disk.
    group.bench_function("chunk", |b| {
        let reader = store.reader(&manifest, StreamKind::Ram).unwrap();
        let (mut next, mut last) = (data_chunks().cycle(), 0);
        let mut out = vec![0; CHUNK_SIZE];
        b.iter(|| {
            last = next.next().unwrap();
            reader.read_chunk(last, black_box(&mut out)).unwrap()
        });
        assert!(out == pages::chunk(last as u64), "chunk {last} came back with other bytes");
    });
    group.bench_function("open", |b| {
        b.iter(|| {
            let store = Store::open_read_only(dir.path()).unwrap();
            let manifest = store.manifest("golden").unwrap();
            store.reader(&manifest, StreamKind::Ram).unwrap()
        });
    });
    group.finish();
}

criterion_group!(benches, chunk, commit, read);
criterion_main!(benches);
