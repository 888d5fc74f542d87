//! Watches, on a directory of this host.

use super::{Agent, errno};
use crate::channel::{FileKind, Watch, WatchEvent, WatchKind, WriteOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn event(kind: WatchKind, path: &str, from: Option<&str>) -> WatchEvent {
    WatchEvent { from: from.map(Into::into), ..WatchEvent::new(kind, path) }
}

/// Reads events until `wanted` comes; those before it.
async fn until(watch: &mut Watch, wanted: WatchEvent) -> Vec<WatchEvent> {
    let mut before = Vec::new();
    loop {
        let event = watch
            .next()
            .await
            .unwrap()
            .unwrap_or_else(|| panic!("the watch ended before {wanted:?}"));
        if (WatchEvent { entry: None, ..event.clone() }) == wanted {
            return before;
        }
        before.push(event);
    }
}

#[tokio::test]
async fn each_change_is_told_by_its_name() {
    use WatchKind::{Created, Modified, Removed, Renamed};
    let (_agent, channel) = Agent::open().await;
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::create_dir(path("sub")).unwrap();
    let mut watch = channel.watch(directory.path(), false).await.unwrap();
    std::fs::write(path("file"), "").unwrap();
    let created = WatchEvent { entry: Some(FileKind::File), ..event(Created, "file", None) };
    assert_eq!(watch.next().await.unwrap(), Some(created));
    std::fs::write(path("file"), "content").unwrap();
    until(&mut watch, event(Modified, "file", None)).await;
    std::fs::rename(path("file"), path("moved")).unwrap();
    until(&mut watch, event(Renamed, "moved", Some("file"))).await;
    // Moved out of what is watched, and in again.
    std::fs::rename(path("moved"), path("sub/moved")).unwrap();
    until(&mut watch, event(Removed, "moved", None)).await;
    std::fs::rename(path("sub/moved"), path("back")).unwrap();
    until(&mut watch, event(Created, "back", None)).await;
    std::fs::remove_file(path("back")).unwrap();
    let before = until(&mut watch, event(Removed, "back", None)).await;
    assert!(before.iter().all(|event| !event.path.as_bytes().contains(&b'/')), "{before:?}");
    std::fs::remove_dir_all(directory.path()).unwrap();
    until(&mut watch, event(Removed, "", None)).await;
    assert_eq!(watch.next().await.unwrap(), None);
    assert_eq!(watch.next().await.unwrap(), None);
    channel.health().await.unwrap();
}

#[tokio::test]
async fn directories_made_moved_and_lost_later_are_followed() {
    use WatchKind::{Created, Modified, Removed, Renamed};
    let (_agent, channel) = Agent::open().await;
    let directory = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::create_dir_all(path("old/deep")).unwrap();
    let mut watch = channel.watch(directory.path(), true).await.unwrap();
    std::fs::write(path("old/deep/file"), "x").unwrap();
    until(&mut watch, event(Created, "old/deep/file", None)).await;
    // What is made faster than the watch is told, too.
    std::fs::create_dir_all(path("new/a/b")).unwrap();
    std::fs::write(path("new/a/b/file"), "x").unwrap();
    let before = until(&mut watch, event(Created, "new/a/b/file", None)).await;
    for made in ["new", "new/a", "new/a/b"] {
        let made = WatchEvent { entry: Some(FileKind::Directory), ..event(Created, made, None) };
        assert!(before.contains(&made), "{made:?}: {before:?}");
    }
    std::fs::rename(path("new"), path("old/renamed")).unwrap();
    until(&mut watch, event(Renamed, "old/renamed", Some("new"))).await;
    std::fs::write(path("old/renamed/a/b/file"), "y").unwrap();
    until(&mut watch, event(Modified, "old/renamed/a/b/file", None)).await;
    // Moved outside, it is not ours any more.
    std::fs::rename(path("old/renamed"), outside.path().join("gone")).unwrap();
    until(&mut watch, event(Removed, "old/renamed", None)).await;
    std::fs::write(outside.path().join("gone/a/b/other"), "z").unwrap();
    std::fs::write(path("last"), "").unwrap();
    let before = until(&mut watch, event(Created, "last", None)).await;
    assert!(before.iter().all(|event| !event.path.as_bytes().ends_with(b"other")), "{before:?}");
}

#[tokio::test]
async fn one_file_can_be_watched() {
    let (_agent, channel) = Agent::open().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let mut watch = channel.watch(&file, true).await.unwrap();
    std::fs::write(&file, "x").unwrap();
    until(&mut watch, event(WatchKind::Modified, "", None)).await;
    std::fs::remove_file(&file).unwrap();
    until(&mut watch, event(WatchKind::Removed, "", None)).await;
    assert_eq!(watch.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_flush_has_what_has_happened_and_tells_it_apart() {
    use WatchKind::{Attributes, Closed, Created, Modified, Removed, Renamed};
    let (_agent, channel) = Agent::open().await;
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let mut watch = channel.watch(directory.path(), false).await.unwrap();
    let flushed = |events: Vec<WatchEvent>| {
        events.into_iter().map(|event| (event.kind, event.path.to_string())).collect::<Vec<_>>()
    };
    let in_place = WriteOptions { in_place: true, ..WriteOptions::default() };
    let file = |kind| (kind, "file".to_owned());
    assert!(watch.flush().await.unwrap().events.is_empty());
    for round in 0..20 {
        channel.write_with(path("file"), in_place.clone(), &mut &b"x"[..]).await.unwrap();
        let seen = flushed(watch.flush().await.unwrap().events);
        let first = if round == 0 { file(Created) } else { file(Modified) };
        assert_eq!((&seen[0], seen.last()), (&first, Some(&file(Closed))), "{seen:?}");
        assert!(seen.contains(&file(Modified)) && !seen.contains(&file(Attributes)), "{seen:?}");
    }
    std::fs::set_permissions(path("file"), std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(flushed(watch.flush().await.unwrap().events), [file(Attributes)]);
    std::fs::rename(path("file"), path("moved")).unwrap();
    std::fs::create_dir(path("sub")).unwrap();
    std::fs::remove_dir(path("sub")).unwrap();
    // One that is given up loses nothing.
    drop(futures::FutureExt::now_or_never(watch.flush()));
    let events = watch.flush().await.unwrap().events;
    assert_eq!(events[0].from, Some("file".into()));
    let last = events.last().unwrap();
    assert_eq!((last.kind, last.entry), (Removed, Some(FileKind::Directory)));
    let kinds: Vec<_> = events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [Renamed, Created, Removed]);
    std::fs::remove_file(path("moved")).unwrap();
    drop(futures::FutureExt::now_or_never(watch.flush()));
    until(&mut watch, event(Removed, "moved", None)).await;
    for n in 0..3000 {
        std::fs::write(path(&n.to_string()), "x").unwrap();
    }
    let many = watch.flush().await.unwrap();
    assert_eq!(many.events.iter().filter(|event| event.kind == Created).count(), 3000);
    std::fs::remove_dir_all(directory.path()).unwrap();
    assert!(watch.flush().await.unwrap().ended);
    assert!(watch.flush().await.unwrap().events.is_empty());
    assert_eq!(watch.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_missing_path_is_an_error() {
    let (_agent, channel) = Agent::open().await;
    assert_eq!(errno(channel.watch("/nonexistent", true).await), libc::ENOENT);
}

#[tokio::test]
async fn events_nobody_takes_end_in_an_overflow() {
    let (agent, channel) = Agent::open().await;
    let directory = tempfile::tempdir().unwrap();
    let queue = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let queue: usize = queue.trim().parse().unwrap();
    let mut watch = channel.watch(directory.path(), false).await.unwrap();
    // More than the kernel, the agent and the stream hold together; two names, so that no two
    // events are the same.
    let name = |n: usize| {
        directory.path().join("x".repeat(200) + if n.is_multiple_of(2) { "a" } else { "b" })
    };
    std::fs::write(name(0), "").unwrap();
    for n in 0..queue + 50_000 {
        std::fs::rename(name(n), name(n + 1)).unwrap();
    }
    until(&mut watch, event(WatchKind::Overflow, "", None)).await;
    assert!(agent.resident() < 64 << 20);
    // And it goes on.
    std::fs::write(directory.path().join("after"), "").unwrap();
    until(&mut watch, event(WatchKind::Created, "after", None)).await;
}

#[tokio::test]
async fn a_dropped_watch_leaves_no_descriptor() {
    let (agent, channel) = Agent::open().await;
    let directory = tempfile::tempdir().unwrap();
    channel.health().await.unwrap();
    let before = agent.descriptors();
    let watches = futures::future::join_all(
        (0..50).map(|_| channel.watch(Path::new(directory.path()), true)),
    )
    .await;
    assert!(watches.iter().all(Result::is_ok));
    assert_eq!(agent.descriptors(), before + 50);
    drop(watches);
    while agent.descriptors() != before {
        channel.health().await.unwrap();
    }
}
