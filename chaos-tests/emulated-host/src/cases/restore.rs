//! Cases of what a restored guest must not share with its siblings or keep from the time of its
//! snapshot.

use std::collections::HashSet;
use std::str::FromStr;
use std::time::Duration;

use super::daemon::{await_standbys, start_daemon};
use crate::case::{Case, Context, Failure};
use crate::ensure;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "uniqueness",
        about: "Sessions of one golden differ in entropy, machine id, boot id and name",
        limit: Duration::from_secs(600),
        run: uniqueness,
        ..Case::USUAL
    },
    Case {
        name: "clocks-of-an-old-golden",
        about: "With a golden that is a week old the wall clock is right, and no other clock has jumped",
        limit: Duration::from_secs(900),
        run: old_golden,
        ..Case::USUAL
    },
];

/// How far the clocks of guest and host may be apart, with the time between looking at one and the
/// other.
const CLOCK_TOLERANCE: f64 = 10.0;
const WEEK: u64 = 7 * 24 * 3600;

/// What must be a session's own, one a line.
const OWN: &str = "cat /proc/sys/kernel/random/boot_id /etc/machine-id; hostname; cat /proc/sys/kernel/random/uuid; \
    head -c 32 /dev/urandom | md5sum; docker run --rm busybox cat /proc/sys/kernel/random/uuid";

fn uniqueness(context: &mut Context) -> Result<(), Failure> {
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.push(context.ok(&format!("mayfly run default -- sh -euc '{OWN}'"))?);
    }
    start_daemon(context, "[goldens.default]\nfloor = 2\nmax_standbys = 2")?;
    await_standbys(context, 2)?;
    // Two standbys of one pool at a time: nothing tells them apart but what they are given.
    let both = context.ok(&format!(
        "mayfly run default -- sh -euc '{OWN}; sleep 5' >/run/emulated-host/first &
         mayfly run default -- sh -euc '{OWN}' >/run/emulated-host/second; wait
         cat /run/emulated-host/first; echo; cat /run/emulated-host/second"
    ))?;
    seen.extend(both.split("\n\n").map(str::to_owned));
    ensure!(seen.len() == 4, "there should be four sessions: {seen:?}");
    for (line, what) in
        ["boot id", "machine id", "host name", "UUID", "random bytes", "a container's UUID"]
            .iter()
            .enumerate()
    {
        let values: HashSet<_> = seen.iter().filter_map(|said| said.lines().nth(line)).collect();
        ensure!(values.len() == seen.len(), "sessions share their {what}: {values:?}");
    }
    Ok(())
}

/// Clocks of a guest: wall clock, uptime, and both again after two seconds of sleep. Of the host:
/// wall clock before and after.
const CLOCKS: &str = "date +%s.%N; mayfly run default -- sh -euc 'date +%s.%N; cut -d \" \" -f 1 /proc/uptime; sleep 2; \
    date +%s.%N; cut -d \" \" -f 1 /proc/uptime; docker run --rm busybox date +%s'; date +%s.%N";

fn old_golden(context: &mut Context) -> Result<(), Failure> {
    let now: u64 = number(&context.ok("date +%s")?)?;
    let fresh = clocks(context)?;
    context.reboot(Some(now + WEEK))?;
    let old = clocks(context)?;
    ensure!(
        old[0] - fresh[0] > (WEEK / 2) as f64,
        "the host's clock was to be a week ahead: {old:?}"
    );
    for (clocks, name) in [(&fresh, "a fresh golden"), (&old, "a golden that is a week old")] {
        let &[before, wall, uptime, wall_later, uptime_later, container, after] = &clocks[..]
        else {
            return Err(Failure::Failed(format!(
                "{name} has other clocks than expected: {clocks:?}"
            )));
        };
        let right = |wall: f64| wall > before - CLOCK_TOLERANCE && wall < after + CLOCK_TOLERANCE;
        ensure!(right(wall), "{name}: the wall clock is at {wall}, the host's was at {before}");
        ensure!(
            right(wall_later) && right(container),
            "{name}: the wall clock goes wrong later: {clocks:?}"
        );
        // A golden is a few minutes old when it is snapshotted.
        ensure!(uptime > 0.0 && uptime < 3600.0 * 6.0, "{name}: the guest is up for {uptime} s");
        let (slept, slept_wall) = (uptime_later - uptime, wall_later - wall);
        ensure!(
            (1.9..30.0).contains(&slept),
            "{name}: two seconds of sleep took {slept} s of uptime"
        );
        ensure!(
            (slept - slept_wall).abs() < 2.0,
            "{name}: the clocks do not go alike: {slept} s and {slept_wall} s"
        );
    }
    Ok(())
}

fn clocks(context: &mut Context) -> Result<Vec<f64>, Failure> {
    context.ok(CLOCKS)?.lines().map(number).collect()
}

fn number<T: FromStr>(text: &str) -> Result<T, Failure> {
    text.trim().parse().map_err(|_| Failure::Failed(format!("{text:?} should be a number")))
}
