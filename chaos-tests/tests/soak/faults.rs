//! What is done to the system while it serves.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mayfly_chaos_tests::daemon::Daemon;
use mayfly_chaos_tests::home::{GOLDEN, Home};
use mayfly_chaos_tests::leaks;
use mayfly_chaos_tests::program;
use mayfly_host::time_scale::scaled;
use mayfly_snapshotter::{Store, StreamKind};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::plan::{Dice, Fault, Injection};

/// Longest wait for something that a fault needs, such as a VMM to kill. It only ends what hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// How long a fault that passes lasts at most, and at least, in milliseconds.
const SHORTEST: usize = 200;
const LONGEST: usize = 2000;
/// Chunks of the working set that may be damaged, and those that are at a time.
const KNOWN: usize = 64;
const DAMAGED: usize = 8;

/// A byte of a chunk in a file of the store.
#[derive(Debug, Clone)]
struct Place {
    pack: PathBuf,
    at: u64,
}

/// Does faults to a daemon, and starts another one when it has killed it.
#[derive(Debug)]
pub struct Injector {
    /// `None` only while another is started.
    daemon: Option<Daemon>,
    chunks: Vec<Place>,
    /// How many of each fault there were.
    pub done: BTreeMap<Fault, usize>,
    /// Daemons that were killed.
    pub killed: Vec<u32>,
}

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < scaled(LIMIT), "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether there was such a process.
fn send(pid: u32, signal: Signal) -> bool {
    kill(Pid::from_raw(pid.cast_signed()), signal).is_ok()
}

impl Injector {
    pub fn new(daemon: Daemon) -> Self {
        let chunks = chunks(daemon.home());
        Self { daemon: Some(daemon), chunks, done: BTreeMap::new(), killed: Vec::new() }
    }

    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("a daemon")
    }

    /// Gives the daemon back.
    pub fn end(self) -> Daemon {
        self.daemon.expect("a daemon")
    }

    /// Does each fault when so many requests have been answered.
    pub fn run(&mut self, injections: Vec<Injection>, answered: impl Fn() -> usize) {
        for Injection { fault, after, mut dice } in injections {
            wait("an answer", || (answered() >= after).then_some(()));
            std::thread::sleep(Duration::from_millis(dice.roll() % 100));
            self.inject(fault, &mut dice);
            *self.done.entry(fault).or_default() += 1;
        }
    }

    fn inject(&mut self, fault: Fault, dice: &mut Dice) {
        let pid = self.daemon().pid();
        let lasts = SHORTEST + dice.below(LONGEST - SHORTEST);
        let lasts = Duration::from_millis(u64::try_from(lasts).expect("few"));
        match fault {
            Fault::Vmm => wait("a VMM", || {
                let mut vmms = leaks::vmms_of(pid);
                let zygotes = leaks::zygotes_of(pid);
                vmms.retain(|vmm| !zygotes.contains(vmm));
                let chosen = if vmms.is_empty() { return None } else { *dice.pick(&vmms) };
                send(chosen, Signal::SIGKILL).then_some(())
            }),
            Fault::Zygote => wait("a zygote", || {
                let zygote = *leaks::zygotes_of(pid).first()?;
                send(zygote, Signal::SIGKILL).then_some(())
            }),
            Fault::Pager => {
                let pager = self.pager();
                assert!(send(pager, Signal::SIGKILL), "the pager was gone");
            }
            Fault::Daemon => self.replace_daemon(),
            Fault::Chunk => {
                let chosen: Vec<Place> =
                    (0..DAMAGED).map(|_| dice.pick(&self.chunks).clone()).collect();
                let bit = 1 << dice.below(8);
                let damaged = Damaged::new(&chosen, bit);
                let begun = Instant::now();
                while begun.elapsed() < lasts {
                    // What is not read again would not be noticed.
                    let _ = self.daemon().home().pager().evict(u64::MAX);
                    std::thread::sleep(Duration::from_millis(100));
                }
                drop(damaged);
            }
            Fault::FullDisk => {
                let disks = self.daemon().home().layout().disks();
                let mut options = OpenOptions::new();
                options.read(true).write(true).custom_flags(libc::O_TMPFILE);
                let file = options.open(disks).expect("an unnamed file");
                fill(&file);
                std::thread::sleep(lasts);
            }
            Fault::FullRun => {
                let full = FullFolder::new(self.daemon().home().layout().run());
                std::thread::sleep(lasts);
                drop(full);
            }
            Fault::SlowStore => {
                let pager = self.pager();
                send(pager, Signal::SIGSTOP);
                std::thread::sleep(lasts);
                assert!(send(pager, Signal::SIGCONT), "the pager was gone");
            }
        }
    }

    fn pager(&self) -> u32 {
        let pager = self.daemon().home().pager();
        wait("a pager", || pager.ping().ok()).pid
    }

    fn replace_daemon(&mut self) {
        let daemon = self.daemon.take().expect("a daemon");
        let pid = daemon.pid();
        let files = daemon.kill();
        let vmms = program::settle(|| leaks::vmms_of(pid), Vec::is_empty);
        assert!(vmms.is_empty(), "VMMs outlive their daemon: {vmms:?}");
        let daemon = Daemon::again(files);
        // Before it answers anybody, it has removed what was left.
        let left = daemon.home().leaks_of(pid);
        assert!(left.is_empty(), "the next daemon has left {left:?}: {}", daemon.log());
        self.killed.push(pid);
        self.daemon = Some(daemon);
    }
}

/// Takes all space that there is, in smaller and smaller pieces.
fn fill(file: &File) {
    let (mut end, mut piece) = (0, 1i64 << 30);
    while piece >= 4096 {
        match fallocate(file, FallocateFlags::empty(), end, piece) {
            Ok(()) => end += piece,
            Err(_) => piece /= 2,
        }
    }
}

/// A folder in whose file system nothing can be made, until this is dropped.
struct FullFolder(Vec<PathBuf>);

impl FullFolder {
    fn new(dir: &Path) -> Self {
        let mut made = Vec::new();
        for n in 0.. {
            let path = dir.join(format!("filler-{n}"));
            let Ok(mut file) = File::create(&path) else { break };
            made.push(path);
            if n == 0 {
                while file.write_all(&[0; 1 << 16]).is_ok() {}
            }
        }
        Self(made)
    }
}

impl Drop for FullFolder {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// Chunks with a flipped bit, until this is dropped.
struct Damaged(Vec<(Place, u8)>);

impl Damaged {
    fn new(places: &[Place], bit: u8) -> Self {
        let mut undo: Vec<(Place, u8)> = Vec::new();
        for place in places {
            if undo.iter().any(|(known, _)| known.pack == place.pack && known.at == place.at) {
                continue;
            }
            let mut byte = [0];
            File::open(&place.pack).and_then(|f| f.read_exact_at(&mut byte, place.at)).unwrap();
            put(place, byte[0] ^ bit);
            undo.push((place.clone(), byte[0]));
        }
        Self(undo)
    }
}

impl Drop for Damaged {
    fn drop(&mut self) {
        for (place, byte) in &self.0 {
            put(place, *byte);
        }
    }
}

fn put(place: &Place, byte: u8) {
    let file = OpenOptions::new().write(true).open(&place.pack).expect("a pack");
    file.write_all_at(&[byte], place.at).expect("a byte of a pack");
}

/// Where chunks are that every session needs: the beginning of the working set.
fn chunks(home: &Home) -> Vec<Place> {
    let store = Store::open_read_only(home.layout().store()).expect("a store");
    let reader = store.reader(&store.manifest(GOLDEN).unwrap(), StreamKind::Ram).unwrap();
    let wanted = store.working_set(GOLDEN).unwrap();
    let known = wanted.iter().filter_map(|n| reader.chunk_id(*n as usize)).take(KNOWN);
    // By their beginnings: each byte of the packs is looked at.
    let ids: HashMap<[u8; 4], _> =
        known.map(|id| (*id.as_bytes().first_chunk().unwrap(), id)).collect();
    let mut places = Vec::new();
    for entry in fs::read_dir(home.layout().store().join("packs")).unwrap().flatten() {
        let pack = entry.path();
        if pack.extension().is_none() {
            continue;
        }
        let bytes = fs::read(&pack).unwrap();
        for (at, window) in bytes.windows(32).enumerate() {
            let id = window.first_chunk().and_then(|begin| ids.get(begin));
            // A record's header ends with the chunk's id.
            if id.is_some_and(|id| id.as_bytes() == window) {
                places.push(Place { pack: pack.clone(), at: at as u64 + 40 });
            }
        }
    }
    assert!(places.len() >= DAMAGED, "{} chunks of the working set in the packs", places.len());
    places
}
