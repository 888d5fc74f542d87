//! Cases of where cgroups are, by how Mayfly was started, and what a host without the right ones is
//! told.

use std::time::Duration;

use serde_json::Value;

use crate::case::{Case, Context, Failure, Needs};
use crate::ensure;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "cgroup-places",
        about: "Cgroups are below a delegated unit, a container's root, or else at the host's, and doctor says so",
        needs: Needs::Host,
        run: places,
        ..Case::USUAL
    },
    Case {
        name: "cgroup-refusals",
        about: "Cgroups that are read-only, not mounted or not delegated get one line with the remedy",
        needs: Needs::Host,
        quick: true,
        run: refusals,
        ..Case::USUAL
    },
    Case {
        name: "cgroup-leftovers",
        about: "What an engine left below its unit is found by one that was started from a shell",
        limit: Duration::from_secs(600),
        run: leftovers,
        ..Case::USUAL
    },
    Case {
        name: "cgroup-mixed",
        about: "Controllers on v1 and on v2 at a time are refused",
        limit: Duration::from_secs(600),
        needs: Needs::Host,
        run: mixed,
        ..Case::USUAL
    },
    Case {
        name: "cgroup-disabled-at-boot",
        about: "A kernel that was booted with cgroup_disable=memory is told from one without",
        limit: Duration::from_secs(600),
        needs: Needs::Host,
        run: disabled_at_boot,
        ..Case::USUAL
    },
];

/// `doctor` prints the outcome of its check of cgroups. `service` runs a function in a transient
/// service, `container` in a cgroup namespace of its own.
const TOOLS: &str = r#"
doctor() { mayfly --json doctor 2>/dev/null | jq -c '.[] | select(.subject == "cgroups")' || :; }
own() { cut -d: -f3 /proc/self/cgroup; }
service() { systemd-run --quiet --wait --pipe --collect "${@:1:$#-1}" bash -c "$(declare -f); ${!#}"; }
container() {
    { declare -f doctor own; echo 'umount /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup'; echo "$1"; } >/run/container.sh
    service --property=Delegate=yes 'unshare --cgroup --mount bash /run/container.sh'
}
"#;

/// What doctor says of cgroups in each line of a script's output that is JSON.
fn checks(context: &mut Context, script: &str) -> Result<Vec<Value>, Failure> {
    let said = context.ok(&format!("{TOOLS}{script}"))?;
    said.lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}

/// One check is expected, which came out so.
fn expect(
    what: &str,
    checks: &[Value],
    outcome: &str,
    found: &str,
    advice: &str,
) -> Result<(), Failure> {
    let [check] = checks else { return Err(Failure::Failed(format!("{what}: {checks:?}"))) };
    let has =
        |field: &str, part: &str| check[field].as_str().is_some_and(|text| text.contains(part));
    ensure!(
        has("outcome", outcome) && has("found", found) && has("advice", advice),
        "{what}: {check}"
    );
    Ok(())
}

fn places(context: &mut Context) -> Result<(), Failure> {
    let shell = checks(context, "doctor")?;
    expect("from a shell", &shell, "ok", "limited; /sys/fs/cgroup/mayfly", "")?;
    let service = checks(context, "service --unit=plain doctor")?;
    expect(
        "in a service",
        &service,
        "limited",
        "plain.service has no Delegate=yes",
        "write Delegate=yes into the unit",
    )?;
    let said = context
        .sh(&format!("{TOOLS}service --unit=plain 'mayfly run no-such-golden -- true' 2>&1"))?;
    let warnings = said
        .stdout
        .lines()
        .filter(|line| line.contains("write Delegate=yes into the unit"))
        .count();
    ensure!(warnings == 1, "it should warn once at its start: {}", said.stdout);

    let script = "find /sys/fs/cgroup -type d | sort >/run/before
        service --unit=whole --property=Delegate=yes 'doctor; own; cat /sys/fs/cgroup/system.slice/whole.service/cgroup.procs
        find /sys/fs/cgroup -type d | sort | comm -13 /run/before - | grep -v whole.service; true'";
    let said = context.ok(&format!("{TOOLS}{script}"))?;
    let below = "/sys/fs/cgroup/system.slice/whole.service/mayfly";
    ensure!(
        said.contains("\"ok\"") && said.contains(below),
        "groups should be below the unit: {said}"
    );
    let rest: Vec<&str> = said.lines().skip(1).collect();
    ensure!(
        rest == ["/system.slice/whole.service/supervisor"],
        "its processes should be in a leaf, and nothing else be made: {said}"
    );

    let systemd = context.ok("systemctl --version | awk 'NR == 1 { print $2 }'")?;
    if systemd.trim().parse::<u32>().is_ok_and(|version| version >= 254) {
        let script = "service --unit=leaf --property=Delegate=yes --property=DelegateSubgroup=inner 'doctor; own'";
        let said = context.ok(&format!("{TOOLS}{script}"))?;
        let fine = said.contains("leaf.service/mayfly")
            && said.ends_with("/system.slice/leaf.service/inner\n");
        ensure!(fine, "a leaf of systemd's should be kept: {said}");
    }
    let said = context.ok(&format!("{TOOLS}container 'own; doctor; own'"))?;
    let lines: Vec<&str> = said.lines().collect();
    ensure!(
        lines.first() == Some(&"/") && lines.last() == Some(&"/supervisor"),
        "its root should be emptied: {said}"
    );
    ensure!(
        said.contains("\"ok\"") && said.contains("/sys/fs/cgroup/mayfly"),
        "it should work in a container: {said}"
    );
    Ok(())
}

fn refusals(context: &mut Context) -> Result<(), Failure> {
    for (what, script, found, advice) in [
        (
            "a container with cgroups read-only",
            "container 'mount -o remount,bind,ro /sys/fs/cgroup; doctor'",
            "Read-only file system",
            "--privileged",
        ),
        (
            "cgroups mounted read-only",
            "unshare --mount bash -c \"$(declare -f doctor); mount -o remount,bind,ro /sys/fs/cgroup; doctor\"",
            "Read-only file system",
            "remount them rw",
        ),
        (
            "no cgroups",
            "unshare --mount bash -c \"$(declare -f doctor); umount --lazy /sys/fs/cgroup; doctor\"",
            "no cgroup file system is mounted",
            "mount -t cgroup2",
        ),
        (
            "a list of controllers that lacks some",
            "service --slice=alone.slice --unit=partly --property=Delegate=memory doctor",
            "alone.slice/partly.service was not delegated the controllers cpu",
            "write Delegate=yes into the unit",
        ),
    ] {
        expect(what, &checks(context, script)?, "missing", found, advice)?;
    }
    // At the start of an engine it is the same sentence, and nothing is left.
    let script = "unshare --mount bash -c 'mount -o remount,bind,ro /sys/fs/cgroup; mayfly run no-such-golden -- true' 2>&1 || true";
    let said = context.ok(&format!("{TOOLS}{script}"))?;
    let last = said.lines().last().unwrap_or_default();
    ensure!(
        last.starts_with("mayfly: ")
            && last.contains("Read-only file system")
            && last.contains("cgroups are mounted read-only"),
        "{said}"
    );
    let left =
        context.ok("ls /run/mayfly/engines 2>/dev/null || true; find /sys/fs/cgroup -type d -path '*/mayfly/*'")?;
    ensure!(left.is_empty(), "something was left: {left}");
    Ok(())
}

fn leftovers(context: &mut Context) -> Result<(), Failure> {
    // A process that somebody else put into a session's group outlives the engine, and with it the
    // scope.
    let said = context.ok(&format!(
        r#"{TOOLS}
        systemd-run --quiet --scope --unit=gone --property=Delegate=yes mayfly run default -- sleep 1000 >/dev/null 2>&1 &
        for i in $(seq 600); do
            engine=$(find /sys/fs/cgroup -path '*/gone.scope/mayfly/*-*' -prune | head -n 1)
            [ -n "$engine" ] && group=$(find "$engine" -mindepth 1 -type d | head -n 1) && [ -n "$group" ] && [ -s "$group/cgroup.procs" ] && break
            sleep 0.2
        done
        sleep 1000 & planted=$!; echo $planted >"$group/cgroup.procs"
        pid=$(basename "$engine"); kill -9 "${{pid%%-*}}"
        for i in $(seq 100); do [ ! -e "/proc/${{pid%%-*}}" ] && break; sleep 0.1; done
        [ -d "$group" ] && echo its group is there
        mayfly run default -- echo the next one runs
        [ -d "$group" ] || echo its group is gone
        wait "$planted" || echo "what was planted ended with $?""#
    ))?;
    let parts = ["its group is there", "the next one runs", "its group is gone", "ended with 137"];
    for part in parts {
        ensure!(said.contains(part), "{part:?} is missing: {said}");
    }
    Ok(())
}

fn mixed(context: &mut Context) -> Result<(), Failure> {
    context.reboot(None)?;
    // Only a controller that nothing uses on v2 can be had on v1.
    let mounted = context.sh("mkdir /run/cpu; mount -t cgroup -o cpu none /run/cpu")?;
    if !mounted.success() {
        return Err(Failure::Skipped(format!(
            "cpu cannot be had on cgroup v1 here: {}",
            mounted.stderr.trim()
        )));
    }
    let script = "doctor";
    let advice = "systemd.unified_cgroup_hierarchy=1";
    expect(
        "mixed",
        &checks(context, script)?,
        "missing",
        "cgroup v1 (cpu) and v2 (memory and pids)",
        advice,
    )?;
    let said = context
        .ok("mayfly run no-such-golden -- true 2>&1 || ls -d /sys/fs/cgroup/mayfly 2>&1 || true")?;
    ensure!(said.contains("mayfly: controllers are split between cgroup v1 (cpu)"), "{said}");
    ensure!(
        said.contains("cannot access '/sys/fs/cgroup/mayfly'"),
        "nothing should be made: {said}"
    );
    Ok(())
}

fn disabled_at_boot(context: &mut Context) -> Result<(), Failure> {
    context.reboot_with("cgroup_disable=memory")?;
    let found = "the kernel was booted with cgroup_disable=memory, and sessions need memory";
    expect(
        "cgroup_disable",
        &checks(context, "doctor")?,
        "missing",
        found,
        "boot without cgroup_disable=memory",
    )?;
    let said = context
        .ok("mayfly run no-such-golden -- true 2>&1 || ls -d /sys/fs/cgroup/mayfly 2>&1 || true")?;
    ensure!(said.contains(&format!("mayfly: {found}")), "{said}");
    ensure!(
        said.contains("cannot access '/sys/fs/cgroup/mayfly'"),
        "nothing should be made: {said}"
    );
    Ok(())
}
