//! Descriptions that many routes share, for the OpenAPI document.

use mayfly_api::ErrorBody;
use utoipa::{IntoParams, IntoResponses};

/// Path of everything about one session.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfSession {
    /// Session id
    #[expect(dead_code, reason = "describes what the extractor takes")]
    id: String,
}

/// Path of everything about one command in the background.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfCommand {
    /// Session id
    #[expect(dead_code, reason = "describes what the extractor takes")]
    id: String,
    /// Its number
    #[expect(dead_code, reason = "describes what the extractor takes")]
    n: u64,
}

/// Query of everything about one path in a guest.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OfPath {
    /// Absolute path; percent-encode bytes that are not UTF-8
    #[expect(dead_code, reason = "describes what the extractor takes")]
    path: String,
}

/// The answer when there is no such session.
#[derive(Debug, IntoResponses)]
#[response(status = 404, description = "No such session")]
pub struct NoSession(#[expect(dead_code, reason = "describes the body")] ErrorBody);

/// The answer when there is no such session, or no such command in it.
#[derive(Debug, IntoResponses)]
#[response(status = 404, description = "No such session or command")]
pub struct NoCommand(#[expect(dead_code, reason = "describes the body")] ErrorBody);

/// The answer when there is no such session, or no such path in its guest.
#[derive(Debug, IntoResponses)]
#[response(status = 404, description = "No such session or path")]
pub struct NoPath(#[expect(dead_code, reason = "describes the body")] ErrorBody);
