//! The daemon as its systemd units.

use std::time::Duration;

use crate::case::{Case, Context, Failure};
use crate::ensure;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "unit-start-and-restart",
        about: "The units start, give sessions over TCP below their own cgroup, and restart",
        limit: Duration::from_secs(600),
        quick: true,
        run: start_and_restart,
        ..Case::USUAL
    },
    Case {
        name: "unit-killed",
        about: "After kill -9 the unit comes back, says what it reaped, and leaves nothing of it",
        limit: Duration::from_secs(600),
        quick: true,
        run: killed,
        ..Case::USUAL
    },
];

/// Installs the units with a configuration that has one tenant, whose token is `abc`, and starts
/// them. `api` asks the daemon over TCP as that tenant.
const UNITS: &str = r#"
api() { curl -sS --fail-with-body --max-time 300 -H 'Authorization: Bearer abc' "$@"; }
answers() { for i in $(seq 600); do api http://127.0.0.1:7070/healthz >/dev/null 2>&1 && return; sleep 0.2; done; journalctl --unit mayfly --lines 5 >&2; return 1; }
create() { api --json '{"golden":"default"}' http://127.0.0.1:7070/v1/sessions | jq -r .id; }
run() { jq -n --arg c "$2" '{argv: ["sh", "-c", $c]}' | api --json @- "http://127.0.0.1:7070/v1/sessions/$1/exec" | jq -r .stdout; }
main_pid() { systemctl show --property=MainPID --value "$1"; }
start() {
    install -m 0644 /opt/mayfly/systemd/*.service /etc/systemd/system
    cat >/etc/mayfly.toml <<'END'
[admission]
deadline = "10min"
[[tenants]]
name = "red"
token_blake3 = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
END
    systemctl daemon-reload
    systemctl start mayfly
    answers
}
"#;

fn start_and_restart(context: &mut Context) -> Result<(), Failure> {
    let started = context.json(&format!(
        r#"{UNITS}
        start
        id=$(create); said=$(run "$id" 'echo hello')
        group=$(find /sys/fs/cgroup -type d -name "*$id*" | head -n 1)
        vmm=$(head -n 1 "$group/cgroup.procs")
        jq -n --arg said "$said" --arg group "$group" --arg unit "$(systemctl show --property=ControlGroup --value mayfly)" \
            --arg oom "$(cat "/proc/$(main_pid mayfly)/oom_score_adj")" --arg vmm_oom "$(cat "/proc/$vmm/oom_score_adj")" \
            --arg vmm "$vmm" --arg pager "$(main_pid mayfly-pager)" '$ARGS.named'"#
    ))?;
    ensure!(started["said"] == "hello", "{started}");
    let (group, unit) = (
        started["group"].as_str().unwrap_or_default(),
        started["unit"].as_str().unwrap_or_default(),
    );
    ensure!(
        group.starts_with(&format!("/sys/fs/cgroup{unit}/")),
        "the session should be below its unit: {started}"
    );
    ensure!(
        started["oom"] == "-900",
        "the daemon should be among the last that the kernel kills: {started}"
    );
    let vmm_oom: i32 =
        started["vmm_oom"].as_str().and_then(|text| text.parse().ok()).unwrap_or(-1000);
    ensure!(vmm_oom >= 0, "a VMM should not be spared with its daemon: {started}");

    let (vmm, pager) = (&started["vmm"], &started["pager"]);
    let again = context.ok(&format!(
        r#"{UNITS}
        systemctl restart mayfly; answers
        [ ! -e /proc/{vmm} ] && echo the old VMM is gone
        [ "$(main_pid mayfly-pager)" = {pager} ] && echo the pager is the same
        id=$(create); run "$id" 'echo hello again'
        systemctl stop mayfly mayfly-pager
        systemctl show --property=Result --value mayfly mayfly-pager | tr '\n' ' '"#
    ))?;
    for part in ["the old VMM is gone", "the pager is the same", "hello again"] {
        ensure!(again.contains(part), "{part:?} is missing: {again}");
    }
    ensure!(again.matches("success").count() == 2, "both units should stop in order: {again}");
    Ok(())
}

fn killed(context: &mut Context) -> Result<(), Failure> {
    let said = context.ok(&format!(
        r#"{UNITS}
        start
        first=$(create); second=$(create)
        run "$second" 'nohup sh -c "while :; do :; done" >/dev/null 2>&1 & echo busy'
        vmms=$(for id in $first $second; do head -n 1 "$(find /sys/fs/cgroup -type d -name "*$id*" | head -n 1)/cgroup.procs"; done)
        old=$(main_pid mayfly)
        kill -9 "$old"
        for i in $(seq 300); do now=$(main_pid mayfly); [ "$now" != 0 ] && [ "$now" != "$old" ] && break; sleep 0.2; done
        answers
        for vmm in $vmms; do [ ! -e "/proc/$vmm" ] && echo a VMM is gone; done
        for id in $first $second; do [ -z "$(find /sys/fs/cgroup -type d -name "*$id*")" ] && echo a cgroup is gone; done
        api http://127.0.0.1:7070/v1/status | jq -c .reaped
        id=$(create); run "$id" 'echo alive again'
        journalctl --unit mayfly --boot --output=cat | grep -ci -E 'reaped|removed' || :
        systemctl stop mayfly mayfly-pager"#
    ))?;
    ensure!(said.matches("a VMM is gone").count() == 2, "VMMs outlive their daemon: {said}");
    ensure!(said.matches("a cgroup is gone").count() == 2, "cgroups outlive their daemon: {said}");
    ensure!(said.contains("alive again"), "sessions should begin again: {said}");
    let reaped = said.lines().find(|line| line.starts_with('[')).unwrap_or("[]");
    ensure!(reaped != "[]" && reaped != "null", "it should say what it reaped: {said}");
    Ok(())
}
