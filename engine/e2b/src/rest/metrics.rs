//! Figures of a sandbox, as its guest tells them.

use std::time::{Duration, Instant, SystemTime};

use axum::Json;
use axum::http::StatusCode;
use mayfly_daemon::http::guest::with_guest;
use mayfly_host::time_scale::scaled;
use serde::Serialize;

use super::sandbox::rfc3339;
use super::{Own, RestError};

/// How long a guest may take to speak of itself.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Sample {
    timestamp: String,
    timestamp_unix: u64,
    cpu_count: u32,
    cpu_used_pct: f64,
    mem_used: u64,
    mem_total: u64,
    mem_cache: u64,
    disk_used: u64,
    disk_total: u64,
}

/// `GET /sandboxes/ID/metrics`: one sample, of now. The processors' share is since the sample
/// before, and 0 in the first.
pub(crate) async fn metrics(Own(sandbox): Own) -> Result<Json<Vec<Sample>>, RestError> {
    let session = &sandbox.session;
    let asked = with_guest(session, session.session().guest().stats());
    let stats = tokio::time::timeout(scaled(PATIENCE), asked).await.map_err(|_| {
        let message = format!("the guest did not answer within {PATIENCE:?}: try again");
        RestError::new(StatusCode::SERVICE_UNAVAILABLE, message)
    })??;
    let now = SystemTime::now();
    let at = Instant::now();
    let before = sandbox.sample.lock().replace((at, stats.cpu_busy_ms));
    let share = before.map_or(0.0, |(earlier, busy)| {
        let elapsed = at.duration_since(earlier).as_secs_f64() * 1e3;
        let all = elapsed * f64::from(stats.cpus.max(1));
        let busy = stats.cpu_busy_ms.saturating_sub(busy) as f64;
        if all > 0.0 { (100.0 * busy / all).clamp(0.0, 100.0) } else { 0.0 }
    });
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(Json(vec![Sample {
        timestamp: rfc3339(now),
        timestamp_unix: since.as_secs(),
        cpu_count: stats.cpus,
        cpu_used_pct: (share * 100.0).round() / 100.0,
        mem_used: stats.memory_total.saturating_sub(stats.memory_available),
        mem_total: stats.memory_total,
        // What the guest can take back at any time counts as available.
        mem_cache: 0,
        disk_used: stats.disk_total.saturating_sub(stats.disk_available),
        disk_total: stats.disk_total,
    }]))
}
