//! Short ways to do what most tests do.

use mayfly_audit::{AuditOptions, Planted, Report, Verdict};
use mayfly_chaos_tests::home::{GOLDEN, Home};
use mayfly_engine::Engine;
use mayfly_engine::progress::Silent;

/// Audits the host's golden image: these checks or groups, with these breaches planted.
pub async fn audit(only: &[&str], planted: &[Planted]) -> Report {
    let engine = Engine::open(Home::shared().layout().clone()).await.expect("an engine");
    let options = AuditOptions {
        only: only.iter().map(|name| (*name).to_owned()).collect(),
        starts: 3,
        watch_s: 3,
        planted: planted.to_vec(),
    };
    mayfly_audit::run(engine, GOLDEN, options, &Silent).await.expect("an audit")
}

/// Checks that every control worked, and that every attack failed.
pub fn assert_held(report: &Report) {
    let failed: Vec<String> = report
        .checks
        .iter()
        .flat_map(|check| check.attempts.iter().map(move |attempt| (check, attempt)))
        .filter(|(_, attempt)| attempt.verdict.is_failure())
        .map(|(check, a)| {
            format!("{} {}: {}: {} (control: {})", check.id, a.verdict, a.what, a.seen, a.control)
        })
        .collect();
    assert!(failed.is_empty() && report.passed(), "{}\n{}", report.summary(), failed.join("\n"));
    assert!(
        report.checks.iter().any(|check| check.verdict == Verdict::Held),
        "{}",
        report.summary()
    );
}
