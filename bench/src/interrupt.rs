//! Ctrl-C ends a benchmark in order.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::error::{BenchError, io};

/// What is dropped is taken down in the background: time for that before the process ends.
const AFTERMATH: Duration = Duration::from_millis(500);

/// Runs `work`, or drops it at the first `SIGINT`, `SIGTERM` or `SIGHUP`. Everything a benchmark
/// starts is taken down when it is dropped.
///
/// # Errors
/// [`BenchError::Interrupted`], or the error of `work`.
pub async fn guarded<T>(
    work: impl Future<Output = Result<T, BenchError>>,
) -> Result<T, BenchError> {
    let stream = |kind| signal(kind).map_err(io("listen to", "signals"));
    let (mut interrupt, mut terminate, mut hangup) = (
        stream(SignalKind::interrupt())?,
        stream(SignalKind::terminate())?,
        stream(SignalKind::hangup())?,
    );
    let outcome = tokio::select! {
        outcome = work => outcome,
        _ = interrupt.recv() => Err(BenchError::Interrupted),
        _ = terminate.recv() => Err(BenchError::Interrupted),
        _ = hangup.recv() => Err(BenchError::Interrupted),
    };
    if outcome.is_err() {
        tokio::time::sleep(AFTERMATH).await;
    }
    outcome
}
