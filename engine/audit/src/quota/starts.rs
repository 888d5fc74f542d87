//! Start times of a neighbour, alone and beside an abuser.

use std::time::Instant;

use mayfly_distribution::{Distribution, Summary};
use mayfly_host::cgroup::Limits;

use crate::lab::Lab;
use crate::options::AuditError;
use crate::report::Attempt;

/// A start beside an abuser may take this many times as long as the slowest alone. Generous: hosts
/// are noisy, and what is looked for is a neighbour that does not start any more.
const TIMES: f64 = 10.0;
/// Whatever the slowest alone was, so much is in bounds, in milliseconds.
const AT_LEAST: f64 = 5_000.0;

/// Starts sessions one after another, from nothing until the agent has answered.
pub(super) async fn measure(lab: &Lab) -> Result<Summary, AuditError> {
    let mut times = Distribution::default();
    for _ in 0..lab.options.starts.max(1) {
        let begun = Instant::now();
        let session = lab.session(Limits::default()).await?;
        times.push_ms(begun.elapsed());
        session.discard().await?;
    }
    Ok(times.summary())
}

fn text(summary: &Summary) -> String {
    format!(
        "p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms, n {}",
        summary.p50, summary.p99, summary.max, summary.n
    )
}

/// The attempt to keep neighbours from starting. The control is that they start at all.
pub(super) fn attempt(alone: &Summary, beside: &Summary) -> Attempt {
    let bound = (alone.max * TIMES).max(AT_LEAST);
    Attempt::judge(
        format!(
            "keep neighbours from starting: more than {TIMES} times the slowest start alone, and {AT_LEAST} ms at least"
        ),
        (format!("alone: {}", text(alone)), alone.n > 0),
        (
            format!("beside it: {}; bound {bound:.0} ms", text(beside)),
            beside.n == 0 || beside.max > bound,
        ),
    )
}
