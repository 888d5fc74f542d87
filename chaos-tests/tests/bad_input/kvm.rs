//! A host whose KVM cannot be used.

use mayfly_chaos_tests::home::Home;
use mayfly_chaos_tests::host::{self, Kvm};
use mayfly_chaos_tests::program::Program;
use serde_json::Value;

use crate::support::check_failure;

const BUILD: [&str; 5] = ["-q", "golden", "build", "--accel", "kvm"];

/// Returns one line of `mayfly doctor`.
pub fn check(doctor: Program, subject: &str) -> (String, String, String) {
    let ended = doctor.run();
    let checks: Vec<Value> =
        serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {ended}"));
    let check = checks
        .iter()
        .find(|check| check["subject"] == subject)
        .unwrap_or_else(|| panic!("{ended}"));
    let text = |field: &str| check[field].as_str().expect("a text").to_owned();
    (text("outcome"), text("found"), text("advice"))
}

#[test]
fn a_device_that_cannot_be_opened_is_told_with_the_remedy() {
    let home = Home::with_images();
    let hosts = [
        (Kvm::Missing, "has no /dev/kvm", "nested virtualization"),
        (Kvm::Forbidden, "no permission to open /dev/kvm", "run mayfly as root"),
        (Kvm::Dead, "no driver behind it", "modprobe kvm_intel or kvm_amd"),
    ];
    for (kvm, found, remedy) in hosts {
        let (outcome, said, advice) =
            check(host::with_kvm(&home, kvm, &["--json", "doctor"]), "KVM");
        assert_eq!(outcome, "limited", "{said}");
        assert!(said.contains(found) && advice.contains(remedy), "{said}; {advice}");
        let ended = host::with_kvm(&home, kvm, &BUILD).run();
        check_failure(&home, &ended, &["KVM is not usable", found, remedy]);
    }
}

#[test]
fn a_device_that_runs_no_guest_is_told_with_what_happened() {
    let home = Home::with_images();
    // Its verdict, which the build below finds out for itself.
    let (_, found, advice) = check(home.mayfly(["--json", "doctor"]), "KVM");
    if !found.contains("runs no Linux guest") {
        return eprintln!("SKIPPED: the KVM of this host is not broken: {found}");
    }
    assert!(
        advice.contains("hardware virtualization") && advice.contains("MAYFLY_TIME_SCALE"),
        "{advice}"
    );
    std::fs::remove_dir_all(home.layout().facts()).unwrap();
    let ended = home.mayfly(BUILD).run();
    check_failure(
        &home,
        &ended,
        &["KVM is not usable", "runs no Linux guest", "hardware virtualization"],
    );
}

#[test]
fn a_program_for_kvm_alone_cannot_emulate_and_says_so() {
    const MICROVM: &str = "/usr/bin/qemu-system-x86_64-microvm";
    if !std::path::Path::new(MICROVM).exists() {
        return eprintln!("SKIPPED: there is no {MICROVM}");
    }
    let home = Home::with_images();
    let tcg = ["-q", "golden", "build", "--accel", "tcg"];
    let ended = home.mayfly(tcg).env("MAYFLY_QEMU", MICROVM).run();
    check_failure(&home, &ended, &[MICROVM, "no software emulation", "qemu-system-x86"]);
    let (outcome, said, _) =
        check(home.mayfly(["--json", "doctor"]).env("MAYFLY_QEMU", MICROVM), "QEMU");
    assert!(outcome == "limited" && said.contains("for KVM only"), "{outcome}: {said}");
}
