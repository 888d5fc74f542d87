//! Pager process of this host: connected to when it runs, started when it does not.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_host::layout::{Layout, LayoutError, mayfly_program};
use mayfly_host::time_scale::scaled;
use mayfly_pager::client::PagerClient;
use mayfly_pager::{ChunkSource, OpenedSource, ReadReport, SourceError, SourceResolver};
use mayfly_snapshotter::{Manifest, SealKey, Store, StreamKind, StreamReader};
use nix::fcntl::{Flock, FlockArg};
use parking_lot::Mutex;

/// How long a started pager may take to answer.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long a running one may take. The first attach of a golden opens its image.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Error of the pager process.
#[derive(Debug, thiserror::Error)]
pub enum PagerHostError {
    /// Our own files are missing.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The process could not be started.
    #[error("cannot start the pager ({program}): {cause}")]
    Start {
        /// Path of the program.
        program: PathBuf,
        /// Cause of the failure.
        cause: std::io::Error,
    },
    /// The process was started and does not answer.
    #[error("the pager was started but does not answer: {reason}; its log is {log}")]
    Silent {
        /// The last connection error, or how it ended.
        reason: String,
        /// Path of its log file.
        log: PathBuf,
    },
}

/// Returns the path of the pager process's log.
pub fn log_file(layout: &Layout) -> PathBuf {
    layout.run().join("pager.log")
}

/// Connects to the pager of this host, and starts one first when none answers.
///
/// # Errors
/// [`PagerHostError`].
pub fn connect_or_start(layout: &Layout) -> Result<PagerClient, PagerHostError> {
    let client = PagerClient::new(layout.pager_socket()).answer_limit(scaled(ANSWER_LIMIT));
    if client.ping().is_ok() {
        return Ok(client);
    }
    Layout::create(layout.run())?;
    let start_error =
        |program: &Path, cause| PagerHostError::Start { program: program.to_owned(), cause };
    // One starter at a time: two pagers would mean two page caches.
    let lock = layout.run().join("pager.lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&lock);
    let file = file.map_err(|e| start_error(&lock, e))?;
    let _lock = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, e)| start_error(&lock, e.into()))?;
    if client.ping().is_ok() {
        return Ok(client);
    }
    start(layout, &client)?;
    Ok(client)
}

fn start(layout: &Layout, client: &PagerClient) -> Result<(), PagerHostError> {
    let program = mayfly_program()?;
    let log = log_file(layout);
    let failed = |cause| PagerHostError::Start { program: program.clone(), cause };
    let output = File::create(&log).map_err(failed)?;
    let mut command = Command::new(&program);
    command
        .args(["pager", "serve"])
        .env("MAYFLY_HOME", layout.home())
        .env("MAYFLY_RUN", layout.run())
        .env("MAYFLY_SEAL_KEY", layout.seal_key())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::from(output.try_clone().map_err(failed)?))
        .stderr(Stdio::from(output));
    // SAFETY: setsid(2) is async-signal-safe and all the closure does. A session of its own keeps a
    // Ctrl-C in the terminal, and the end of this process, away from the sessions of other engines.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
    }
    let mut child = command.spawn().map_err(failed)?;
    let begun = Instant::now();
    loop {
        match client.ping() {
            Ok(_) => {
                // It outlives us; a thread reaps it if it ends first, so that it never stays a
                // zombie.
                std::thread::spawn(move || child.wait());
                return Ok(());
            }
            Err(error) => {
                let ended = child.try_wait().ok().flatten();
                if ended.is_some() || begun.elapsed() > scaled(START_LIMIT) {
                    let _ = child.kill();
                    let _ = child.wait();
                    let tail = std::fs::read_to_string(&log).unwrap_or_default();
                    let reason =
                        tail.lines().last().map_or_else(|| error.to_string(), str::to_owned);
                    return Err(PagerHostError::Silent { reason, log });
                }
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Tells a running pager that a golden is gone. It drops the page cache unless a session still uses
/// it; a pager that is not running, or busy with it, drops it on its own when the budget is short.
pub fn forget(layout: &Layout, manifest: &Manifest) {
    let image = image_name(&manifest.name, &manifest.streams.ram.table_blake3.to_string());
    let _ = PagerClient::new(layout.pager_socket()).forget(&image);
}

/// Images kept open by a [`StoreResolver`].
const OPEN_IMAGES: usize = 16;

/// Opens golden images of the store for the pager. Keeps them open: opening the store costs a
/// session more than its whole restore, and an image never changes, for its name carries the
/// identity of its content.
#[derive(Debug)]
pub struct StoreResolver {
    store: PathBuf,
    seal_key: PathBuf,
    open: Mutex<VecDeque<(String, OpenImage)>>,
}

/// An image that was opened before.
#[derive(Debug, Clone)]
struct OpenImage {
    key: String,
    source: Arc<RamSource>,
    working_set: Vec<u32>,
}

impl StoreResolver {
    /// Resolves names in the store of `layout`.
    pub fn new(layout: &Layout) -> Self {
        Self {
            store: layout.store(),
            seal_key: layout.seal_key().to_owned(),
            open: Mutex::default(),
        }
    }

    fn open_image(&self, image: &str) -> Result<OpenImage, SourceError> {
        let failed = |e: &dyn std::fmt::Display| SourceError::new(e.to_string());
        let (golden, wanted) =
            image.split_once(KEY_SEPARATOR).ok_or_else(|| failed(&"no image name"))?;
        // Opened anew each time: a reader sees the store as it was when opened, and goldens come
        // and go.
        let seal_key = SealKey::load(&self.seal_key).map_err(|e| failed(&e))?;
        let store =
            Store::open_read_only(&self.store).map_err(|e| failed(&e))?.with_seal_key(seal_key);
        let (manifest, working_set) = store.sealed(golden).map_err(|e| failed(&e))?;
        let key = manifest.streams.ram.table_blake3.to_string();
        if key != wanted {
            return Err(failed(&format!(
                "golden {golden} was built again meanwhile: start the session again"
            )));
        }
        let reader = store.reader(&manifest, StreamKind::Ram).map_err(|e| failed(&e))?;
        Ok(OpenImage { key, source: Arc::new(RamSource { reader }), working_set })
    }
}

/// Separates the name of a golden from the content identity of its memory in what the pager is
/// asked for.
const KEY_SEPARATOR: char = '@';

/// Returns the name to ask the pager for: this golden with exactly this memory. A golden that was
/// built again under the same name meanwhile has other memory, which would not fit the device state
/// that a session has loaded already.
pub fn image_name(golden: &str, ram_key: &str) -> String {
    format!("{golden}{KEY_SEPARATOR}{ram_key}")
}

impl SourceResolver for StoreResolver {
    fn open(&self, image: &str) -> Result<OpenedSource, SourceError> {
        let mut open = self.open.lock();
        let known = open.iter().find(|(name, _)| name == image).map(|(_, image)| image.clone());
        let found = if let Some(found) = known {
            found
        } else {
            let found = self.open_image(image)?;
            // Without a working set it is being built: that will be recorded in a moment.
            if !found.working_set.is_empty() {
                open.truncate(OPEN_IMAGES - 1);
                open.push_front((image.to_owned(), found.clone()));
            }
            found
        };
        Ok(OpenedSource { key: found.key, source: found.source, working_set: found.working_set })
    }
}

/// The RAM stream of one golden image.
#[derive(Debug)]
struct RamSource {
    reader: StreamReader,
}

impl ChunkSource for RamSource {
    fn len(&self) -> u64 {
        self.reader.len()
    }

    fn chunk_size(&self) -> usize {
        self.reader.chunk_size()
    }

    fn is_zero(&self, chunk: usize) -> bool {
        self.reader.is_zero(chunk)
    }

    fn read(&self, chunk: usize, buffer: &mut [u8]) -> Result<ReadReport, SourceError> {
        let times =
            self.reader.read_chunk(chunk, buffer).map_err(|e| SourceError::new(e.to_string()))?;
        Ok(ReadReport { hash: times.hash })
    }

    fn will_read(&self, chunks: &[u32]) {
        self.reader.read_ahead(chunks);
    }
}
