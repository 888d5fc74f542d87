//! The pager under KVM: eviction, and its death.

use std::time::Duration;

use super::daemon::{start_daemon, start_pager};
use crate::case::{Case, Context, Failure};
use crate::ensure;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "pager-eviction",
        about: "With a page cache smaller than the working set, sessions read what they read with a large one",
        limit: Duration::from_secs(1200),
        run: eviction,
        ..Case::USUAL
    },
    Case {
        name: "pager-killed",
        about: "When the pager is killed under load its sessions end, and new ones begin",
        limit: Duration::from_secs(600),
        run: killed,
        ..Case::USUAL
    },
];

/// A digest of the programs of a guest, most of which are in its memory.
const DIGEST: &str = "find /usr/bin -type f | sort | xargs md5sum >/root/sums; md5sum </root/sums";

fn eviction(context: &mut Context) -> Result<(), Failure> {
    let right =
        context.ok(&format!("mayfly run default -- sh -euc '{DIGEST}'; mayfly pager stop"))?;
    ensure!(right.trim().ends_with('-'), "that should be a digest: {right}");
    start_pager(context, "", "--budget 40")?;
    for round in 0..2 {
        let said = context.ok(&format!(
            "mayfly run default -- sh -euc '{DIGEST}; docker run --rm busybox echo round {round}' &
             mayfly run default -- sh -euc 'docker version >/dev/null; docker run --rm busybox echo round {round}'; wait $!"
        ))?;
        ensure!(
            said.matches(&format!("round {round}")).count() == 2,
            "both sessions should be right: {said}"
        );
        ensure!(
            said.contains(right.trim()),
            "the guest should read the same as before, {right}: {said}"
        );
    }
    let status = context.json("mayfly --json pager status")?;
    let (evicted, budget) = (&status["counters"]["evictions"], &status["budget_bytes"]);
    ensure!(
        evicted.as_u64() > Some(0) && *budget == 40 << 20,
        "something should have been evicted: {status}"
    );
    Ok(())
}

fn killed(context: &mut Context) -> Result<(), Failure> {
    start_daemon(context, "")?;
    let said = context.ok(r#"
        id=$(mf --json '{"golden":"default","wait_docker":true}' http://mayfly/v1/sessions | jq -r .id)
        vmm=$(cat "$(find /sys/fs/cgroup -type d -name "*$id*" | head -n 1)/cgroup.procs" | head -n 1)
        jq -n '{argv: ["sh", "-c", "find / -xdev -type f | xargs md5sum >/dev/null"]}' |
            mf --json @- "http://mayfly/v1/sessions/$id/exec" >/dev/null 2>&1 &
        sleep 1
        kill -9 "$(pgrep -f 'mayfly pager serve')"
        for i in $(seq 100); do [ -e "/proc/$vmm" ] || break; sleep 0.1; done
        [ ! -e "/proc/$vmm" ] && echo the VMM is gone
        mf "http://mayfly/v1/sessions/$id" || :
        echo
        mayfly run default -- docker run --rm busybox echo again"#)?;
    ensure!(said.contains("the VMM is gone"), "the VMM should end with its pager: {said}");
    ensure!(said.contains("pager"), "the session's end should name the pager: {said}");
    ensure!(said.contains("again"), "a new session should begin: {said}");
    Ok(())
}
