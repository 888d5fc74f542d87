//! Many sessions after each other: nothing wears out, nothing is paid twice.

use std::collections::BTreeMap;
use std::time::Duration;

use mayfly_chaos_tests::home::{GOLDEN, Home};
use mayfly_chaos_tests::{program, slots};
use mayfly_pager::ImageStats;
use mayfly_snapshotter::{Store, StreamKind};

use crate::support::{engine, sh, start};

const SESSIONS: usize = 50;

/// Content of the golden image as its manifest names it: any change of a byte is a change here.
fn digests() -> BTreeMap<String, String> {
    let store = Store::open_read_only(Home::shared().layout().store()).unwrap();
    let manifest = store.manifest(GOLDEN).unwrap();
    let streams = [StreamKind::Ram, StreamKind::Device, StreamKind::Disk];
    let of_stream = |kind| (format!("{kind:?}"), manifest.stream(kind).table_blake3.to_string());
    streams
        .into_iter()
        .map(of_stream)
        .chain([("base".into(), manifest.base_disk.blake3.to_string())])
        .collect()
}

fn page_cache() -> (ImageStats, u64) {
    let stats = Home::shared().pager().host_stats().unwrap();
    let image = stats.images.into_iter().find(|i| i.golden.starts_with(GOLDEN) && !i.recording);
    (image.expect("the page cache of the golden image"), stats.counters.evictions)
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_sessions_change_nothing_and_fault_on_no_page_of_the_working_set() {
    let (engine, golden) = engine().await;
    let _all = slots::take(slots::ALL);
    let before = digests();

    // The first session of the host may pay; it also has the working set fetched.
    let first = start(&engine, &golden).await;
    first.docker_ping().await.unwrap();
    program::settle(page_cache, |(image, _)| image.working_set_absent == 0);
    first.discard().await.unwrap();
    let (image, evictions) = page_cache();
    assert!(image.working_set > 0, "no working set was recorded");
    assert_eq!(image.working_set_absent, 0, "not all of the working set was fetched");

    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut counts = Vec::new();
    let mut fills = Vec::new();
    for turn in 0..SESSIONS {
        let session = start(&engine, &golden).await;
        session.docker_ping().await.unwrap();
        // With all of the working set resident, whatever is filled on a fault now is no part of it.
        let stats = session.pager_stats().await.unwrap();
        assert_eq!((stats.failed, stats.counters.failures), (None, 0));
        fills.push(stats.counters.fills);
        if turn % 10 == 0 {
            assert_eq!(sh(&session, "echo $((40 + 2))").await, "42");
        }
        session.discard().await.unwrap();
        counts.push(descriptors());
    }
    let (image, evictions_after) = page_cache();
    assert_eq!((image.working_set_absent, evictions_after), (0, evictions));
    assert_eq!(image.sessions, 0, "sessions are still attached");
    // A chunk is filled once for all sessions: when a session starts in no new way, it fills
    // nothing.
    let filling = fills.iter().filter(|n| **n > 0).count();
    assert!(filling * 5 <= SESSIONS, "sessions keep filling: {fills:?}");
    // A leak raises the floor. Single counts may be higher: a task may be about to close what its
    // session left.
    assert_eq!(counts[10..20].iter().min(), counts[40..].iter().min(), "descriptors: {counts:?}");

    assert_eq!(digests(), before);
    let verified = Home::shared()
        .mayfly(["--json", "golden", "verify", GOLDEN])
        .limit(Duration::from_secs(100))
        .run();
    assert!(verified.success(), "{verified}");
    let report: serde_json::Value = serde_json::from_str(verified.stdout.trim()).unwrap();
    assert_eq!(report["bad"], serde_json::json!([]));
    assert!(report["chunks"].as_u64() > Some(1000), "{report}");
}
