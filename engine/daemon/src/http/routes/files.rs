//! Files of a session.

use axum::Json;
use axum::body::Body as HttpBody;
use axum::http::StatusCode;
use axum::response::Response;
use mayfly_api::{Content, Entry, ErrorBody, FileStat, Listing, Written};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::http::counted;
use crate::http::described::{NoPath, OfPath, OfSession};
use crate::http::error::ApiError;
use crate::http::extract::{GuestPath, GuestPaths, Live, Params};
use crate::http::guest::with_guest;
use crate::http::transfer;

/// Query that selects a part of a file.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Range {
    /// First byte.
    #[serde(default)]
    offset: u64,
    /// Most bytes; all when absent.
    limit: Option<u64>,
}

/// Query with permission bits.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Mode {
    /// Permission bits in octal, such as `755`.
    mode: Option<String>,
}

/// Query that says how a directory is made.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Parents {
    /// Also makes missing parents, and accepts that it is there already.
    #[serde(default)]
    parents: bool,
}

/// Query that says how a path is removed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Recursive {
    /// Also what is in a directory.
    #[serde(default)]
    recursive: bool,
}

/// Read a file
#[utoipa::path(
    get, path = "/v1/sessions/{id}/files/content", tag = "files",
    params(
        OfSession,
        OfPath,
        Range,
    ),
    responses(
        (status = 200, description = "The bytes", body = Content, content_type = "application/octet-stream"),
        (status = 404, description = "No such session or file", body = ErrorBody),
        (status = 409, description = "It is a directory", body = ErrorBody),
    )
)]
pub async fn read(
    live: Live,
    GuestPath(path): GuestPath,
    Params(range): Params<Range>,
) -> Result<Response, ApiError> {
    let guest = live.session.session().guest();
    let opened = guest.open_read(path, range.offset, range.limit.unwrap_or(u64::MAX));
    let (_, reader) = with_guest(&live.session, opened).await?;
    transfer::download(live, "application/octet-stream", reader)
}

/// Write a file
///
/// All of it appears at once, or nothing does. Its directory must exist.
#[utoipa::path(
    put, path = "/v1/sessions/{id}/files/content", tag = "files",
    params(
        OfSession,
        OfPath,
        Mode,
    ),
    request_body(content = Content, content_type = "application/octet-stream"),
    responses(
        (status = 200, body = Written),
        (status = 404, description = "No such session or directory", body = ErrorBody),
        (status = 507, description = "The guest's disk is full", body = ErrorBody),
    )
)]
pub async fn write(
    live: Live,
    GuestPath(path): GuestPath,
    Params(mode): Params<Mode>,
    body: HttpBody,
) -> Result<Json<Written>, ApiError> {
    let mode = mode.bits(0o644)?;
    let mut from = transfer::upload(body);
    let guest = live.session.session().guest();
    let outcome = with_guest(&live.session, guest.write_file_from(path, mode, &mut from)).await;
    let bytes = transfer::settled(outcome, &mut from).await?;
    Ok(Json(Written { bytes }))
}

/// List a directory
#[utoipa::path(
    get, path = "/v1/sessions/{id}/files/list", tag = "files",
    params(
        OfSession,
        OfPath,
    ),
    responses(
        (status = 200, body = Listing),
        (status = 404, description = "No such session or directory", body = ErrorBody),
        (status = 409, description = "It is no directory", body = ErrorBody),
    )
)]
pub async fn list(live: Live, GuestPath(path): GuestPath) -> Result<Response, ApiError> {
    let mut listed = with_guest(&live.session, live.session.session().guest().list(path)).await?;
    let account = live.session.account().clone();
    // A million names take a while.
    let answer = tokio::task::spawn_blocking(move || {
        listed.entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let entries = std::mem::take(&mut listed.entries).into_iter().map(Entry::from).collect();
        counted::json(&account, &Listing { entries })
    });
    match answer.await {
        Ok(answer) => Ok(answer?),
        Err(lost) => std::panic::resume_unwind(lost.into_panic()),
    }
}

/// Look at a path
///
/// Does not follow a last symbolic link.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/files/stat", tag = "files",
    params(
        OfSession,
        OfPath,
    ),
    responses(
        (status = 200, body = FileStat),
        NoPath,
    )
)]
pub async fn stat(live: Live, GuestPath(path): GuestPath) -> Result<Json<FileStat>, ApiError> {
    Ok(Json(with_guest(&live.session, live.session.session().guest().stat(path)).await?.into()))
}

/// Make a directory
#[utoipa::path(
    post, path = "/v1/sessions/{id}/files/mkdir", tag = "files",
    params(
        OfSession,
        OfPath,
        Mode,
        Parents,
    ),
    responses(
        (status = 204, description = "Made"),
        (status = 404, description = "No such session or parent", body = ErrorBody),
        (status = 409, description = "It is there already", body = ErrorBody),
    )
)]
pub async fn mkdir(
    live: Live,
    GuestPath(path): GuestPath,
    Params(mode): Params<Mode>,
    Params(Parents { parents }): Params<Parents>,
) -> Result<StatusCode, ApiError> {
    let mode = mode.bits(0o755)?;
    with_guest(&live.session, live.session.session().guest().mkdir(path, mode, parents)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Rename a path
#[utoipa::path(
    post, path = "/v1/sessions/{id}/files/rename", tag = "files",
    params(
        OfSession,
        ("from" = String, Query, description = "Old absolute path"),
        ("to" = String, Query, description = "New absolute path; what is there is replaced, as rename(2) does"),
    ),
    responses(
        (status = 204, description = "Renamed"),
        NoPath,
        (status = 409, description = "The new path is a directory, or elsewhere", body = ErrorBody),
    )
)]
pub async fn rename(
    live: Live,
    GuestPaths { from, to }: GuestPaths,
) -> Result<StatusCode, ApiError> {
    with_guest(&live.session, live.session.session().guest().rename(from, to)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Remove a path
#[utoipa::path(
    delete, path = "/v1/sessions/{id}/files", tag = "files",
    params(
        OfSession,
        OfPath,
        Recursive,
    ),
    responses(
        (status = 204, description = "Removed"),
        NoPath,
        (status = 409, description = "A directory that is not empty", body = ErrorBody),
    )
)]
pub async fn remove(
    live: Live,
    GuestPath(path): GuestPath,
    Params(Recursive { recursive }): Params<Recursive>,
) -> Result<StatusCode, ApiError> {
    with_guest(&live.session, live.session.session().guest().remove(path, recursive)).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl Mode {
    fn bits(&self, default: u32) -> Result<u32, ApiError> {
        let Some(text) = &self.mode else { return Ok(default) };
        match u32::from_str_radix(text, 8) {
            Ok(bits @ 0..=0o7777) => Ok(bits),
            _ => Err(ApiError::bad_request(format!(
                "mode={}: use octal digits, at most 7777",
                text.escape_debug()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal() {
        let bits = |text: &str| Mode { mode: Some(text.into()) }.bits(0);
        assert_eq!(bits("0755").unwrap(), 0o755);
        assert_eq!(bits("7777").unwrap(), 0o7777);
        assert_eq!(Mode { mode: None }.bits(0o644).unwrap(), 0o644);
        for bad in ["", "8", "10000", "-1", "0o755", "rwx"] {
            assert!(bits(bad).is_err(), "{bad}");
        }
    }
}
