//! First steps of a new user: doctor, golden build, run, shell, demo.

use std::time::Duration;

use crate::case::{Case, Context, Failure, Needs};
use crate::ensure;
use crate::guest_agent::Exit;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "doctor",
        about: "`mayfly doctor` finds everything on a stock host, KVM too",
        needs: Needs::Kvm,
        quick: true,
        run: doctor,
        ..Case::USUAL
    },
    Case {
        name: "golden-build",
        about: "A golden image is built under KVM",
        limit: Duration::from_secs(1200),
        needs: Needs::Kvm,
        quick: true,
        run: golden_build,
        ..Case::USUAL
    },
    Case {
        name: "golden-verify",
        about: "The golden image is read back as it was written",
        limit: Duration::from_secs(600),
        run: |context| context.ok("mayfly golden verify default").map(|_| ()),
        ..Case::USUAL
    },
    Case {
        name: "run",
        about: "`mayfly run` passes on exit codes, signals, input and output",
        quick: true,
        run: run_codes,
        ..Case::USUAL
    },
    Case {
        name: "login-session",
        about: "`mayfly run` works in a login session of systemd-logind",
        limit: Duration::from_secs(120),
        quick: true,
        run: login_session,
        ..Case::USUAL
    },
    Case {
        name: "shell",
        about: "`mayfly shell` gives a terminal of the guest",
        limit: Duration::from_secs(120),
        run: shell,
        ..Case::USUAL
    },
    Case {
        name: "demo",
        about: "`mayfly demo` shows its figures",
        limit: Duration::from_secs(600),
        run: demo,
        ..Case::USUAL
    },
];

/// What doctor must find to be as it should.
const MUST_BE_OK: [&str; 3] = ["KVM", "cgroups", "userfaultfd"];

fn doctor(context: &mut Context) -> Result<(), Failure> {
    let checks = context.json("mayfly --json doctor")?;
    let checks = checks.as_array().cloned().unwrap_or_default();
    ensure!(checks.len() > 8, "doctor made {} checks", checks.len());
    for check in &checks {
        let (subject, found) = (&check["subject"], &check["found"]);
        ensure!(check["outcome"] != "missing", "{subject} is missing: {found}");
    }
    for subject in MUST_BE_OK {
        let check = checks.iter().find(|check| check["subject"] == subject);
        ensure!(
            check.is_some_and(|check| check["outcome"] == "ok"),
            "{subject} should be ok: {check:?}"
        );
    }
    let cgroups = checks.iter().find(|check| check["subject"] == "cgroups");
    let found = cgroups.map(|check| check["found"].to_string()).unwrap_or_default();
    ensure!(found.contains("v2"), "doctor should have found cgroup v2: {found}");
    Ok(())
}

fn golden_build(context: &mut Context) -> Result<(), Failure> {
    context.ok("mayfly golden build --accel kvm --boot-timeout 600")?;
    let goldens = context.json("mayfly --json golden ls")?;
    ensure!(goldens[0]["name"] == "default", "there should be a golden image: {goldens}");
    let kernel = context.ok("dmesg --level=emerg,alert,crit || :")?;
    ensure!(kernel.trim().is_empty(), "the kernel of the host complains: {kernel}");
    Ok(())
}

fn run_codes(context: &mut Context) -> Result<(), Failure> {
    context.ok("mayfly run default -- true")?;
    for (command, code) in [
        ("sh -c 'exit 7'", 7),
        ("sh -c 'kill -9 $$'", 137),
        ("no-such-program", 127),
        ("/etc", 126),
    ] {
        let output = context.sh(&format!("mayfly run default -- {command}"))?;
        ensure!(
            output.exit == Exit::Code(code),
            "`{command}` gave {}, not exit code {code}",
            output.ending()
        );
    }
    let output =
        context.sh("printf 'one\\ntwo' | mayfly run default -- sh -c 'cat; echo aside >&2'")?;
    ensure!(
        output.success() && output.stdout == "one\ntwo",
        "its input should come back: {output:?}"
    );
    ensure!(
        output.stderr.lines().any(|line| line == "aside"),
        "stderr should be apart: {output:?}"
    );
    let guest = context.ok("mayfly run default -- uname -r")?;
    ensure!(guest.contains("cloud"), "it should run the golden's kernel: {guest}");
    Ok(())
}

fn login_session(context: &mut Context) -> Result<(), Failure> {
    // What pam_systemd gives a login: session-N.scope, which is delegated to nobody. Without a user
    // systemd 252 asks no PAM.
    let said = context.ok(
        "systemd-run --quiet --wait --pipe --collect --property=User=root --property=PAMName=login \
         bash --login -c 'cat /proc/self/cgroup; mayfly run default -- echo from the guest'",
    )?;
    ensure!(
        said.contains("session-") && said.contains(".scope"),
        "it should be a login session: {said}"
    );
    ensure!(said.contains("from the guest"), "the session should have run: {said}");
    Ok(())
}

fn shell(context: &mut Context) -> Result<(), Failure> {
    let said = context.ok("script --quiet --return --log-out /dev/null \
         --command \"mayfly shell default -- sh -c 'stty size; tty; test -t 0 && test -t 1 && exit 5'\" && exit 9\n\
         echo code $?")?;
    ensure!(said.contains("/dev/pts/"), "the guest's command should have a terminal: {said}");
    ensure!(said.contains("code 5"), "its exit code should come back: {said}");
    Ok(())
}

fn is_figure(word: &str) -> bool {
    word.parse::<f64>().is_ok_and(|figure| figure > 0.0)
}

fn demo(context: &mut Context) -> Result<(), Failure> {
    let said = context.ok("mayfly demo --rounds 2 --boots 1")?;
    for row in ["standby ", "cold ", "cold boot ", "crun "] {
        // The number of its starts comes after the last figure.
        let figures = said.lines().find_map(|line| line.strip_prefix(row));
        let measured = figures.is_some_and(|rest| {
            rest.split_whitespace().filter(|word| is_figure(word)).count() >= 3
        });
        ensure!(measured, "{row:?} should have figures: {said}");
    }
    ensure!(said.contains("hello from a container"), "a container should have run: {said}");
    let lines = said.lines().count();
    ensure!(lines <= 25, "it should say so in at most 25 lines, not {lines}: {said}");
    Ok(())
}
