//! `POST /sandboxes`: a session, as E2B's clients ask for one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use mayfly_api::{CreateSession, TenantName, bounded};
use mayfly_daemon::service::CreateError;
use serde::{Deserialize, Deserializer, Serialize};

use super::given::Given;
use super::network::{Network, NetworkBody};
use super::{Asking, Body, RestError};
use crate::ENVD_VERSION;
use crate::sandboxes::{Asked, Sandbox, Sandboxes};
use crate::settings::{DEFAULT_TEMPLATE, LONGEST_NAME};

/// Lifetime of a sandbox whose request says nothing.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);
/// Most variables and labels; the service has bounds of its own on their bytes.
const MOST_VARIABLES: usize = 256;
const MOST_LABELS: usize = 64;
/// Who runs the sandbox: there is one daemon.
const CLIENT: &str = "mayfly";

/// What a client sends; fields that are not here change nothing.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewSandbox {
    #[serde(default, rename = "templateID")]
    template_id: Option<String>,
    timeout: Option<u64>,
    #[serde(default, deserialize_with = "labels")]
    metadata: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "variables")]
    env_vars: BTreeMap<String, String>,
    #[serde(default, rename = "allow_internet_access")]
    allow_internet_access: Option<bool>,
    network: Option<NetworkBody>,
    auto_pause: Option<bool>,
    auto_resume: Option<AutoResume>,
    #[serde(default)]
    mcp: Given,
    #[serde(default)]
    iam: Given,
    #[serde(default)]
    volume_mounts: Given,
}

#[derive(Deserialize)]
struct AutoResume {
    enabled: Option<bool>,
}

/// A map, or null.
struct Labels(BTreeMap<String, String>);

fn labels<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    Ok(Option::<Labels>::deserialize(from)?.map_or_else(BTreeMap::new, |labels| labels.0))
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        bounded::map(from, "metadata", MOST_LABELS).map(Self)
    }
}

/// As [`Labels`].
struct Variables(BTreeMap<String, String>);

fn variables<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    Ok(Option::<Variables>::deserialize(from)?.map_or_else(BTreeMap::new, |variables| variables.0))
}

impl<'de> Deserialize<'de> for Variables {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        bounded::map(from, "envVars", MOST_VARIABLES).map(Self)
    }
}

/// What a client is told of a sandbox that it may use.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Handle {
    #[serde(rename = "templateID")]
    template_id: String,
    #[serde(rename = "sandboxID")]
    sandbox_id: String,
    #[serde(rename = "clientID")]
    client_id: &'static str,
    envd_version: &'static str,
    alias: String,
    envd_access_token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    traffic_access_token: Option<String>,
    domain: Option<String>,
}

impl Handle {
    pub fn of(sandboxes: &Sandboxes, sandbox: &Sandbox) -> Self {
        let asked = sandbox.asked.lock();
        Self {
            template_id: sandbox.session.golden().to_owned(),
            sandbox_id: sandbox.session.id().to_owned(),
            client_id: CLIENT,
            envd_version: ENVD_VERSION,
            alias: asked.template.clone(),
            envd_access_token: sandbox.envd_token(),
            traffic_access_token: (!asked.network.is_public()).then(|| sandbox.traffic_token()),
            domain: sandboxes.settings.domain.clone(),
        }
    }
}

/// The tenant that asks for a sandbox, whose request was counted before anything of it is read.
pub(crate) struct Counted(TenantName);

impl FromRequestParts<Arc<Sandboxes>> for Counted {
    type Rejection = RestError;

    async fn from_request_parts(
        parts: &mut Parts,
        sandboxes: &Arc<Sandboxes>,
    ) -> Result<Self, RestError> {
        let Asking(tenant) = Asking::from_request_parts(parts, sandboxes).await?;
        sandboxes.service.count_request(&tenant)?;
        Ok(Self(tenant))
    }
}

pub(crate) async fn create(
    State(sandboxes): State<Arc<Sandboxes>>,
    Counted(tenant): Counted,
    headers: HeaderMap,
    Body(asked, _held): Body<NewSandbox>,
) -> Result<(StatusCode, Json<Handle>), RestError> {
    refuse_what_is_not_there(&asked)?;
    let config = sandboxes.service.config();
    let template = asked.template_id.unwrap_or_else(|| DEFAULT_TEMPLATE.to_owned());
    if template.len() > LONGEST_NAME {
        let message = format!("templateID has more than {LONGEST_NAME} bytes");
        return Err(RestError::bad_request(message));
    }
    let golden = golden_of(&sandboxes, &template)?;
    let mut network = Network::new(asked.network.unwrap_or_default())?;
    if asked.allow_internet_access.is_some() {
        network.allow_internet = asked.allow_internet_access;
    }
    let request = CreateSession {
        golden,
        env: asked.env_vars,
        ttl_seconds: Some(lifetime(asked.timeout, config.max_ttl)?.as_secs()),
        // E2B's sandboxes know no idleness.
        idle_timeout_seconds: Some(config.max_ttl.as_secs()),
        egress: network.policy(config.egress.enabled),
        metadata: asked.metadata,
        ..CreateSession::default()
    };
    // The native API has the same tenants, and its sessions are no sandboxes.
    let key =
        headers.get("idempotency-key").map(|key| key.to_str().map(|key| format!("e2b:{key}")));
    let key = key.transpose().map_err(|_| {
        RestError::bad_request("the header Idempotency-Key has other characters than ASCII")
    })?;
    let session = sandboxes.service.create(&tenant, request, key).await?;
    let asked = Asked { template, network };
    let sandbox = match sandboxes.add(session.clone(), asked.clone()) {
        Ok(sandbox) if sandbox.is_as(&asked) => sandbox,
        Ok(_) => return Err(CreateError::IdempotencyConflict.into()),
        Err(full) => {
            session.end("there was no room for what its client asked for").await;
            return Err(super::too_much(full));
        }
    };
    Ok((StatusCode::CREATED, Json(Handle::of(&sandboxes, &sandbox))))
}

/// What would make a sandbox another one than was asked for.
fn refuse_what_is_not_there(asked: &NewSandbox) -> Result<(), RestError> {
    let resumes = asked.auto_resume.as_ref().is_some_and(|resume| resume.enabled == Some(true));
    let what = if asked.auto_pause == Some(true) || resumes {
        "autoPause and autoResume: a session cannot be paused yet"
    } else if asked.mcp.is_something() {
        "mcp: start the server in the sandbox by a command"
    } else if asked.iam.is_something() {
        "iam: give the sandbox a token by envVars"
    } else if asked.volume_mounts.is_something() {
        "volumeMounts: write files into the sandbox"
    } else {
        return Ok(());
    };
    let message = format!("not implemented by Mayfly: {what}");
    Err(RestError::new(StatusCode::NOT_IMPLEMENTED, message))
}

/// Returns the golden image for a template.
///
/// # Errors
/// 404.
pub(crate) fn golden_of(sandboxes: &Sandboxes, template: &str) -> Result<String, RestError> {
    let exists = |golden: &str| sandboxes.service.machine_of(golden).is_some();
    sandboxes.settings.golden_of(template, exists).ok_or_else(|| {
        let goldens = sandboxes.service.goldens();
        let known: Vec<_> = goldens.iter().map(|golden| golden.name.as_str()).collect();
        let message = format!(
            "template '{}' was not found: neither [e2b.templates] of the daemon's configuration nor a golden image has \
             its name; there are: {}",
            template.escape_debug(),
            if known.is_empty() { "none".to_owned() } else { known.join(", ") }
        );
        RestError::new(StatusCode::NOT_FOUND, message)
    })
}

/// Returns for how long a sandbox is to live, of the seconds that a client asks for.
///
/// # Errors
/// 400.
pub(crate) fn lifetime(seconds: Option<u64>, most: Duration) -> Result<Duration, RestError> {
    match seconds {
        None => Ok(DEFAULT_TIMEOUT.min(most)),
        Some(seconds) if (1..=most.as_secs()).contains(&seconds) => {
            Ok(Duration::from_secs(seconds))
        }
        Some(seconds) => Err(RestError::bad_request(format!(
            "timeout must be 1 to {} seconds (max_ttl of the daemon), not {seconds}",
            most.as_secs()
        ))),
    }
}
