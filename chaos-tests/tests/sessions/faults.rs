//! Guests whose memory is taken from the page cache again and again while they use it. Under KVM
//! their faults are waited for by threads of the kernel, which no kill of a VMM reaches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mayfly_chaos_tests::home::{GOLDEN, Home};
use mayfly_chaos_tests::slots;
use mayfly_engine::Engine;
use mayfly_guest::channel::ExecRequest;
use mayfly_host::time_scale::scaled;
use mayfly_pager::client::PagerClient;

use crate::support::{sh, start};

/// Evicts everything from a page cache of the test's own, over and over, until it is dropped.
struct Thief {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Thief {
    fn start(pager: PagerClient) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut bytes = 0;
            while !stopped.load(Ordering::Relaxed) {
                bytes += pager.evict(u64::MAX).unwrap_or(0);
                // As often as pages come on this host.
                std::thread::sleep(scaled(Duration::from_millis(50)));
            }
            bytes
        });
        Self { stop, thread: Some(thread) }
    }

    /// Bytes that were taken.
    fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Thief {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Writes to each page of so many MiB, and reads them back.
const TOUCH: &str = r#"my $n = $ARGV[0] << 20; my $x = "\0" x $n; my $sum = 0;
for (my $i = 0; $i < $n; $i += 4096) { substr($x, $i, 1) = "\1"; }
for (my $i = 0; $i < $n; $i += 4096) { $sum += ord(substr($x, $i, 1)); }
print $sum;"#;
/// What is in uninterruptible sleep in each of five looks within 2 s: what waits for a page that
/// does not come.
const STUCK: &str = r#"look() { cat /proc/[0-9]*/stat 2>/dev/null | sed -n 's/^\([0-9]*\) (\(.*\)) D .*/\1 \2/p' | sort; }
all=$(look); for n in 1 2 3 4; do sleep 0.5; all=$(look | grep -Fx "$all"); done; echo "$all""#;

#[tokio::test(flavor = "multi_thread")]
async fn no_task_waits_for_ever_for_its_page() {
    let home = Home::aside();
    let _all = slots::take(slots::ALL);
    let engine = Engine::open(home.layout().clone()).await.unwrap();
    let golden = engine.golden(GOLDEN).await.unwrap();
    let session = start(&engine, &golden).await;
    // Most of what is free, by eight processes at once.
    let free = "awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo";
    let each = sh(&session, free).await.parse::<u64>().unwrap() * 3 / 4 / 8;
    let thief = Thief::start(home.pager());
    let mut running = Vec::new();
    for _ in 0..8 {
        let request = ExecRequest::new(["perl", "-e", TOUCH, &each.to_string()]);
        running.push(session.guest().exec(request).await.unwrap());
    }
    for one in running {
        let output = session.guarded(one.output()).await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text, (each * 256).to_string(), "{output:?}");
    }
    session.docker_ping().await.unwrap();
    assert!(thief.end() > 0, "nothing was taken from the guest");
    assert_eq!(sh(&session, STUCK).await, "");
    // The guest does not even know that there are such faults (arch/x86/kernel/kvm.c).
    assert_eq!(sh(&session, "dmesg | grep -ic 'async PF' || true").await, "0");
    let stats = session.pager_stats().await.unwrap();
    assert_eq!((stats.failed, stats.counters.failures), (None, 0));
    session.discard().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_discarded_amid_faults_harm_no_sibling() {
    let home = Home::aside();
    let _all = slots::take(slots::ALL);
    let engine = Engine::open(home.layout().clone()).await.unwrap();
    let golden = engine.golden(GOLDEN).await.unwrap();
    let sibling = start(&engine, &golden).await;
    let thief = Thief::start(home.pager());
    for turn in 0..10 {
        let victim = start(&engine, &golden).await;
        let busy = victim.guest().exec(ExecRequest::new(["docker", "info"])).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20 * turn)).await;
        victim.discard().await.unwrap();
        drop(busy);
    }
    assert!(thief.end() > 0, "nothing was taken from the guests");
    assert_eq!(sh(&sibling, "echo $((40 + 2))").await, "42");
    sibling.docker_ping().await.unwrap();
    let stats = sibling.pager_stats().await.unwrap();
    assert_eq!((stats.failed, stats.counters.failures), (None, 0));
    sibling.discard().await.unwrap();
}
