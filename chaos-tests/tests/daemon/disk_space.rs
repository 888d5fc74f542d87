//! New sessions are held back while there is no space for their disks.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use mayfly_chaos_tests::daemon::Daemon;
use mayfly_chaos_tests::home::Home;
use mayfly_chaos_tests::slots;
use mayfly_client::Client;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::support::{client, refusal, request, until};

/// Space for disks, in bytes.
const SPACE: u64 = 256 << 20;
const CONFIG: &str = "[pressure]\ninterval = \"50ms\"\ndisk_promised = { begin = 100.0, end = 50.0 }\n\
                      [goldens.default]\nfloor = 0\nmax_standbys = 0\nshells = 0\nfork = false\n";

/// Waits until the host counts as short of something with these words, or of nothing.
async fn until_short(client: &Client, words: Option<&str>) {
    until("the pressure", || async {
        let found = client.status().await.unwrap().pressure;
        let right = match (words, &found) {
            (None, None) => true,
            (Some(words), Some(found)) => found.contains(words),
            _ => false,
        };
        right.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_held_back_while_the_disk_is_full_or_promised() {
    let home = match Home::with_small_disks(SPACE) {
        Ok(home) => home,
        Err(lacking) => return mayfly_skip::skip(format!("no small ext4: {lacking}")),
    };
    let _all = slots::take(slots::ALL);
    let disks = home.layout().disks();
    let daemon = Daemon::with_home(home, CONFIG);
    let local = client(&daemon);
    until_short(&local, None).await;

    // The first may take more than there is: it is let in, and nobody after it.
    let first = local.create(&request(), None).await.unwrap();
    until_short(&local, Some("promised")).await;
    let status = local.status().await.unwrap().disk.unwrap();
    assert!(status.promised_bytes > status.available_bytes, "{status:?}");
    assert!(status.total_bytes <= SPACE && status.written_bytes > 0, "{status:?}");
    let refused = local.create(&request(), None).await;
    let error = refused.as_ref().unwrap_err();
    assert!(error.retry_after().is_some() && error.to_string().contains("promised"), "{error}");
    assert_eq!(refusal(refused), (429, "pressure".into()));
    local.kill(&first.id).await.unwrap();
    until_short(&local, None).await;

    // Somebody else fills the disk.
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(libc::O_TMPFILE).open(&disks).unwrap();
    let free = local.status().await.unwrap().disk.unwrap().available_bytes;
    let most = i64::try_from(free - (1 << 20)).unwrap();
    fallocate(&file, FallocateFlags::empty(), 0, most).unwrap();
    until_short(&local, Some("of the space for disks is in use")).await;
    assert_eq!(refusal(local.create(&request(), None).await), (429, "pressure".into()));
    let metrics = daemon.ask("GET", "/metrics", Some(mayfly_chaos_tests::daemon::TOKEN), None).body;
    for line in [
        "mayfly_pressure{figure=\"disk_used\"} 1",
        "mayfly_pressure{figure=\"memory_used\"} 0",
        "mayfly_disk_promised_bytes 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "no {line} in {metrics}");
    }
    drop(file);
    until_short(&local, None).await;
    let second = local.create(&request(), None).await.unwrap();
    local.kill(&second.id).await.unwrap();
    daemon.stop();
}
