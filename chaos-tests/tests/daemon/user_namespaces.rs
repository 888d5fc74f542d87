//! A host that refuses user namespaces to unprivileged processes.

use mayfly_chaos_tests::daemon::{Daemon, TOKEN};
use mayfly_chaos_tests::home::GOLDEN;
use serde_json::json;

use crate::support::SMALL_POOL;

#[test]
fn standbys_are_restored_where_the_kernel_refuses_user_namespaces() {
    let daemon = Daemon::without_user_namespaces(SMALL_POOL);
    daemon.until_standbys(GOLDEN, 1);
    let pool = daemon.pool(GOLDEN);
    if daemon.status()["host"].as_str().is_some_and(|host| host.starts_with("kvm")) {
        eprintln!("SKIPPED: under KVM nothing is forked");
    } else {
        assert_eq!(pool["zygote"], false, "{pool}");
        let log = daemon.log();
        let told: Vec<_> =
            log.lines().filter(|line| line.contains("restored one by one")).collect();
        assert_eq!(told.len(), 1, "{log}");
        assert!(told[0].contains("seccomp"), "{}", told[0]);
    }
    // It is what it would be otherwise: a session of a standby.
    let id = daemon.create(&json!({ "golden": GOLDEN }));
    let session = daemon.ask("GET", &format!("/v1/sessions/{id}"), Some(TOKEN), None).body;
    assert!(session.contains("\"tier\":\"standby\""), "{session}");
    daemon.stop();
}
