//! Readers opened before, during and after commits, the writing back of the log, and the death of
//! the writer.

use crate::common::*;
use crate::crash;
use mayfly_snapshotter::{Error, Manifest, Store, StreamKind};
use nix::fcntl::{FcntlArg, fcntl};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

const ROUNDS: usize = 25;

fn log_bytes(dir: &Path) -> u64 {
    std::fs::metadata(dir.join("db/store.sqlite-wal")).map_or(0, |m| m.len())
}

/// Commits version `n` with so much metadata that the log grows beyond what is written back by
/// itself.
fn commit_large(store: &Store, n: u64) {
    let vm = Vm::of(&[n, n + 1]);
    let mut snapshot = vm.snapshot("g");
    snapshot.labels.insert("notes".to_owned(), n.to_string().repeat(6 << 20));
    store.commit(snapshot, &mut |_| {}, &NEVER).unwrap();
}

fn notes(store: &Store) -> String {
    store.manifest("g").unwrap().labels["notes"][..3].to_owned()
}

#[test]
fn a_view_outlives_the_writing_back_of_the_log_which_then_shrinks() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Store::open(dir.path()).unwrap();
    commit_large(&writer, 101);
    let before = Store::open_read_only(dir.path()).unwrap();
    commit_large(&writer, 102);
    let during = Store::open_read_only(dir.path()).unwrap();
    let database = std::fs::metadata(dir.path().join("db/store.sqlite")).unwrap().len();
    for n in 103..106 {
        commit_large(&writer, n);
    }
    assert!(database > 4 << 20, "nothing was written back beside a reader");
    let after = Store::open_read_only(dir.path()).unwrap();
    assert_eq!([notes(&before), notes(&during), notes(&after)], ["101", "102", "105"]);
    assert!(log_bytes(dir.path()) > 12 << 20, "a log that readers need was begun anew");
    before.refresh().unwrap();
    assert_eq!(notes(&before), "105");
    assert_ram(&before, "g", &[105, 106]);
    drop((before, during, after));

    // Written back, then begun anew and cut.
    for n in [201, 202, 203] {
        Vm::of(&[n]).commit(&writer, "small").unwrap();
    }
    let bytes = log_bytes(dir.path());
    assert!(bytes <= 5 << 20, "{bytes}");
    drop(writer);
    assert_eq!(log_bytes(dir.path()), 0, "the last writer left a log");
    let reader = Store::open_read_only(dir.path()).unwrap();
    assert_eq!(notes(&reader), "105");
    assert_ram(&reader, "small", &[203]);
}

#[test]
fn a_view_survives_that_the_store_is_closed_and_opened_for_writing() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path()).unwrap());
    let mut views = Vec::new();
    for n in 1..6 {
        let writer = Store::open(dir.path()).unwrap();
        Vm::of(&[n]).commit(&writer, "g").unwrap();
        views.push(Store::open_read_only(dir.path()).unwrap().manifest("g").unwrap());
        let view = Store::open_read_only(dir.path()).unwrap();
        drop(writer);
        let writer = Store::open(dir.path()).unwrap();
        Vm::of(&[100 + n]).commit(&writer, "g").unwrap();
        assert_eq!(view.manifest("g").unwrap(), views[views.len() - 1]);
        drop(writer);
        assert_eq!(view.manifest("g").unwrap(), views[views.len() - 1]);
        view.refresh().unwrap();
        assert_ram(&view, "g", &[100 + n]);
    }
}

/// The version that `store` shows, checked to be whole and of one piece. `None` when it was
/// replaced while it was read.
fn whole(store: &Store) -> Option<(u64, Manifest)> {
    let manifest = match store.manifest("g") {
        Err(Error::UnknownGolden { .. }) => return None,
        other => other.unwrap(),
    };
    let n: u64 = manifest.labels["n"].parse().unwrap();
    let set = store.working_set("g").unwrap();
    assert_eq!(
        set.len() as u64,
        manifest.working_set_chunks,
        "manifest and working set are of two states"
    );
    assert!(set.is_empty() || set == crash::working_set(n));
    let reader = match store.reader(&manifest, StreamKind::Ram) {
        Err(Error::Stale { .. }) => return None,
        other => other.unwrap(),
    };
    let expected = crash::version(n);
    assert_eq!(reader.chunk_count(), expected.len());
    let mut chunk = vec![0; 65_536];
    for i in [0, 20, expected.len() - 1] {
        reader.read_chunk(i, &mut chunk).unwrap();
        assert!(chunk == noise(expected[i]), "chunk {i} of version {n} has other bytes");
    }
    Some((n, manifest))
}

/// Ends the readers when it goes.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn readers_beside_a_writer_that_dies_see_a_whole_golden() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path()).unwrap());
    let stop = AtomicBool::new(false);
    let (seen, newest) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let view = Store::open_read_only(dir.path()).unwrap();
                    if let Some((n, _)) = whole(&view) {
                        seen.fetch_add(1, Ordering::Relaxed);
                        newest.fetch_max(n, Ordering::Relaxed);
                    }
                }
            });
        }
        // Also when an assertion fails.
        let _stop = Stop(&stop);
        let mut possible = vec![0];
        for round in 0..ROUNDS {
            let mut writer = crash::Writer::start(dir.path());
            // Each other round at least one version more, however slow the disk is.
            if round % 2 == 1 {
                writer.wait_for_commit();
            }
            sleep(Duration::from_micros(rand::random_range(0..60_000)));
            let held = Store::open_read_only(dir.path()).unwrap();
            let before = held.manifest("g").ok();
            sleep(Duration::from_micros(rand::random_range(0..60_000)));
            let (done, begun) = writer.kill();
            // Nobody has opened it for writing since: what is there, readers make of the log.
            assert_eq!(held.manifest("g").ok(), before, "round {round}: the view moved");
            let after = Store::open_read_only(dir.path()).unwrap();
            if let Some((n, manifest)) = whole(&after) {
                possible.extend(done);
                possible.push(begun);
                assert!(
                    possible.contains(&n),
                    "round {round}: {n} is there, {done:?} was done, {begun} begun"
                );
                assert!(
                    done.is_none_or(|done| n >= done),
                    "round {round}: {done:?} was done, {n} is there"
                );
                held.refresh().unwrap();
                assert_eq!(held.manifest("g").unwrap(), manifest);
                // A commit that nobody saw may be found in the log later, as long as no writer has
                // been there.
                possible = vec![n, begun];
            }
        }
    });
    assert!(seen.into_inner() > 0 && newest.into_inner() > 0);
    let store = Store::open(dir.path()).unwrap();
    assert_good(&store, "g");
    assert_no_leftovers(&store);
}

/// As another reader that has the index of the log open: holds its lock (`UNIX_SHM_DMS` of SQLite's
/// `os_unix.c`) until its standard input ends.
#[expect(clippy::cast_possible_truncation, reason = "F_RDLCK is a small number")]
fn hold_index(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    // SAFETY: flock is plain integers, for which zeros are valid.
    let mut lock: nix::libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = nix::libc::F_RDLCK as nix::libc::c_short;
    (lock.l_start, lock.l_len) = (128, 1);
    fcntl(&file, FcntlArg::F_SETLK(&lock)).unwrap();
    println!("held");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn a_commit_that_is_in_the_log_and_not_in_its_index_never_comes_back_without_its_packs() {
    if let Some(path) = std::env::var_os("MAYFLY_TEST_HOLD_INDEX") {
        hold_index(Path::new(&path));
        return;
    }
    // A writer that dies between the two leaves the log of the second commit with the index of the
    // first.
    let dir = tempfile::tempdir().unwrap();
    let [source, died, later] = ["source", "died", "later"].map(|name| dir.path().join(name));
    let index = died.join("db/store.sqlite-shm");
    let writer = Store::open(&source).unwrap();
    Vm::of(&[1]).commit(&writer, "g").unwrap();
    copy(&source, &dir.path().join("first"));
    Vm::of(&[1, 2]).commit(&writer, "g").unwrap();
    copy(&source, &died);
    std::fs::copy(dir.path().join("first/db/store.sqlite-shm"), &index).unwrap();
    let mut reader = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("readers::a_commit_that_is_in_the_log_and_not_in_its_index_never_comes_back_without_its_packs")
        .env("MAYFLY_TEST_HOLD_INDEX", &index)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(reader.stdout.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap() == "held"));
    assert_ram(&Store::open_read_only(&died).unwrap(), "g", &[1]);

    // The next writer does not see it, and deletes the packs that nobody refers to. It dies as
    // well.
    let next = Store::open(&died).unwrap();
    assert_ram(&next, "g", &[1]);
    assert_eq!(pack_files(&died).len(), 1);
    copy(&died, &later);
    drop(reader.stdin.take());
    assert!(reader.wait().unwrap().success());
    std::fs::remove_file(later.join("db/store.sqlite-shm")).unwrap();
    for store in [Store::open_read_only(&later), Store::open(&later)] {
        let store = store.unwrap();
        assert_ram(&store, "g", &[1]);
        assert_good(&store, "g");
    }
}
