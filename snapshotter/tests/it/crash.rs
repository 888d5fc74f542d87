//! A writer killed at any point leaves the old state or the new one.

use crate::common::*;
use mayfly_snapshotter::{Store, StreamKind, Usage};
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

const ROUNDS: usize = 40;
const CHUNKS: u64 = 64;

/// Makes version `n` of the RAM: a quarter changes every fifth version only, so that packs thin out
/// and get compacted.
pub fn version(n: u64) -> Vec<u64> {
    (0..CHUNKS)
        .map(|i| if i < CHUNKS / 4 { 1 + (n / 5) * 1_000_000 + i } else { 500_000 + n * 1000 + i })
        .collect()
}

pub fn working_set(n: u64) -> Vec<u32> {
    (0..=(n % CHUNKS) as u32).collect()
}

fn present(store: &Store) -> Option<u64> {
    let list = store.list().unwrap();
    let golden = list.iter().find(|m| &*m.name == "g")?;
    Some(golden.labels["n"].parse().unwrap())
}

/// Commits version after version until it is killed, and says what it is doing.
fn writer(dir: &std::ffi::OsStr) -> ! {
    let store = Store::open(dir).unwrap();
    let mut out = std::io::stdout().lock();
    let mut say = |word: &str, n: u64| {
        // In one write: a line is either said or not.
        out.write_all(format!("\n{word} {n}\n").as_bytes()).unwrap();
        out.flush().unwrap();
    };
    let mut n = present(&store).map_or(0, |n| n + 1);
    loop {
        let vm = Vm::of(&version(n));
        let mut snapshot = vm.snapshot("g");
        snapshot.labels.insert("n".to_owned(), n.to_string());
        say("begin", n);
        store.commit(snapshot, &mut |_| {}, &NEVER).unwrap();
        say("done", n);
        store.set_working_set("g", working_set(n)).unwrap();
        if n.is_multiple_of(3) {
            Vm::of(&version(n)[8..24]).commit(&store, "h").unwrap();
        } else if n % 3 == 1 && store.manifest("h").is_ok() {
            store.remove("h").unwrap();
        }
        n += 1;
    }
}

/// A process that commits version after version.
pub struct Writer {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    began: u64,
    done: Option<u64>,
}

impl Writer {
    /// Starts it, and waits until it has begun.
    pub fn start(dir: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "crash::a_killed_writer_leaves_the_old_state_or_the_new",
            ])
            .env("MAYFLY_TEST_CRASH_DIR", dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let began = lines
            .by_ref()
            .find_map(|l| l.unwrap().strip_prefix("begin ").map(|n| n.parse().unwrap()));
        Self { child, lines, began: began.expect("the writer ended on its own"), done: None }
    }

    /// Waits until it has committed a version.
    pub fn wait_for_commit(&mut self) {
        let done = self
            .lines
            .by_ref()
            .find_map(|l| l.unwrap().strip_prefix("done ").map(|n| n.parse().unwrap()));
        self.done = Some(done.expect("the writer ended on its own"));
    }

    /// Kills it. The last version it said was committed, and the last it began.
    pub fn kill(&mut self) -> (Option<u64>, u64) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let (mut done, mut begun) = (self.done, self.began);
        for line in self.lines.by_ref().map(|l| l.unwrap()) {
            if let Some(n) = line.strip_prefix("done ") {
                done = Some(n.parse().unwrap());
            } else if let Some(n) = line.strip_prefix("begin ") {
                begun = n.parse().unwrap();
            }
        }
        (done, begun)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // A test that fails leaves no process.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asserts that all of a store that a writer left is right; returns the version that is there.
fn assert_whole(dir: &Path) -> Option<u64> {
    let store = Store::open(dir).unwrap();
    let found = present(&store);
    for golden in store.list().unwrap() {
        assert_good(&store, &golden.name);
    }
    assert_no_leftovers(&store);
    if let Some(n) = found {
        assert_ram(&store, "g", &version(n));
        let manifest = store.manifest("g").unwrap();
        let set = store.working_set("g").unwrap();
        assert_eq!(set.len() as u64, manifest.working_set_chunks);
        assert!(set.is_empty() || set == working_set(n));
        assert_eq!(store.reader(&manifest, StreamKind::Device).unwrap().len(), 12);
    }
    found
}

#[test]
fn a_killed_writer_leaves_the_old_state_or_the_new() {
    if let Some(dir) = std::env::var_os("MAYFLY_TEST_CRASH_DIR") {
        writer(&dir);
    }
    // What an emulated host asks after it has lost its power while a writer ran: the folder, and
    // the last version of which the writer said that it was committed.
    if let Some(dir) = std::env::var_os("MAYFLY_TEST_CRASH_CHECK") {
        let done = std::env::var("MAYFLY_TEST_CRASH_DONE").ok().map(|n| n.parse::<u64>().unwrap());
        let found = assert_whole(Path::new(&dir));
        assert!(found >= done, "{done:?} was acknowledged, {found:?} is there");
        println!("found {found:?}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut before = None;
    for round in 0..ROUNDS {
        let mut writer = Writer::start(dir.path());
        sleep(Duration::from_micros(rand::random_range(0..150_000)));
        let (acknowledged, last_begun) = writer.kill();
        let done = acknowledged.or(before);

        let found = assert_whole(dir.path());
        assert!(
            found == done || found == Some(last_begun),
            "round {round}: {done:?} was acknowledged, {last_begun} begun, {found:?} is there"
        );
        before = found;
    }
    assert!(before.is_some_and(|n| n > 0), "no commit was ever finished");

    // No reference was lost or invented on the way: removing everything leaves nothing.
    let store = Store::open(dir.path()).unwrap();
    for golden in store.list().unwrap() {
        store.remove(&golden.name).unwrap();
    }
    assert_eq!(store.usage().unwrap(), Usage::default());
    assert_eq!(pack_files(dir.path()), Vec::<String>::new());
}
