//! Properties that must hold under attack.

use mayfly_chaos_tests::slots::{self, ALL};

use crate::support::{assert_held, audit};

#[tokio::test(flavor = "multi_thread")]
async fn root_in_a_guest_gets_nowhere() {
    let _slots = slots::take(ALL);
    assert_held(&audit(&["guest", "egress"], &[]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn code_in_a_taken_over_vmm_gets_nowhere() {
    let _slots = slots::take(ALL);
    assert_held(&audit(&["vmm"], &[]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_vmm_is_confined_as_seen_from_the_host() {
    let _slots = slots::take(ALL);
    assert_held(&audit(&["host"], &[]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn abusers_are_held_at_their_quota_and_neighbours_start() {
    let _slots = slots::take(ALL);
    let report = audit(&["quota"], &[]).await;
    for check in &report.checks {
        for attempt in &check.attempts {
            println!(
                "{}: {}: {} (control: {})",
                check.id, attempt.what, attempt.seen, attempt.control
            );
        }
    }
    assert_held(&report);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_deletes_everything_deletes_only_itself() {
    let _slots = slots::take(ALL);
    assert_held(&audit(&["destruction"], &[]).await);
}
