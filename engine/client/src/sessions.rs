//! Sessions and the daemon.

use hyper::{Method, header};
use mayfly_api::{
    CreateSession, EgressPolicy, EgressStatus, Exec, ExecResult, Extend, GoldenList, GoldenStatus,
    ServiceStatus, SessionInfo, SessionList, SessionStats,
};

use super::call::{Client, JSON, empty, json_body};
use super::error::ClientError;

impl Client {
    /// Creates a session. The same request with the same `idempotency_key` gets the same session.
    /// Dropping the future withdraws a request that still waits.
    ///
    /// # Errors
    /// [`ClientError::Refused`], with [`ClientError::retry_after`] when it may work later.
    pub async fn create(
        &self,
        request: &CreateSession,
        idempotency_key: Option<&str>,
    ) -> Result<SessionInfo, ClientError> {
        let mut call =
            self.request(Method::POST, "/v1/sessions").header(header::CONTENT_TYPE, JSON);
        if let Some(key) = idempotency_key {
            call = call.header("idempotency-key", key);
        }
        self.json(call, json_body(request)?).await
    }

    /// Lists the tenant's sessions.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>, ClientError> {
        self.get::<SessionList>("/v1/sessions").await.map(|list| list.sessions)
    }

    /// Returns the session with this id.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when there is none, or it is over.
    pub async fn session(&self, id: &str) -> Result<SessionInfo, ClientError> {
        self.get(session_path(id, "")).await
    }

    /// Discards a session; nothing of it is left when this returns.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when there is none, or it is over.
    pub async fn kill(&self, id: &str) -> Result<(), ClientError> {
        self.done(self.request(Method::DELETE, session_path(id, "")), empty()).await
    }

    /// Lets a session live for `ttl_seconds` from now.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn extend(&self, id: &str, ttl_seconds: u64) -> Result<SessionInfo, ClientError> {
        self.post(session_path(id, "/extend"), &Extend { ttl_seconds }).await
    }

    /// Returns what a session may reach outside, and what it has used.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when there is none, or it is over.
    pub async fn egress(&self, id: &str) -> Result<EgressStatus, ClientError> {
        self.get(session_path(id, "/egress")).await
    }

    /// Replaces what a session may reach outside; by nothing when that is `None`. Connections that
    /// are not allowed any more are cut off.
    ///
    /// # Errors
    /// [`ClientError::Refused`], also when the daemon allows no such policy.
    pub async fn set_egress(
        &self,
        id: &str,
        egress: Option<&EgressPolicy>,
    ) -> Result<EgressStatus, ClientError> {
        let call = self.request(Method::PUT, session_path(id, "/egress"));
        self.json(call.header(header::CONTENT_TYPE, JSON), json_body(&egress)?).await
    }

    /// Returns the end of the guest's console.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when there is no such session.
    pub async fn logs(&self, id: &str) -> Result<String, ClientError> {
        self.text(self.request(Method::GET, session_path(id, "/logs"))).await
    }

    /// Returns the figures of a session.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when there is no such session.
    pub async fn stats(&self, id: &str) -> Result<SessionStats, ClientError> {
        self.get(session_path(id, "/stats")).await
    }

    /// Runs a command and waits for its end. Dropping the future kills it.
    ///
    /// # Errors
    /// [`ClientError::Refused`], `not_found` when there is no such program.
    pub async fn exec(&self, id: &str, command: &Exec) -> Result<ExecResult, ClientError> {
        self.post(session_path(id, "/exec"), command).await
    }

    /// Returns the state of the daemon.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self) -> Result<ServiceStatus, ClientError> {
        self.get("/v1/status").await
    }

    /// Returns the golden images of the daemon.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn goldens(&self) -> Result<Vec<GoldenStatus>, ClientError> {
        self.get::<GoldenList>("/v1/goldens").await.map(|list| list.goldens)
    }

    /// Returns the daemon's metrics as OpenMetrics text.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn metrics(&self) -> Result<String, ClientError> {
        self.text(self.request(Method::GET, "/metrics")).await
    }

    /// Returns the daemon's description of its API.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn openapi(&self) -> Result<serde_json::Value, ClientError> {
        self.get("/openapi.json").await
    }
}

/// The path of a session's resource. An id with other characters than ids have cannot lead
/// elsewhere.
pub(super) fn session_path(id: &str, rest: &str) -> String {
    let id = percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC);
    format!("/v1/sessions/{id}{rest}")
}
