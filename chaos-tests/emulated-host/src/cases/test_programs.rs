//! Tests of the workspace that ask for a host, run in this one.

use std::time::Duration;

use crate::case::{Case, Context, Failure};
use crate::ensure;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "tests-cgroup",
        about: "The engine's own tests of cgroups, from a login shell and in a delegated unit",
        limit: Duration::from_secs(600),
        needs: crate::case::Needs::Host,
        quick: true,
        tests: &["mayfly_host"],
        run: |context| {
            tests(context, "mayfly_host --include-ignored cgroup::")?;
            let unit = "systemd-run --quiet --wait --pipe --collect --property=Delegate=yes --setenv=HOME=/root";
            tests_under(context, unit, "mayfly_host --include-ignored cgroup::")
        },
    },
    Case {
        name: "tests-sessions",
        about: "The tests of sessions: discard, docker, isolation, many at a time, terminals",
        limit: Duration::from_secs(2400),
        tests: &["sessions"],
        // The demo is a case of its own; its tests build goldens, for which there is no mirror here.
        run: |context| tests(context, "sessions --skip probe:: --skip zygote:: --skip demo::"),
        ..Case::USUAL
    },
    Case {
        name: "leak-audit",
        about: "Nothing of Mayfly is left on the host after what ran since its boot",
        tests: &["leak_audit"],
        run: |context| tests(context, "leak_audit --include-ignored"),
        ..Case::USUAL
    },
];

pub(super) fn tests(context: &mut Context, line: &str) -> Result<(), Failure> {
    tests_under(context, "", line)
}

/// Runs a test program, with another before it, one test at a time: the processor is slow, and
/// there is one.
fn tests_under(context: &mut Context, under: &str, line: &str) -> Result<(), Failure> {
    let output = context.sh(&format!("{under} /opt/mayfly/bin/tests/{line} --test-threads=1"))?;
    let failed: Vec<&str> =
        output.stdout.lines().filter(|line| line.ends_with("... FAILED")).collect();
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    let summary = output.stdout.lines().find(|line| line.starts_with("test result: ok."));
    let passed =
        summary.and_then(|line| line.split(' ').nth(3)).and_then(|count| count.parse::<u32>().ok());
    ensure!(
        output.success() && passed.is_some_and(|count| count > 0),
        "no test passed ({})",
        output.ending()
    );
    Ok(())
}
