//! A daemon that is killed: the next one removes what it left, and says so.

use std::time::Duration;

use mayfly_chaos_tests::daemon::Daemon;
use mayfly_chaos_tests::home::GOLDEN;
use mayfly_chaos_tests::leaks::{self, Leak, VMM_UIDS};
use mayfly_chaos_tests::{program, slots};
use serde_json::{Value, json};

use crate::support::{SMALL_POOL, client, ids, refusal, request, sh, until};

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_daemon_leaves_is_removed_and_named_by_the_next() {
    let _all = slots::take(slots::ALL);
    let daemon = Daemon::aside(SMALL_POOL);
    let (pid, layout) = (daemon.pid(), daemon.home().layout().clone());
    let asked = client(&daemon);
    let sessions = [
        asked.create(&request(), None).await.unwrap(),
        asked.create(&request(), None).await.unwrap(),
    ];
    for session in &sessions {
        sh(&asked, &session.id, "echo something >/root/written; docker volume create kept").await;
    }
    // Under KVM there is no zygote.
    let emulated = asked.status().await.unwrap().host.starts_with("tcg");
    until("a full pool", || async {
        let pool = asked
            .status()
            .await
            .unwrap()
            .goldens
            .into_iter()
            .find(|golden| golden.name == GOLDEN)?
            .pool?;
        (pool.standbys == 1 && pool.zygote == emulated).then_some(())
    })
    .await;

    a_second_daemon_is_refused(&daemon);
    assert_eq!(asked.sessions().await.unwrap().len(), 2);

    let vmms = |leaks: Vec<Leak>| -> Vec<u32> {
        let of_vmm = |leak| match leak {
            Leak::Process { pid, uid, .. } if VMM_UIDS.contains(&uid) => u32::try_from(pid).ok(),
            _ => None,
        };
        leaks.into_iter().filter_map(of_vmm).collect()
    };
    let before = vmms(leaks::of_engine(&layout, pid));
    assert!(
        before.len() >= 3 + usize::from(emulated),
        "two sessions, a standby, a zygote: {before:?}"
    );
    assert!(sessions.iter().all(|session| session.docker_socket.exists()));

    let files = daemon.kill();
    // The VMMs die with it; what has a name stays for the next.
    let alive = program::settle(
        || before.iter().filter(|pid| program::is_alive(**pid)).count(),
        |alive| *alive == 0,
    );
    assert_eq!(alive, 0, "VMMs outlive their daemon");
    let left = leaks::of_engine(&layout, pid);
    assert!(
        left.iter().any(|leak| matches!(leak, Leak::Runtime(_))),
        "a killed daemon cannot clean up: {left:?}"
    );
    assert!(sessions.iter().all(|session| session.docker_socket.exists()));

    let daemon = Daemon::again(files);
    let asked = client(&daemon);
    let reaped = asked.status().await.unwrap().reaped;
    for session in &sessions {
        let told = reaped.iter().any(|line| line.contains(&session.id) && line.contains(GOLDEN));
        assert!(told, "{} is not in {reaped:?}", session.id);
        assert!(!session.docker_socket.exists());
        // A new daemon does not know it: it can be anything but used again.
        assert_eq!(refusal(asked.session(&session.id).await), (404, "no_such_session".into()));
    }
    assert!(reaped.iter().any(|line| line.contains(&format!("engine {pid}-"))), "{reaped:?}");
    assert_eq!(daemon.home().leaks_of(pid), []);

    // The golden image is what it was, and sessions start from it.
    let verified = daemon
        .home()
        .mayfly(["--json", "golden", "verify", GOLDEN])
        .limit(Duration::from_secs(300))
        .run();
    assert!(verified.success(), "{verified}");
    let report: Value = serde_json::from_str(verified.stdout.trim()).unwrap();
    assert_eq!(report["bad"], json!([]));
    let session = asked.create(&request(), None).await.unwrap();
    assert_eq!(
        sh(&asked, &session.id, "ls /root/written 2>/dev/null; docker volume ls -q").await,
        ""
    );
    assert_eq!(ids(&asked).await, [session.id]);

    // What is removed once is not told again.
    let daemon = Daemon::again(daemon.stop());
    assert_eq!(client(&daemon).status().await.unwrap().reaped, Vec::<String>::new());
    daemon.stop();
}

fn a_second_daemon_is_refused(daemon: &Daemon) {
    let second = daemon.rival().env("MAYFLY_LOG", "error").run();
    assert!(second.complaint().contains("another mayfly daemon runs"), "{second}");
    assert_eq!(second.stdout, "");
    assert_eq!(daemon.home().leaks_of(second.pid), []);
}
