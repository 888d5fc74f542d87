//! Tests with one writer and any number of readers.

use crate::common::*;
use mayfly_snapshotter::{Error, Store, StreamKind};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

#[test]
fn a_second_writer_is_refused_in_this_process_and_in_another() {
    if let Some(dir) = std::env::var_os("MAYFLY_TEST_SECOND_WRITER") {
        let error = Store::open(&dir).unwrap_err();
        assert!(matches!(error, Error::Locked { .. }), "{error}");
        println!("refused: {error}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("another mayfly process is writing the store"), "{error}");
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "concurrent::a_second_writer_is_refused_in_this_process_and_in_another",
        ])
        .env("MAYFLY_TEST_SECOND_WRITER", dir.path())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && text.contains("refused: another mayfly process"), "{text}");
    drop(store);
    Store::open(dir.path()).unwrap();
}

#[test]
fn read_only_needs_a_store_and_refuses_to_write() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Store::open_read_only(dir.path()), Err(Error::NoStore { .. })));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a refused open left files");
    let writer = Store::open(dir.path()).unwrap();
    Vm::of(&[1]).commit(&writer, "g").unwrap();
    let reader = Store::open_read_only(dir.path()).unwrap();
    assert!(matches!(Vm::of(&[1]).commit(&reader, "h"), Err(Error::ReadOnly { .. })));
    assert!(matches!(reader.remove("g"), Err(Error::ReadOnly { .. })));
    assert!(matches!(reader.set_working_set("g", vec![]), Err(Error::ReadOnly { .. })));
    assert_ram(&reader, "g", &[1]);
}

#[test]
fn a_read_only_view_is_fixed_until_refreshed() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Store::open(dir.path()).unwrap();
    Vm::of(&[1]).commit(&writer, "g").unwrap();
    let reader = Store::open_read_only(dir.path()).unwrap();
    Vm::of(&[2]).commit(&writer, "h").unwrap();
    assert!(matches!(reader.manifest("h"), Err(Error::UnknownGolden { .. })));
    reader.refresh().unwrap();
    assert_ram(&reader, "h", &[2]);
}

#[test]
fn an_old_view_finds_chunks_that_were_moved() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Store::open(dir.path()).unwrap();
    let many: Vec<u64> = (1..101).collect();
    Vm::of(&many).commit(&writer, "a").unwrap();
    Vm::of(&many[90..]).commit(&writer, "b").unwrap();
    let reader = Store::open_read_only(dir.path()).unwrap();
    assert_eq!(writer.remove("a").unwrap().packs_compacted, 1);
    assert_ram(&reader, "b", &many[90..]);
    let reader = Store::open_read_only(dir.path()).unwrap();
    assert_good(&reader, "b");
}

#[test]
fn readers_beside_a_busy_writer_always_see_a_whole_golden() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    // Some chunks stay over versions, so that packs get compacted too.
    let version = |n: u64| -> Vec<u64> {
        (0..32).map(|i| if i < 8 { 1 + i } else { 1000 * n + i }).collect()
    };
    Vm::of(&version(1)).commit(&store, "g").unwrap();
    let stop = AtomicBool::new(false);
    let check = |store: &Store| {
        // Replaced between the two calls is a fair answer; damage never is.
        let manifest = store.manifest("g").unwrap();
        let reader = match store.reader(&manifest, StreamKind::Ram) {
            Err(Error::Stale { .. }) => return false,
            other => other.unwrap(),
        };
        let mut chunk = vec![0; 65_536];
        for i in 0..reader.chunk_count() {
            reader.read_chunk(i, &mut chunk).unwrap();
        }
        true
    };
    let (by_view, by_store) = thread::scope(|scope| {
        let by_view = scope.spawn(|| {
            let mut seen = 0;
            while !stop.load(Ordering::Relaxed) {
                seen += u32::from(check(&Store::open_read_only(dir.path()).unwrap()));
            }
            seen
        });
        let by_store = scope.spawn(|| {
            let mut seen = 0;
            while !stop.load(Ordering::Relaxed) {
                seen += u32::from(check(&store));
            }
            seen
        });
        for n in 2..60 {
            Vm::of(&version(n)).commit(&store, "g").unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        (by_view.join().unwrap(), by_store.join().unwrap())
    });
    assert!(by_view > 0 && by_store > 0, "{by_view} {by_store}");
    assert_no_leftovers(&store);
    assert_good(&store, "g");
}

#[test]
fn an_old_view_and_an_open_reader_go_on_when_a_working_set_is_laid_out() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Store::open(dir.path()).unwrap();
    let seeds: Vec<u64> = (1..101).collect();
    Vm::of(&seeds).commit(&writer, "g").unwrap();
    let view = Store::open_read_only(dir.path()).unwrap();
    let reader = view.reader(&view.manifest("g").unwrap(), StreamKind::Ram).unwrap();
    let before = pack_files(dir.path());
    writer.set_working_set("g", (0..60).rev().collect()).unwrap();
    assert!(pack_files(dir.path()).iter().all(|pack| !before.contains(pack)), "nothing was moved");
    let mut chunk = vec![0; 65_536];
    for (index, seed) in seeds.iter().enumerate() {
        reader.read_ahead(&[u32::try_from(index).unwrap()]);
        reader.read_chunk(index, &mut chunk).unwrap();
        assert!(chunk == noise(*seed));
    }
    // It looks for the chunks where they were, and then where they are.
    assert_ram(&view, "g", &seeds);
    assert_good(&view, "g");
}
