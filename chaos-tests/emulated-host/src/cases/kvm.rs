//! KVM, and what a host gets to hear that lacks it or user namespaces.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;

use super::daemon::start_pager;
use super::test_programs::tests;
use crate::case::{Case, Context, Failure, Needs};
use crate::distribution::Distribution;
use crate::ensure;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "kvm-faults",
        about: "Toy guests killed amid faults that KVM waits for in threads of the kernel",
        limit: Duration::from_secs(900),
        needs: Needs::Kvm,
        tests: &["pager"],
        run: |context| tests(context, "pager kvm::"),
        ..Case::USUAL
    },
    Case {
        name: "kvm-slow-chunks",
        about: "While chunks come at 2 MiB/s, eight workers touch the memory of a guest, and none hangs",
        limit: Duration::from_secs(900),
        run: slow_chunks,
        ..Case::USUAL
    },
    Case {
        name: "kvm-too-slow",
        about: "A KVM that is too slow for the probe is told from one that runs no guest, with the remedy",
        needs: Needs::Kvm,
        run: too_slow,
        ..Case::USUAL
    },
    Case {
        name: "kvm-program",
        about: "Sessions run in QEMU's build for microVMs where it can confine itself, and in no other once the golden is made",
        run: program,
        ..Case::USUAL
    },
    Case {
        name: "kvm-listed-calls",
        about: "A golden is built and a container runs where VMMs may make no call that is on no list",
        limit: Duration::from_secs(900),
        run: listed_calls,
        ..Case::USUAL
    },
    Case {
        name: "kvm-obstacles",
        about: "Devices that are missing, forbidden or dead are told with the remedy",
        limit: Duration::from_secs(600),
        tests: &["bad_input"],
        run: |context| tests(context, "bad_input kvm:: host::"),
        ..Case::USUAL
    },
    Case {
        name: "kvm-gone",
        about: "Without its module, or the right to the device, a golden of KVM is refused clearly",
        run: gone,
        ..Case::USUAL
    },
    Case {
        name: "user-namespaces",
        about: "Settings that forbid user namespaces are told with the remedy",
        needs: Needs::Host,
        run: user_namespaces,
        ..Case::USUAL
    },
];

/// Without asynchronous page faults a guest's processor waits for the pager. With them a task of
/// the guest would sleep in state D, until an interrupt that may get lost.
fn slow_chunks(context: &mut Context) -> Result<(), Failure> {
    start_pager(
        context,
        r#"--property="IOReadBandwidthMax=$(findmnt --noheadings --output SOURCE /) 2M""#,
        "",
    )?;
    let said = context.ok(r#"
        sync; echo 3 >/proc/sys/vm/drop_caches
        mayfly run default -- sh -euc '
            workers=
            # What was read before the snapshot is in the memory of the golden, and comes as chunks.
            for i in 0 1 2 3 4 5 6 7; do
                (find /usr/bin /usr/sbin /usr/lib -type f | awk "NR % 8 == $i" | xargs cat | md5sum
                    head -c 90M /dev/zero | tail -c 80M | md5sum) >/dev/null &
                workers="$workers $!"
            done
            (
                while sleep 1; do
                    echo second
                    grep -l "^State:.D" /proc/[0-9]*/status 2>/dev/null | sed "s/^/waiting /"
                done
            ) & watcher=$!
            for worker in $workers; do wait $worker && echo a worker is done; done
            kill $watcher
            dmesg | grep -E "blocked for more|stall|lockup" || echo nothing hung'
        mayfly --json pager status | jq -c .counters"#)?;
    let longest = longest_wait(&said);
    let counters: Value = serde_json::from_str(said.lines().last().unwrap_or_default())?;
    context.note(&format!("looks in a row at which a task was in state D: at most {longest}"));
    let done = said.matches("a worker is done").count();
    ensure!(done == 8 && said.contains("nothing hung"), "{done} of 8 workers were done: {said}");
    // A task that is in this state for a minute has been forgotten; a moment of it is disk I/O.
    ensure!(longest < 60, "a task was in state D at {longest} looks in a row: {said}");
    let slowest = counters["wait"]["max_nanos"].as_u64().unwrap_or_default();
    ensure!(slowest > 20_000_000, "no chunk was slow: {counters}");
    let filled = counters["bytes_filled"].as_u64().unwrap_or_default();
    ensure!(
        filled > 32 << 20,
        "the workers touched only {filled} bytes that come as chunks: {counters}"
    );
    Ok(())
}

/// The most looks in a row, each begun by a line `second`, at which the same task was `waiting`.
fn longest_wait(said: &str) -> u32 {
    let mut longest = 0;
    let mut streaks: HashMap<&str, u32> = HashMap::new();
    for look in said.split("second\n").skip(1) {
        let waiting = look.lines().filter_map(|line| line.strip_prefix("waiting "));
        streaks = waiting.map(|task| (task, streaks.get(task).copied().unwrap_or(0) + 1)).collect();
        longest = longest.max(streaks.values().copied().max().unwrap_or(0));
    }
    longest
}

/// Programs of QEMU, by the names that goldens have for them, and what another one than the
/// golden's is told.
struct Qemu {
    name: &'static str,
    file: &'static str,
    other: &'static str,
    refusal: &'static str,
}

const MICROVM: Qemu = Qemu {
    name: "qemu-microvm",
    file: "qemu-system-x86_64-microvm",
    other: "qemu-system-x86_64",
    refusal: "vmm is `qemu` here, the image needs `qemu-microvm`",
};
/// Debian 12's build for microVMs cannot confine itself.
const FULL: Qemu = Qemu {
    name: "qemu",
    file: "qemu-system-x86_64",
    other: "qemu-system-x86_64-microvm",
    refusal: "qemu-system-x86_64-microvm was built without seccomp",
};

/// A call that QEMU needs and the list lacks fails for it, and with it what it is needed for.
fn listed_calls(context: &mut Context) -> Result<(), Failure> {
    const ENFORCE: &str = "MAYFLY_SECCOMP=enforce mayfly";
    context.ok(&format!("{ENFORCE} golden build --rebuild --accel kvm --boot-timeout 600"))?;
    let said =
        context.ok(&format!("{ENFORCE} run default -- docker run --rm busybox echo hello"))?;
    ensure!(said.trim() == "hello", "{said}");
    Ok(())
}

fn program(context: &mut Context) -> Result<(), Failure> {
    let qemu = if context.platform.distribution == Distribution::Debian12 { FULL } else { MICROVM };
    let golden = context.json("mayfly golden inspect default")?;
    let pins = &golden["pins"];
    ensure!(pins["vmm"] == qemu.name, "the golden should be bound to {}: {pins}", qemu.name);
    let cpu = pins["cpu_model"].as_str().unwrap_or_default();
    ensure!(cpu.starts_with("host,vmx=off,svm=off,pmu=off,"), "the golden has another CPU: {cpu}");
    let flags = context.ok("mayfly run default -- cat /proc/cpuinfo")?;
    ensure!(
        !flags.contains(" svm") && !flags.contains(" vmx"),
        "the guest could run guests: {flags}"
    );
    let command = context.ok("mayfly run default -- sleep 20 &
        until pgrep -f 'qemu.*-incoming defer' >/dev/null; do sleep 0.2; done
        readlink /proc/$(pgrep -f 'qemu.*-incoming defer')/exe; wait")?;
    ensure!(command.trim().ends_with(&format!("/{}", qemu.file)), "it runs in {command}");
    let other =
        context.sh(&format!("MAYFLY_QEMU=/usr/bin/{} mayfly run default -- true", qemu.other))?;
    ensure!(
        !other.success() && other.stderr.contains(qemu.refusal),
        "another program should be refused: {other:?}"
    );
    Ok(())
}

fn too_slow(context: &mut Context) -> Result<(), Failure> {
    // A guest of a delegated unit gets of the processor what the unit has.
    let slow = "systemd-run --quiet --wait --pipe --collect --property=Delegate=yes --property=CPUQuota=20% \
        --setenv=HOME=/root --setenv=MAYFLY_TIME_SCALE=2 mayfly --json doctor";
    let told = line_of(context, slow, "KVM")?;
    ensure!(
        told.contains(
            "/dev/kvm runs guests, but too slowly: a probe guest was still booting after 60s"
        ),
        "{told}"
    );
    ensure!(told.contains("set MAYFLY_TIME_SCALE to more than 2"), "{told}");
    // With another factor the next probe is another one.
    let usable = line_of(context, "mayfly --json doctor", "KVM")?;
    ensure!(usable.contains("usable: a probe guest ran to user space"), "{usable}");
    Ok(())
}

fn gone(context: &mut Context) -> Result<(), Failure> {
    let closed = "systemd-run --quiet --wait --pipe --collect --property=DevicePolicy=closed \
        --property=DeviceAllow='/dev/userfaultfd rw' --setenv=HOME=/root";
    let forbidden = line_of(context, &format!("{closed} mayfly --json doctor"), "KVM")?;
    ensure!(forbidden.contains("no permission to open /dev/kvm"), "{forbidden}");
    context.ok("modprobe -r kvm_amd kvm")?;
    let checks = line_of(context, "mayfly --json doctor", "KVM");
    let run = context.sh("mayfly run default -- true");
    context.ok("modprobe kvm_amd; udevadm settle")?;
    let (checks, run) = (checks?, run?);
    ensure!(
        checks.contains("no driver behind it") || checks.contains("has no /dev/kvm"),
        "{checks}"
    );
    let line = run.stderr.trim();
    let clear = line.lines().count() == 1
        && line.contains("golden default cannot be restored on this host: KVM is not");
    ensure!(!run.success() && clear, "one clear line should say why: {run:?}");
    context.ok("mayfly run default -- true").map(drop)
}

fn user_namespaces(context: &mut Context) -> Result<(), Failure> {
    let settings = [
        ("user.max_user_namespaces", "0"),
        ("kernel.unprivileged_userns_clone", "0"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1"),
    ];
    let open = line_of(context, "mayfly --json doctor", "user namespaces")?;
    ensure!(open.contains("a zygote can be forked"), "{open}");
    let mut tried = 0;
    for (name, value) in settings {
        let Ok(before) = context.ok(&format!("sysctl -n {name}")) else { continue };
        context.ok(&format!("sysctl -w {name}={value}"))?;
        let line = line_of(context, "mayfly --json doctor", "user namespaces");
        context.ok(&format!("sysctl -w {name}={}", before.trim()))?;
        let line = line?;
        // A kernel may have the setting without the module that obeys it.
        if name.contains("apparmor") && line.contains("a zygote can be forked") {
            context.note("AppArmor does not restrict user namespaces here");
            continue;
        }
        let told = line.contains(&format!("{name}={value}: standbys are restored"))
            && line.contains("sysctl -w");
        ensure!(told, "{name}={value} is not told: {line}");
        tried += 1;
    }
    ensure!(tried >= 2, "this kernel has none of the settings");
    Ok(())
}

/// A line of `mayfly doctor`: what was found, and what to do.
fn line_of(context: &mut Context, doctor: &str, subject: &str) -> Result<String, Failure> {
    let output = context.sh(doctor)?;
    let checks: Vec<Value> = serde_json::from_str(&output.stdout)?;
    let check = checks.iter().find(|check| check["subject"] == subject);
    let Some(check) = check else {
        return Err(Failure::Failed(format!("no line on {subject}: {output:?}")));
    };
    Ok(format!(
        "{}; {}",
        check["found"].as_str().unwrap_or_default(),
        check["advice"].as_str().unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use super::longest_wait;

    #[test]
    fn a_wait_counts_as_long_as_it_is_not_interrupted() {
        let said = "second\nwaiting /proc/1/status\nsecond\nwaiting /proc/1/status\nwaiting /proc/2/status\n\
            second\nsecond\nwaiting /proc/1/status\na worker is done\n";
        assert_eq!(longest_wait(said), 2);
        assert_eq!(longest_wait("a worker is done\n"), 0);
    }
}
