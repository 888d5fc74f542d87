//! The daemon: pool, hand-over, kill and recovery.

use std::time::Duration;

use crate::case::{Case, Context, Failure};
use crate::ensure;

pub(super) const CASES: &[Case] = &[Case {
    name: "pool",
    about: "The daemon's pool fills with standbys, and requests get them",
    limit: Duration::from_secs(600),
    run: pool,
    ..Case::USUAL
}];

/// Starts a pager as a unit with these properties, and with these arguments beside the usual ones,
/// and waits until it answers.
pub(super) fn start_pager(
    context: &mut Context,
    properties: &str,
    arguments: &str,
) -> Result<(), Failure> {
    context.ok(&format!(
        "systemd-run --quiet --unit=mayfly-case-pager {properties} mayfly pager serve --idle 0 {arguments}
for i in $(seq 300); do mayfly -q pager status >/dev/null 2>&1 && exit 0; sleep 0.2; done
journalctl --unit mayfly-case-pager --lines 5 >&2; exit 1"
    ))?;
    Ok(())
}

/// Starts the daemon as a unit with a part of the cgroup tree of its own, beside a pager in
/// another, and waits until it answers. Requests may wait for the first look at the golden's disks,
/// which takes half a minute and more here.
pub(super) fn start_daemon(context: &mut Context, configuration: &str) -> Result<(), Failure> {
    start_pager(context, "--property=Restart=always --property=LimitNOFILE=65536", "")?;
    context.ok(&format!(
        "cat >/run/emulated-host/serve.toml <<'END'
[admission]
deadline = '10min'
{configuration}
END
systemd-run --quiet --unit=mayfly-case --property=Delegate=yes --property=KillMode=mixed --property=LimitNOFILE=65536 \
    mayfly serve --config /run/emulated-host/serve.toml
for i in $(seq 300); do mf http://mayfly/healthz >/dev/null 2>&1 && exit 0; sleep 0.2; done
journalctl --unit mayfly-case --lines 5 >&2; exit 1"
    ))?;
    Ok(())
}

/// Waits until the pool of the default golden holds this many standbys.
pub(super) fn await_standbys(context: &mut Context, standbys: u32) -> Result<(), Failure> {
    let filled = context.sh(&format!(
        "for i in $(seq 240); do
    have=$(mf http://mayfly/v1/status | jq '.goldens[] | select(.name == \"default\") | .pool.standbys')
    [ \"$have\" = {standbys} ] && exit 0; sleep 0.5
done
mf http://mayfly/v1/status; exit 1"
    ))?;
    ensure!(filled.success(), "the pool does not fill: {}", filled.stdout);
    Ok(())
}

fn pool(context: &mut Context) -> Result<(), Failure> {
    start_daemon(context, "[goldens.default]\nfloor = 2\nmax_standbys = 2")?;
    await_standbys(context, 2)?;
    for _ in 0..2 {
        let session = context.json(
            "mf --json '{\"golden\":\"default\",\"wait_docker\":true}' http://mayfly/v1/sessions",
        )?;
        context.note(&format!("handed over: {}", session["start"]));
        ensure!(session["tier"] == "standby", "it should have been a standby: {session}");
        let id = session["id"].as_str().unwrap_or_default().to_owned();
        let said = context.json(&format!(
            "mf --json '{{\"argv\":[\"docker\",\"run\",\"--rm\",\"busybox\",\"echo\",\"warm\"]}}' http://mayfly/v1/sessions/{id}/exec"
        ))?;
        ensure!(said["stdout"] == "warm\n", "{said}");
        await_standbys(context, 2)?;
        context.ok(&format!("mf -X DELETE http://mayfly/v1/sessions/{id}"))?;
    }
    let stopped = context.ok("systemctl stop mayfly-case; systemctl show --property=Result --value mayfly-case; systemctl stop mayfly-case-pager")?;
    ensure!(stopped.trim() == "success", "the daemon should stop in order: {stopped}");
    Ok(())
}
