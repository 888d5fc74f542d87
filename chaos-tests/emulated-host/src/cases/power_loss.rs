//! Loss of power: the machine is killed while Mayfly writes, and booted with the disk it had then.
//!
//! The disk bypasses the page cache of the machine outside (`cache=none`), so that a write is on it
//! only once the emulated host has flushed it.

use std::time::Duration;

use super::daemon::start_daemon;
use crate::case::{Case, Context, Failure};
use crate::ensure;
use crate::machine::DiskCache;

pub(super) const CASES: &[Case] = &[Case {
    name: "power-loss",
    about: "Power is lost 21 times amid commits, collection, journal and builds: all is whole after",
    limit: Duration::from_secs(4 * 3600),
    tests: &["it"],
    run: power_loss,
    ..Case::USUAL
}];

/// Losses of power; each kind of load has a third.
const ROUNDS: u32 = 21;
/// How often the emulator may spoil loads in all, and the check of one loss.
const RETRIES: u32 = 3;
/// The store that a writer of its own commits to and removes from.
const STORE: &str = "/var/lib/mayfly-case/store";
/// The test program of the snapshotter: as a writer, and to check what a writer left.
const WRITER: &str = "/opt/mayfly/bin/tests/it --exact --nocapture crash::a_killed_writer_leaves_the_old_state_or_the_new";

/// What is going on when the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// Commits to a store, removals, and the collection of what they leave.
    Store,
    /// The daemon writes its journal: sessions begin and end.
    Journal,
    /// A golden image is built again.
    Build,
}

impl Load {
    /// The script that starts it, in the background, and the longest that it is left alone. It ends
    /// only when something fails.
    fn start(self) -> (String, Duration) {
        let unit =
            |command: &str| format!("systemd-run --quiet --unit=case-load --collect {command}");
        match self {
            Self::Store => (
                format!("mkdir -p {STORE}; {}", unit(&format!("--setenv=MAYFLY_TEST_CRASH_DIR={STORE} {WRITER}"))),
                Duration::from_secs(20),
            ),
            Self::Journal => (
                format!(
                    "cat >/run/emulated-host/load <<'END'
set -euo pipefail
mf() {{ curl -sS --fail-with-body --max-time 300 --unix-socket /run/mayfly/mayfly.sock \"$@\"; }}
while :; do
    for i in 1 2 3; do ids[i]=$(mf --json '{{\"golden\":\"default\"}}' http://mayfly/v1/sessions | jq -r .id); done
    for i in 1 2 3; do mf -X DELETE \"http://mayfly/v1/sessions/${{ids[i]}}\" >/dev/null; done
done
END
{}",
                    unit("bash /run/emulated-host/load")
                ),
                Duration::from_secs(30),
            ),
            // One after the other: how long a build takes depends on the machine outside.
            Self::Build => (
                unit("bash -c 'while mayfly golden build --rebuild --accel kvm --boot-timeout 600; do :; done'"),
                Duration::from_secs(180),
            ),
        }
    }
}

fn power_loss(context: &mut Context) -> Result<(), Failure> {
    context.host.set_cache(DiskCache::None);
    let outcome = context.reboot(None).and_then(|()| rounds(context));
    context.host.set_cache(DiskCache::Unsafe);
    outcome
}

fn rounds(context: &mut Context) -> Result<(), Failure> {
    let mut acknowledged = None;
    let mut reaped = 0;
    let (mut round, mut spoiled) = (0, 0);
    while round < ROUNDS {
        let load = [Load::Store, Load::Journal, Load::Build][round as usize % 3];
        match under(context, load) {
            Ok(wait) => {
                round += 1;
                context.note(&format!(
                    "round {round}: the power goes {:.1} s into {load:?}",
                    wait.as_secs_f64()
                ));
            }
            // That is a loss of power, too, and no proof: it counts for none.
            Err(Failure::Host(error))
                if spoiled < RETRIES && context.host.is_emulators_fault(&error) =>
            {
                spoiled += 1;
                context.note(&format!("the power goes, and the round does not count: {error}"));
            }
            Err(failure) => return Err(failure),
        }
        context.lose_power()?;
        if load == Load::Store {
            acknowledged = last_done(context, acknowledged);
        }
        let mut checked = check(context, load, acknowledged, &mut reaped);
        for _ in 0..RETRIES {
            match checked {
                Err(Failure::Host(error)) if context.host.is_emulators_fault(&error) => {
                    context.note(&format!("power is lost once more: {error}"));
                }
                _ => break,
            }
            context.lose_power()?;
            checked = check(context, load, acknowledged, &mut reaped);
        }
        checked?;
    }
    context.note(&format!(
        "{ROUNDS} losses of power; version {acknowledged:?} acknowledged; {reaped} sessions reaped"
    ));
    ensure!(acknowledged.is_some(), "no commit was ever acknowledged");
    ensure!(reaped > 0, "no session was alive whenever the power went");
    Ok(())
}

/// Puts the host under load for a random while; returns how long it was. The load is then still on.
fn under(context: &mut Context, load: Load) -> Result<Duration, Failure> {
    if load == Load::Journal {
        // The daemon runs since the check of the round before. The first session waits for the
        // golden's disks to be read.
        context.ok(
            "id=$(mf --json '{\"golden\":\"default\"}' http://mayfly/v1/sessions | jq -r .id)
            mf -X DELETE \"http://mayfly/v1/sessions/$id\"",
        )?;
    }
    let (script, longest) = load.start();
    context.ok(&script)?;
    // No bound that a slow machine would need more of.
    let wait = longest.mul_f64(rand::random_range(0.05..1.0));
    std::thread::sleep(wait);
    context.ok(
        "systemctl is-active case-load || { journalctl --unit case-load --lines 3 >&2; exit 1; }",
    )?;
    Ok(wait)
}

/// The last version whose commit the writer acknowledged before the power went, as the journal of
/// the boot before this one has it.
fn last_done(context: &Context, before: Option<u64>) -> Option<u64> {
    let text = std::fs::read(context.host.journal_of(context.host.boots() - 1)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    // A line that was cut off has no end.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let done = whole.lines().filter_map(|line| line.rsplit_once(": done ")?.1.trim().parse().ok());
    done.max().max(before)
}

/// All that must hold after a loss of power.
fn check(
    context: &mut Context,
    load: Load,
    acknowledged: Option<u64>,
    reaped: &mut u64,
) -> Result<(), Failure> {
    context.ok("mayfly golden verify")?;
    if let Some(done) = acknowledged {
        context.ok(&format!(
            "MAYFLY_TEST_CRASH_CHECK={STORE} MAYFLY_TEST_CRASH_DONE={done} {WRITER}"
        ))?;
    }
    start_daemon(context, "")?;
    let status = context.json("mf http://mayfly/v1/status")?;
    ensure!(status["reaped"].is_array(), "the daemon should say what it found: {status}");
    *reaped += status["reaped"].as_array().map_or(0, |lines| lines.len() as u64);
    if load == Load::Build {
        // Not each time: the disks of a golden are read before its first session after a boot, half
        // a minute here.
        let said = context.ok("mayfly run default -- echo alive")?;
        ensure!(said.contains("alive"), "a session should run: {said}");
    }
    Ok(())
}
