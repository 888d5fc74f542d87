//! Goldens that are built again or removed while a daemon has standbys of them.

use std::time::Duration;

use mayfly_chaos_tests::daemon::Daemon;
use mayfly_chaos_tests::home::{GOLDEN, Home};
use mayfly_chaos_tests::slots;

use crate::support::{SMALL_POOL, client, refusal, request, sh};

/// When the golden of a session was booted: when its Docker daemon began to listen.
const MARK: &str = "stat -c %Y /run/docker.sock";

#[tokio::test(flavor = "multi_thread")]
async fn from_the_end_of_a_build_on_sessions_are_of_the_new_golden_and_after_a_removal_there_is_none()
 {
    let _slots = slots::take(slots::ALL);
    let daemon = Daemon::with_home(Home::with_golden_and_images(), SMALL_POOL);
    let client = client(&daemon);
    daemon.until_standbys(GOLDEN, 1);
    let old = client.create(&request(), None).await.unwrap();
    let old_mark = sh(&client, &old.id, MARK).await;
    daemon.until_standbys(GOLDEN, 1);

    let build = ["-q", "golden", "build", "--rebuild", "--accel", "tcg", "--boot-timeout", "400"];
    let built = daemon.home().mayfly(build).limit(Duration::from_secs(900)).run();
    assert!(built.success(), "{built}");
    let new = client.create(&request(), None).await.unwrap();
    assert_ne!(sh(&client, &new.id, MARK).await, old_mark, "{:?}", new.tier);
    // Who has a session of the old one keeps it.
    assert_eq!(sh(&client, &old.id, MARK).await, old_mark);

    daemon.until_standbys(GOLDEN, 1);
    let removed = daemon.home().mayfly(["golden", "rm", GOLDEN]).run();
    assert!(removed.success(), "{removed}");
    assert_eq!(refusal(client.create(&request(), None).await), (404, "unknown_golden".to_owned()));
    daemon.until_logged("was removed");
    // Long enough for what would be tried again.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let log = daemon.log();
    assert!(!log.contains("cannot make") && !log.contains("cannot warm up"), "{log}");
    client.kill(&old.id).await.unwrap();
    client.kill(&new.id).await.unwrap();
    daemon.stop();
}
