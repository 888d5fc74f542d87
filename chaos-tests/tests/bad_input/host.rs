//! A host that lacks something.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mayfly_chaos_tests::home::{GOLDEN, Home, program_path};
use mayfly_chaos_tests::host::refuse_user_namespaces;

use crate::kvm::check;
use crate::support::check_failure;

const RUN: [&str; 4] = ["run", GOLDEN, "--", "true"];

#[test]
fn without_root_it_says_so() {
    let home = Home::shared();
    let program = program_path();
    let drop =
        ["--reuid", "65534", "--regid", "65534", "--clear-groups", program.to_str().unwrap()];
    for args in [RUN.as_slice(), &["golden", "build"], &["shell", GOLDEN]] {
        let args = drop.into_iter().chain(args.iter().copied());
        let ended = home.program(Path::new("setpriv"), args).run();
        let word = if ended.stderr.contains("terminal") { "terminal" } else { "root" };
        check_failure(home, &ended, &[word]);
    }
    // A store that may not be looked at is not an empty one.
    let ended = home.program(Path::new("setpriv"), drop.into_iter().chain(["golden", "ls"])).run();
    check_failure(home, &ended, &["Permission denied"]);
}

#[test]
fn without_userfaultfd_it_says_so() {
    let home = Home::shared();
    let ended = home.mayfly(RUN).env("MAYFLY_USERFAULTFD", "/nonexistent").run();
    check_failure(home, &ended, &["/dev/userfaultfd", "Linux 6.1"]);
}

#[test]
fn without_qemu_it_names_the_package() {
    let home = Home::shared();
    let ended = home.mayfly(RUN).env("MAYFLY_QEMU", "/nonexistent").run();
    check_failure(home, &ended, &["/nonexistent", "qemu-system-x86"]);
    let ended = home.mayfly(RUN).env("MAYFLY_QEMU", "/bin/true").run();
    check_failure(home, &ended, &["version", "/bin/true"]);
}

#[test]
fn a_factor_of_slow_hosts_that_is_none_says_what_it_takes() {
    let home = Home::shared();
    let words = ["MAYFLY_TIME_SCALE", "`fast`", "from 1 to 100"];
    let ended = home.mayfly(RUN).env("MAYFLY_TIME_SCALE", "fast").run();
    check_failure(home, &ended, &words);
    let doctor = |value| {
        check(home.mayfly(["--json", "doctor"]).env("MAYFLY_TIME_SCALE", value), "time scale")
    };
    let (outcome, found, _) = doctor("fast");
    assert!(
        outcome == "missing" && words.iter().all(|word| found.contains(word)),
        "{outcome}: {found}"
    );
    let (outcome, found, _) = doctor("3");
    assert!(outcome == "ok" && found.contains("3 times as long"), "{outcome}: {found}");
}

#[test]
fn a_kernel_that_refuses_user_namespaces_is_told_with_the_remedy() {
    let doctor = Home::shared().mayfly(["--json", "doctor"]).prepared(refuse_user_namespaces);
    let (outcome, found, advice) = check(doctor, "user namespaces");
    assert_eq!(outcome, "limited", "{found}");
    assert!(found.contains("restored one by one") && found.contains("not permitted"), "{found}");
    assert!(advice.contains("seccomp"), "{advice}");
}

#[test]
fn another_version_of_qemu_is_refused_with_both_versions() {
    let home = Home::with_golden();
    let wrapper = home.layout().run().join("qemu");
    let manifest: serde_json::Value = serde_json::from_str(&home.manifest()).unwrap();
    let pins = &manifest["pins"];
    // It is to differ from the golden's in its version alone.
    let program = if pins["vmm"] == "qemu-microvm" {
        "qemu-system-x86_64-microvm"
    } else {
        "qemu-system-x86_64"
    };
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'QEMU emulator version 9.8.7 (Elsewhere)'; exit; fi\n\
         exec {program} \"$@\"\n"
    );
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let made_with = pins["vmm_version"].as_str().unwrap();
    let ended = home.mayfly(RUN).env("MAYFLY_QEMU", &wrapper).run();
    check_failure(&home, &ended, &[GOLDEN, "9.8.7 (Elsewhere)", made_with]);
}
