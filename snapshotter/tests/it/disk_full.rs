//! A full file system: a small tmpfs in a mount namespace of a child process, so nothing is left
//! mounted.

use crate::common::*;
use mayfly_snapshotter::{Error, Store};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// Writes until nothing fits any more.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for size in [1 << 16, 1 << 12, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
}

fn in_small_tmpfs(dir: &Path) {
    let none = None::<&str>;
    // Root is needed for this test, as for the product.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some("size=40m")).unwrap();
    let dir = &dir.join("store");

    let store = Store::open(dir).unwrap();
    let small: Vec<u64> = (1..40).collect();
    Vm::of(&small).commit(&store, "a").unwrap();
    let big = Vm::of(&(1000..2000).collect::<Vec<_>>());
    let error = big.commit(&store, "b").unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("mayfly golden rm"), "{error}");
    let error = big.commit(&store, "a").unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    assert_no_leftovers(&store);
    assert_ram(&store, "a", &small);
    // With room again, the same store goes on.
    Vm::of(&[7, 50]).commit(&store, "b").unwrap();

    // A working set is recorded also where its chunks cannot be copied: 1 MiB is too little.
    let most = dir.with_file_name("most");
    fill(&most);
    let file = File::options().write(true).open(&most).unwrap();
    file.set_len(file.metadata().unwrap().len() - (1 << 20)).unwrap();
    let packs = pack_files(dir);
    store.set_working_set("a", (0..39).rev().collect()).unwrap();
    assert_eq!((store.working_set("a").unwrap().len(), pack_files(dir)), (39, packs));
    assert_good(&store, "a");
    assert_no_leftovers(&store);
    std::fs::remove_file(&most).unwrap();
    store.set_working_set("a", (0..39).rev().collect()).unwrap();
    assert_no_leftovers(&store);
    assert_ram(&store, "a", &small);

    // Now the database itself runs out of space.
    let filler = dir.with_file_name("filler");
    fill(&filler);
    // No new chunk, but more metadata than the log can have set aside for itself.
    let vm = Vm::of(&small);
    let mut snapshot = vm.snapshot("a");
    snapshot.labels.insert("notes".to_owned(), "x".repeat(24 << 20));
    let error = store.commit(snapshot, &mut |_| {}, &NEVER).unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    assert_ram(&store, "a", &small);
    assert_ram(&store, "b", &[7, 50]);
    drop(store);

    // Removing a golden image is the advice given, so it has to work on a full disk.
    fill(&filler.with_extension("2"));
    let store = Store::open(dir).unwrap();
    assert_ram(&store, "a", &small);
    store.remove("a").unwrap();
    assert_ram(&store, "b", &[7, 50]);
    drop(store);

    std::fs::remove_file(&filler).unwrap();
    let store = Store::open(dir).unwrap();
    assert_good(&store, "b");
    assert_no_leftovers(&store);
    Vm::of(&small).commit(&store, "a").unwrap();
    assert_good(&store, "a");
}

#[test]
#[ignore = "needs root"]
fn a_full_disk_is_a_typed_error_and_what_was_stored_stays() {
    if let Some(dir) = std::env::var_os("MAYFLY_TEST_SMALL_DISK") {
        in_small_tmpfs(Path::new(&dir));
        println!("survived");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--include-ignored",
            "--nocapture",
            "disk_full::a_full_disk_is_a_typed_error_and_what_was_stored_stays",
        ])
        .env("MAYFLY_TEST_SMALL_DISK", dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && text.contains("survived"), "{text}");
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "something was written beside the mount"
    );
}
