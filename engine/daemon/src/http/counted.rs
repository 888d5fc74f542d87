//! Answers that a tenant can make large, whose bytes count for it until its client has read them.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::service::held::{Full, Held};
use crate::service::shares::Account;

/// Answers with `value` as JSON, which counts for `account` as what passes through.
///
/// # Errors
/// [`Full`].
pub fn json(account: &Account, value: &impl Serialize) -> Result<Response, Full> {
    let mut body = Held::new(&account.passing())?;
    // Plain data always has a text; what fails is the room for it.
    serde_json::to_writer(&mut body, value).map_err(|_| Full)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body.into_bytes()).into_response())
}
