//! `GET /v1/sessions/ID/stats` and `logs`: statistics of VMM, pager and guest, and the console.

use std::time::Duration;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use mayfly_api::{ErrorBody, GuestFigures, PagerFigures, SessionStats};
use mayfly_guest::channel::{GuestStats, Health, ServiceState};
use mayfly_host::time_scale::scaled;

use crate::http::described::{NoSession, OfSession};
use crate::http::error::ApiError;
use crate::http::extract::Live;
use crate::http::guest::with_guest;

/// How long a guest may take to speak of itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// Read the end of the guest's console
#[utoipa::path(
    get, path = "/v1/sessions/{id}/logs", tag = "sessions",
    params(OfSession),
    responses(
        (status = 200, description = "At most the last 16 KiB, without control characters", body = String, content_type = "text/plain"),
        NoSession,
    )
)]
pub async fn logs(live: Live) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], live.session.console())
}

/// Figures of a session
#[utoipa::path(
    get, path = "/v1/sessions/{id}/stats", tag = "sessions",
    params(OfSession),
    responses(
        (status = 200, body = SessionStats),
        NoSession,
        (status = 410, description = "It is over", body = ErrorBody),
        (status = 503, description = "The figures of the VMM could not be read in time", body = ErrorBody),
    )
)]
pub async fn stats(live: Live) -> Result<Json<SessionStats>, ApiError> {
    let session = live.session.session();
    let asked = async { tokio::try_join!(session.guest().health(), session.guest().stats()) };
    let guest =
        async { tokio::time::timeout(scaled(PATIENCE), with_guest(&live.session, asked)).await };
    let pager = async { tokio::time::timeout(scaled(PATIENCE), session.pager_stats()).await };
    let (guest, pager) = tokio::join!(guest, pager);
    let vmm = tokio::time::timeout(scaled(PATIENCE), live.session.vmm_figures()).await;
    let vmm = vmm.map_err(|_| busy())?.map_err(|error| internal(&error))?;
    Ok(Json(SessionStats {
        guest: guest.ok().and_then(Result::ok).map(guest_figures),
        vmm,
        pager: pager.ok().and_then(Result::ok).map(|stats| pager_figures(&stats)),
    }))
}

fn busy() -> ApiError {
    let message = format!("the figures of the VMM were not read within {PATIENCE:?}: try again");
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message).retry_after(PATIENCE)
}

fn internal(error: &dyn std::fmt::Display) -> ApiError {
    let message = format!("cannot read the figures of the VMM: {error}");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
}

fn guest_figures((health, stats): (Health, GuestStats)) -> GuestFigures {
    let service = |state: &ServiceState| match state {
        ServiceState::Waiting => "waiting".to_owned(),
        ServiceState::Running(pid) => format!("running as process {pid}"),
        ServiceState::Exited(code) => format!("exited with code {code}"),
        ServiceState::Killed(signal) => format!("killed by signal {signal}"),
        ServiceState::Failed(reason) => format!("not started: {reason}"),
    };
    GuestFigures {
        docker: health.docker,
        services: health.services.iter().map(|s| (s.name.clone(), service(&s.state))).collect(),
        uptime_ms: health.uptime_ms,
        load: stats.load_hundredths.map(|hundredths| f64::from(hundredths) / 100.0),
        cpus: stats.cpus,
        cpu_busy_ms: stats.cpu_busy_ms,
        memory_total_bytes: stats.memory_total,
        memory_available_bytes: stats.memory_available,
        disk_total_bytes: stats.disk_total,
        disk_available_bytes: stats.disk_available,
        processes: stats.processes,
    }
}

fn pager_figures(stats: &mayfly_pager::SessionStats) -> PagerFigures {
    PagerFigures {
        faults: stats.counters.faults,
        fills: stats.counters.fills,
        filled_bytes: stats.counters.bytes_filled,
        resident_bytes: stats.resident_bytes,
        wait_p50_nanos: stats.counters.wait.p50_nanos,
        wait_p99_nanos: stats.counters.wait.p99_nanos,
    }
}
