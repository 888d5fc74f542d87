//! Errors of the REST API: the status once more in the body, and a message.

use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use mayfly_daemon::http::error::ApiError;
use mayfly_daemon::service::{CreateError, LookupError};
use serde_json::json;

/// Words by which clients know that it is worth to wait for another's end.
const CONCURRENT: &str = "maximum number of concurrent sandboxes";

/// Error of the REST API.
#[derive(Debug)]
pub(crate) struct RestError(ApiError);

impl RestError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self(ApiError::new(status, "e2b", message))
    }

    /// Creates the error for an id that names no sandbox of whoever asks.
    pub fn no_sandbox(id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("sandbox \"{}\" was not found", id.escape_debug()))
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }
}

impl From<ApiError> for RestError {
    fn from(error: ApiError) -> Self {
        let status = match error.status() {
            StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
            StatusCode::GONE => StatusCode::NOT_FOUND,
            _ => return Self(error),
        };
        Self::new(status, error.message())
    }
}

impl From<LookupError> for RestError {
    fn from(error: LookupError) -> Self {
        ApiError::from(error).into()
    }
}

impl From<CreateError> for RestError {
    fn from(error: CreateError) -> Self {
        match &error {
            CreateError::TenantBusy { .. }
            | CreateError::TenantTotal { .. }
            | CreateError::QueueFull { .. }
            | CreateError::Overloaded { .. } => {
                let message = format!("the {CONCURRENT} is reached: {error}");
                let after = error.retry_after().unwrap_or(Duration::from_secs(1));
                let refusal = ApiError::new(StatusCode::TOO_MANY_REQUESTS, error.code(), message);
                Self(refusal.retry_after(after))
            }
            _ => ApiError::from(error).into(),
        }
    }
}

impl IntoResponse for RestError {
    fn into_response(self) -> Response {
        let (status, message) = (self.0.status(), self.0.message().to_owned());
        // For its headers, and the log.
        let (mut head, _) = self.0.into_response().into_parts();
        for name in [axum::http::header::CONTENT_LENGTH, axum::http::header::CONTENT_TYPE] {
            head.headers.remove(name);
        }
        let body = json!({ "code": status.as_u16(), "message": message });
        let (_, body) = Json(body).into_response().into_parts();
        head.headers.insert(
            axum::http::header::CONTENT_TYPE,
            axum::http::HeaderValue::from_static("application/json"),
        );
        Response::from_parts(head, body)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::header;
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_refusal_has_the_words_that_clients_wait_for() {
        let retry_after = Duration::from_millis(1500);
        for error in [
            CreateError::TenantBusy { limit: 2, retry_after },
            CreateError::QueueFull { queued: 9, retry_after },
        ] {
            let response = RestError::from(error).into_response();
            assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(response.headers()[header::RETRY_AFTER], "2");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["code"], 429);
            assert!(body["message"].as_str().unwrap().contains("maximum number of concurrent"));
        }
    }

    #[test]
    fn what_a_client_has_done_wrong_is_400_and_what_is_gone_404() {
        let status = |error: RestError| error.into_response().status();
        let bad = CreateError::BadRequest { reason: "x".into() };
        assert_eq!(status(bad.into()), StatusCode::BAD_REQUEST);
        let gone = LookupError::Gone { id: "a".into(), reason: "killed".into() };
        assert_eq!(status(gone.into()), StatusCode::NOT_FOUND);
        let rate = CreateError::RateLimited { retry_after: Duration::from_secs(1) };
        assert_eq!(status(rate.into()), StatusCode::TOO_MANY_REQUESTS);
    }
}
