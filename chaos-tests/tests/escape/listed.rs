//! Sessions with every system call denied that is on no list: they work, and the audit finds it so.

use std::time::Duration;

use mayfly_api::{CreateSession, Exec};
use mayfly_audit::{Report, Verdict};
use mayfly_chaos_tests::daemon::Daemon;
use mayfly_chaos_tests::home::{GOLDEN, Home};
use mayfly_chaos_tests::slots::{self, ALL};
use mayfly_client::Client;

const ENFORCE: (&str, &str) = ("MAYFLY_SECCOMP", "enforce");

#[test]
fn what_is_on_no_list_is_denied_to_vmms_of_each_kind_and_their_guests_go_on() {
    let home = Home::shared();
    let _slots = slots::take(ALL);
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.json");
    let path = report.display().to_string();
    let args = ["audit", GOLDEN, "--only", "vmm.kernel", "vmm.privileges", "--report", &path];
    let ended = home.mayfly(args).env(ENFORCE.0, ENFORCE.1).run();
    assert!(ended.success(), "{ended}");
    let report: Report = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    let check = report.checks.iter().find(|check| check.id == "vmm.kernel").unwrap();
    for what in ["a call on no list", "make another virtual machine"] {
        let attempts: Vec<_> =
            check.attempts.iter().filter(|attempt| attempt.what.contains(what)).collect();
        assert!(!attempts.is_empty(), "{check:?}");
        for attempt in attempts {
            assert!(
                attempt.verdict == Verdict::Held && attempt.seen.contains("EPERM"),
                "{attempt:?}"
            );
        }
    }
    assert!(check.notes.iter().any(|note| note.contains("\"alive\"")), "{check:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_a_daemon_do_all_they_can_with_the_rest_denied() {
    let _slots = slots::take(ALL);
    let pool = "[goldens.default]\nfloor = 1\nmax_standbys = 1\nshells = 0\n";
    let daemon = Daemon::start(pool, &[ENFORCE]);
    let client = Client::unix(daemon.socket());
    let wanted = CreateSession {
        golden: GOLDEN.into(),
        deadline_ms: Some(300_000),
        ..CreateSession::default()
    };
    let session = client.create(&wanted, None).await.unwrap();
    // Processor, memory, disk beyond what is cached, Docker, the clock.
    let script = "set -e; dd if=/dev/zero of=/root/big bs=1M count=64 conv=fsync; rm /root/big; fstrim / || :;
        head -c 32000000 /dev/urandom >/dev/shm/r; sha256sum /dev/shm/r >/dev/null; sleep 1;
        docker volume create disk >/dev/null; docker info >/dev/null; echo done";
    let result = client.exec(&session.id, &Exec::new(["sh", "-c", script])).await.unwrap();
    assert!(
        result.outcome.success() && result.stdout.to_text().ends_with("done\n"),
        "{:?}",
        result.stderr.to_text()
    );
    client.kill(&session.id).await.unwrap();
    // A guest that turns itself off ends its session, and its VMM with it.
    let session = client.create(&wanted, None).await.unwrap();
    let off = "echo 1 >/proc/sys/kernel/sysrq; echo o >/proc/sysrq-trigger; sleep 1000";
    let off = client.exec(&session.id, &Exec::new(["sh", "-c", off])).await;
    assert!(off.is_err(), "{off:?}");
    assert!(client.sessions().await.unwrap().is_empty());
    daemon.stop();
}

#[test]
fn a_golden_is_built_with_the_rest_denied() {
    let home = Home::with_images();
    let _slots = slots::take(ALL);
    let build = home.mayfly(["-q", "golden", "build", "--accel", "tcg"]).env(ENFORCE.0, ENFORCE.1);
    let ended = build.limit(Duration::from_secs(500)).run();
    assert!(ended.success(), "{ended}");
}
