//! Records which memory a session needs first, by one throw-away restore.

use super::error::GoldenError;
use super::first_steps::{Extent, FirstStepError, StepLimits};
use crate::engine::{Engine, SessionOptions};
use crate::session::SessionError;

/// Chunks of golden `name` in the order in which the first steps touch them.
pub(super) async fn record(engine: &Engine, name: &str) -> Result<Vec<u32>, GoldenError> {
    let failed = |error: SessionError| GoldenError::WorkingSet {
        name: name.to_owned(),
        reason: error.to_string(),
    };
    let golden = engine.golden(name).await?;
    let options = SessionOptions { record: true, ..SessionOptions::default() };
    let session = engine.start_session(&golden, &options).await.map_err(failed)?;
    let touched = async {
        let steps = golden.first_steps().take(session.guest(), Extent::All, StepLimits::usual());
        match steps.await {
            // What it leaves behind goes with the session.
            Ok(()) | Err(FirstStepError::TimedOut { .. }) => {}
            Err(error) => session.guarded(async { Err::<(), _>(error) }).await?,
        }
        session.recording().await
    };
    let chunks = touched.await;
    session.discard().await.map_err(failed)?;
    chunks.map_err(failed)
}
