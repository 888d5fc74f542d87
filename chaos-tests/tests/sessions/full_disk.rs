//! A host whose disk runs full under its sessions.

use std::time::Duration;

use mayfly_chaos_tests::home::{GOLDEN, Home};
use mayfly_chaos_tests::slots;
use mayfly_engine::{Engine, Session};
use mayfly_guest::channel::ExecRequest;
use mayfly_host::time_scale::scaled;

use crate::support::{sh, start};

/// Space for the disks of both sessions together, in bytes: less than one may take.
const SPACE: u64 = 256 << 20;
/// What each writes, in MiB.
const WANTED: u64 = 512;
/// It only ends what hangs.
const LIMIT: Duration = Duration::from_secs(300);

/// Writes past the guest's page cache; returns whether that failed, and what was said.
async fn fill(session: &Session) -> (bool, String) {
    let script = format!("exec dd if=/dev/zero of=/root/fill bs=1M count={WANTED} conv=fsync 2>&1");
    let request = ExecRequest::new(["/bin/sh", "-c", &script]);
    let run = async { session.guest().exec(request).await?.output().await };
    let output = tokio::time::timeout(scaled(LIMIT), session.guarded(run)).await;
    let output = output.expect("the command hangs").expect("the command ends");
    (!output.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_host_is_an_error_in_guests_that_run_on() {
    let home = match Home::with_small_disks(SPACE) {
        Ok(home) => home,
        Err(lacking) => return mayfly_skip::skip(format!("no small ext4: {lacking}")),
    };
    let _all = slots::take(slots::ALL);
    let engine = Engine::open(home.layout().clone()).await.unwrap();
    let golden = engine.golden(GOLDEN).await.unwrap();
    let (first, second) = (start(&engine, &golden).await, start(&engine, &golden).await);
    let promised = engine.disk_usage().unwrap();
    assert!(promised.promised_bytes > 2 * SPACE && promised.available_bytes < SPACE);
    let outcomes = tokio::join!(fill(&first), fill(&second));
    for (failed, said) in [&outcomes.0, &outcomes.1] {
        assert!(*failed && said.contains("Input/output error"), "{said}");
    }
    let full = engine.disk_usage().unwrap();
    assert!(full.available_bytes < SPACE / 16, "{full:?}");
    for session in [&first, &second] {
        assert_eq!(sh(session, "echo $((40 + 2)); dmesg | grep -q 'I/O error'").await, "42");
    }
    // One that goes gives its space back, and another starts in it.
    first.discard().await.unwrap();
    let third = start(&engine, &golden).await;
    assert_eq!(
        sh(&third, "dd if=/dev/zero of=/root/some bs=1M count=8 conv=fsync 2>/dev/null; echo $?")
            .await,
        "0"
    );
    third.discard().await.unwrap();
    second.discard().await.unwrap();
}
