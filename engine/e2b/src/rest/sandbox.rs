//! One sandbox: look at it, give it more time, end it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use mayfly_daemon::service::held::Held;
use serde::{Deserialize, Serialize};

use super::create::{Handle, lifetime};
use super::network::Network;
use super::{Asking, Body, Own, RestError};
use crate::ENVD_VERSION;
use crate::sandboxes::{Sandbox, Sandboxes};

/// Lifetime that a client gives a sandbox by connecting to it, when it says nothing.
const CONNECT_TIMEOUT: u64 = 300;
/// Seconds that a refresh adds, when it says nothing.
const REFRESH: u64 = 15;

/// What a client is told of a sandbox.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Detail {
    #[serde(rename = "templateID")]
    template_id: String,
    alias: String,
    #[serde(rename = "sandboxID")]
    sandbox_id: String,
    #[serde(rename = "clientID")]
    client_id: &'static str,
    started_at: String,
    end_at: String,
    envd_version: &'static str,
    cpu_count: u32,
    #[serde(rename = "memoryMB")]
    memory_mb: u64,
    #[serde(rename = "diskSizeMB")]
    disk_size_mb: u64,
    state: &'static str,
    metadata: BTreeMap<String, String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    more: Option<More>,
}

/// What only a look at the one sandbox tells.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct More {
    envd_access_token: String,
    domain: Option<String>,
    network: Network,
    allow_internet_access: Option<bool>,
    lifecycle: Lifecycle,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Lifecycle {
    auto_resume: bool,
    on_timeout: &'static str,
}

impl Detail {
    /// As a list tells it.
    pub fn of(sandboxes: &Sandboxes, sandbox: &Sandbox) -> Self {
        let session = &sandbox.session;
        let machine = sandboxes.service.machine_of(session.golden());
        let (cpu_count, memory, disk) = machine.unwrap_or((1, 0, 0));
        Self {
            template_id: session.golden().to_owned(),
            alias: sandbox.asked.lock().template.clone(),
            sandbox_id: session.id().to_owned(),
            client_id: "mayfly",
            started_at: rfc3339(session.created_at()),
            end_at: rfc3339(session.expires_at()),
            envd_version: ENVD_VERSION,
            cpu_count,
            memory_mb: memory >> 20,
            disk_size_mb: disk >> 20,
            state: "running",
            metadata: session.metadata().clone(),
            more: None,
        }
    }

    fn in_full(sandboxes: &Sandboxes, sandbox: &Sandbox) -> Self {
        let network = sandbox.asked.lock().network.clone();
        let more = More {
            envd_access_token: sandbox.envd_token(),
            domain: sandboxes.settings.domain.clone(),
            allow_internet_access: network.allow_internet,
            network,
            lifecycle: Lifecycle { auto_resume: false, on_timeout: "kill" },
        };
        Self { more: Some(more), ..Self::of(sandboxes, sandbox) }
    }
}

/// Says a time as JSON has it.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

pub(crate) async fn get(
    State(sandboxes): State<Arc<Sandboxes>>,
    Own(sandbox): Own,
) -> Result<Response, RestError> {
    let mut body = Held::new(&sandbox.session.account().passing()).map_err(super::too_much)?;
    serde_json::to_writer(&mut body, &Detail::in_full(&sandboxes, &sandbox))
        .map_err(|_| super::too_much(mayfly_daemon::service::held::Full))?;
    Ok(super::json(body))
}

pub(crate) async fn kill(
    State(sandboxes): State<Arc<Sandboxes>>,
    Asking(tenant): Asking,
    Path(id): Path<String>,
) -> Result<StatusCode, RestError> {
    let sandbox = sandboxes.of_tenant(&tenant, &id).ok_or_else(|| RestError::no_sandbox(&id))?;
    sandbox.session.end("it was discarded on request").await;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
pub(crate) struct Timeout {
    timeout: u64,
}

pub(crate) async fn timeout(
    State(sandboxes): State<Arc<Sandboxes>>,
    Own(sandbox): Own,
    Body(asked, _held): Body<Timeout>,
) -> Result<StatusCode, RestError> {
    if asked.timeout == 0 {
        sandbox.session.end("its time to live was set to 0").await;
        return Ok(StatusCode::NO_CONTENT);
    }
    let ttl = lifetime(Some(asked.timeout), sandboxes.service.config().max_ttl)?;
    extend(&sandboxes, &sandbox, ttl)?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
pub(crate) struct Refresh {
    duration: Option<u64>,
}

/// The way in which the oldest clients lengthen a sandbox's life.
pub(crate) async fn refresh(
    State(sandboxes): State<Arc<Sandboxes>>,
    Own(sandbox): Own,
    Body(asked, _held): Body<Refresh>,
) -> Result<StatusCode, RestError> {
    lengthen(&sandboxes, &sandbox, asked.duration.unwrap_or(REFRESH))?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
pub(crate) struct Connect {
    timeout: Option<u64>,
}

pub(crate) async fn connect(
    State(sandboxes): State<Arc<Sandboxes>>,
    Own(sandbox): Own,
    Body(asked, _held): Body<Connect>,
) -> Result<Json<Handle>, RestError> {
    lengthen(&sandboxes, &sandbox, asked.timeout.unwrap_or(CONNECT_TIMEOUT))?;
    Ok(Json(Handle::of(&sandboxes, &sandbox)))
}

/// Lets a sandbox live for so many seconds from now, if that is longer than it has.
fn lengthen(sandboxes: &Sandboxes, sandbox: &Sandbox, seconds: u64) -> Result<(), RestError> {
    let ttl = lifetime(Some(seconds.max(1)), sandboxes.service.config().max_ttl)?;
    let left = sandbox.session.expires_at().duration_since(SystemTime::now()).unwrap_or_default();
    if ttl > left { extend(sandboxes, sandbox, ttl) } else { Ok(()) }
}

fn extend(sandboxes: &Sandboxes, sandbox: &Sandbox, ttl: Duration) -> Result<(), RestError> {
    let session = &sandbox.session;
    sandboxes.service.extend(session.tenant(), session.id(), ttl)?;
    Ok(())
}
