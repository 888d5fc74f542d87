//! The wall clock of a guest: with that of the host, whatever happens to either.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mayfly_chaos_tests::slots;
use mayfly_engine::Session;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{engine, sh, start};

/// How far off a guest may be.
const BOUND: Duration = Duration::from_millis(50);
/// Longest wait for a clock to be right. It only ends what never gets right.
const LIMIT: Duration = Duration::from_secs(120);

/// How far the guest's clock may be from the host's, at least and at most, by what date(1) says in
/// a command that ran between two looks at the host's.
async fn offset(session: &Session) -> (Duration, Duration) {
    let before = SystemTime::now();
    let guest = sh(session, "date +%s%N").await;
    let after = SystemTime::now();
    let guest = UNIX_EPOCH + Duration::from_nanos(guest.parse().unwrap());
    let behind = before.duration_since(guest).unwrap_or_default();
    let ahead = guest.duration_since(after).unwrap_or_default();
    (behind.max(ahead), behind.max(ahead) + after.duration_since(before).unwrap_or_default())
}

/// Waits until the guest's clock is right for sure: the command was quick enough to tell.
async fn until_right(session: &Session, after: &str) {
    let begun = Instant::now();
    loop {
        let (least, most) = offset(session).await;
        if most <= BOUND {
            return;
        }
        assert!(begun.elapsed() < LIMIT, "{least:?} to {most:?} off after {after}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_has_the_hosts_time_again_after_a_pause_and_after_it_set_its_own() {
    let (engine, golden) = engine().await;
    let _slot = slots::take(1);
    let session = start(&engine, &golden).await;
    until_right(&session, "its start").await;
    let boot = "cut -d. -f1 /proc/uptime";
    let uptime: u64 = sh(&session, boot).await.parse().unwrap();

    session.pause().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    session.resume().await.unwrap();
    until_right(&session, "a pause").await;

    let vmm = Pid::from_raw(session.vmm_pid().cast_signed());
    kill(vmm, Signal::SIGSTOP).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    kill(vmm, Signal::SIGCONT).unwrap();
    until_right(&session, "its VMM was stopped").await;

    for set in ["2001-02-03", "+20 minutes", "-40 milliseconds"] {
        sh(&session, &format!("date -s \"$(date -d '{set}' '+%F %T.%N')\"")).await;
        // Else it is looked at within half a minute.
        session.pause().await.unwrap();
        session.resume().await.unwrap();
        until_right(&session, &format!("it set its clock to {set}")).await;
    }
    // Timers have seen nothing of it.
    let later: u64 = sh(&session, boot).await.parse().unwrap();
    assert!(later >= uptime && later < uptime + 600, "{uptime} {later}");
    session.discard().await.unwrap();
}
