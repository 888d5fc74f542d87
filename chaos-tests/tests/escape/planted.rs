//! The suite itself can fail: a planted breach is reported as one.

use mayfly_audit::{Planted, Report, Verdict};
use mayfly_chaos_tests::slots::{self, ALL};

use crate::support::audit;

/// Checks that each check reports a breach, and not for want of a control.
fn assert_breached(report: &Report, ids: &[&str]) {
    for id in ids {
        let check =
            report.checks.iter().find(|check| check.id == *id).unwrap_or_else(|| panic!("no {id}"));
        assert_eq!(
            check.verdict,
            Verdict::Breach,
            "{id} does not report the planted breach: {:#?}",
            check.attempts
        );
    }
    assert!(!report.passed());
    assert!(report.to_markdown().contains("BREACH") && report.to_html().contains("BREACH"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_without_confinement_is_reported() {
    let _slots = slots::take(ALL);
    let ids = [
        "host.user",
        "host.capabilities",
        "host.namespaces",
        "host.root",
        "host.descriptors",
        "host.limits",
        "host.cgroups",
        "vmm.files",
        "vmm.processes",
        "vmm.network",
        "vmm.privileges",
        "vmm.kernel",
        "vmm.disk",
        // It has the page cache open for writing.
        "vmm.descriptors",
        "vmm.sharing",
    ];
    assert_breached(&audit(&["host", "vmm"], &[Planted::UnconfinedVmm]).await, &ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_that_leak_into_a_guest_are_reported() {
    let _slots = slots::take(ALL);
    let ids = [
        "guest.memory",
        "guest.ports",
        "guest.disk",
        "guest.packets",
        "guest.neighbours",
        "guest.identity",
    ];
    assert_breached(&audit(&ids, &[Planted::LeakedSecrets]).await, &ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_golden_that_a_session_has_changed_is_reported() {
    let _slots = slots::take(ALL);
    let ids = ["guest.disk", "destruction.rm"];
    assert_breached(&audit(&ids, &[Planted::ChangedGolden]).await, &ids);
}
