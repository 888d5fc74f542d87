//! A chunk source that can be watched and made to fail, and a pager to try it with.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock, atomic::AtomicUsize, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use mayfly_pager::{
    AttachRequest, Attachment, ChunkSource, Mode, OpenedSource, PagerClient, PagerConfig,
    ReadReport, SessionEvent, SourceError, SourceResolver,
};
use parking_lot::{Condvar, Mutex, MutexGuard};

pub const PAGE: u64 = PAGE_BYTES as u64;
const PAGE_BYTES: usize = 4096;
pub const CHUNK: usize = 64 << 10;

/// Returns the content of page `p`, whose byte `i` is a function of both, never zero, so that every
/// misplaced or missing page shows.
pub fn page_content(page: u64) -> [u8; PAGE_BYTES] {
    let mut bytes = [0; PAGE_BYTES];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::try_from(page.wrapping_mul(31).wrapping_add(i as u64 / 8) % 255 + 1).unwrap();
    }
    bytes
}

#[derive(Default)]
struct Script {
    corrupt: HashSet<usize>,
    held: HashSet<usize>,
    log: Vec<usize>,
    told: Vec<(usize, Vec<u32>)>,
    broken: Option<(usize, fn())>,
}

/// An image of `len` bytes made by [`page_content`], but for its zero chunks.
pub struct TestSource {
    len: u64,
    zero: HashSet<usize>,
    script: Mutex<Script>,
    changed: Condvar,
    pub waiting: AtomicUsize,
}

impl TestSource {
    pub fn new(len: u64, zero: impl IntoIterator<Item = usize>) -> Arc<Self> {
        Arc::new(Self {
            len,
            zero: zero.into_iter().collect(),
            script: Mutex::default(),
            changed: Condvar::new(),
            waiting: AtomicUsize::new(0),
        })
    }

    /// Returns the chunks read so far, in order.
    pub fn log(&self) -> Vec<usize> {
        self.script.lock().log.clone()
    }

    /// Returns what it was told will be read, each with how many chunks had been read by then.
    pub fn told(&self) -> Vec<(usize, Vec<u32>)> {
        self.script.lock().told.clone()
    }

    pub fn corrupt(&self, chunk: usize, corrupt: bool) {
        let mut script = self.script.lock();
        if corrupt {
            script.corrupt.insert(chunk)
        } else {
            script.corrupt.remove(&chunk)
        };
    }

    /// Whoever asks whether `chunk` is zero, as the fault thread does, runs into `trap`.
    pub fn break_at(&self, chunk: usize, trap: fn()) {
        self.script.lock().broken = Some((chunk, trap));
    }

    /// Reads of `chunk` wait until it is let go, or where it is one of zeros, whoever asks whether
    /// it is.
    pub fn hold(&self, chunk: usize) {
        self.script.lock().held.insert(chunk);
    }

    pub fn release(&self, chunk: usize) {
        self.script.lock().held.remove(&chunk);
        self.changed.notify_all();
    }

    fn wait_while_held(&self, chunk: usize, script: &mut MutexGuard<'_, Script>) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while script.held.contains(&chunk) {
            self.changed.wait(script);
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// Returns what a guest must see.
    pub fn expected(&self, offset: u64, len: u64) -> Vec<u8> {
        assert!(offset.is_multiple_of(PAGE) && len.is_multiple_of(PAGE));
        (offset / PAGE..(offset + len) / PAGE)
            .flat_map(|p| {
                if self.zero.contains(&(usize::try_from(p * PAGE).unwrap() / CHUNK)) {
                    [0; 4096]
                } else {
                    page_content(p)
                }
            })
            .collect()
    }

    /// Returns the hash a test VMM reports for these bytes.
    pub fn hash(&self, offset: u64, len: u64) -> String {
        blake3::hash(&self.expected(offset, len)).to_hex().to_string()
    }
}

impl ChunkSource for TestSource {
    fn len(&self) -> u64 {
        self.len
    }

    fn chunk_size(&self) -> usize {
        CHUNK
    }

    fn is_zero(&self, i: usize) -> bool {
        let broken = self.script.lock().broken;
        if let Some((_, trap)) = broken.filter(|(chunk, _)| *chunk == i) {
            trap();
        }
        let zero = self.zero.contains(&i);
        if zero {
            self.wait_while_held(i, &mut self.script.lock());
        }
        zero
    }

    fn read(&self, i: usize, buf: &mut [u8]) -> Result<ReadReport, SourceError> {
        let mut script = self.script.lock();
        script.log.push(i);
        self.wait_while_held(i, &mut script);
        buf.copy_from_slice(&self.expected((i * CHUNK) as u64, buf.len() as u64));
        if script.corrupt.contains(&i) {
            return Err(SourceError::new("hash mismatch (made by the test)"));
        }
        Ok(ReadReport { hash: Duration::from_nanos(100) })
    }

    fn will_read(&self, chunks: &[u32]) {
        let mut script = self.script.lock();
        let read = script.log.len();
        script.told.push((read, chunks.to_vec()));
    }
}

/// What a golden name stands for: key, source, working set.
type Golden = (String, Arc<TestSource>, Vec<u32>);

/// Goldens by name.
#[derive(Default)]
pub struct TestResolver(Mutex<HashMap<String, Golden>>);

impl TestResolver {
    pub fn put(&self, golden: &str, key: &str, source: &Arc<TestSource>, working_set: &[u32]) {
        let entry = (key.to_owned(), Arc::clone(source), working_set.to_vec());
        self.0.lock().insert(golden.to_owned(), entry);
    }
}

impl SourceResolver for TestResolver {
    fn open(&self, golden: &str) -> Result<OpenedSource, SourceError> {
        let map = self.0.lock();
        let (key, source, working_set) =
            map.get(golden).ok_or_else(|| SourceError::new("no such golden"))?;
        Ok(OpenedSource {
            key: key.clone(),
            source: Arc::clone(source) as _,
            working_set: working_set.clone(),
        })
    }
}

/// A pager in threads of this process; ends with the test.
pub struct Pager {
    pub client: PagerClient,
    pub resolver: Arc<TestResolver>,
    pub directory: tempfile::TempDir,
    thread: Option<JoinHandle<()>>,
}

pub fn config() -> PagerConfig {
    PagerConfig { budget_bytes: 1 << 30, fill_threads: 3, ..PagerConfig::default() }
}

impl Pager {
    pub fn start(config: PagerConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pager.sock");
        let resolver = Arc::new(TestResolver::default());
        let (socket, goldens) = (path.clone(), Arc::clone(&resolver));
        let thread =
            std::thread::spawn(move || mayfly_pager::serve(&socket, goldens, config).unwrap());
        let client = PagerClient::new(path);
        client.wait_ready(Duration::from_secs(20)).unwrap();
        Self { client, resolver, directory, thread: Some(thread) }
    }

    /// Starts a pager with one golden `g`.
    pub fn with(source: &Arc<TestSource>, working_set: &[u32]) -> Self {
        let pager = Self::start(config());
        pager.resolver.put("g", "key", source, working_set);
        pager
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    pub fn attach(&self, mode: Mode) -> Attachment {
        self.client.attach(&request("g", mode)).unwrap()
    }

    /// Waits until the working set of every image is resident.
    pub fn await_prefetch(&self) {
        wait_until("prefetch", || {
            self.client.host_stats().unwrap().images.iter().all(|i| i.working_set_absent == 0)
                && self.client.host_stats().unwrap().counters.fills > 0
        });
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        let _ = self.client.shutdown(true);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

pub fn request(golden: &str, mode: Mode) -> AttachRequest {
    AttachRequest { golden: golden.to_owned(), mode, record: false, session: "test".to_owned() }
}

/// Waits for a condition; the limit only ends a test that hangs.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "never came: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for the next event of a session.
pub fn next_event(attachment: &Attachment) -> SessionEvent {
    let mut event = None;
    wait_until("event", || {
        event = attachment.try_event();
        event.is_some()
    });
    event.unwrap()
}

/// Returns the path of this test binary, to be run again as another process.
pub fn this_binary() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// Returns the preload library, built into the same target directory: cargo does not build a cdylib
/// for another crate's tests.
pub fn preload_library() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let release = this_binary().parent().and_then(Path::parent).unwrap().to_owned();
            let status = Command::new(env!("CARGO"))
                .args([
                    "build",
                    "--quiet",
                    "--offline",
                    "--release",
                    "-p",
                    "mayfly-preload",
                    "--target-dir",
                ])
                .arg(release.parent().unwrap())
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status();
            assert!(status.unwrap().success(), "the preload library does not build");
            release.join("libmayfly_preload.so")
        })
        .clone()
}
