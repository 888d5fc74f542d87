//! Files of a session.

use axum::Json;
use axum::body::Body as HttpBody;
use axum::http::StatusCode;
use axum::response::Response;
use mayfly_api::{Content, Entry, ErrorBody, FileStat, Listing, Made, Written};
use mayfly_guest::channel::{ListOptions, StatOptions, WriteOptions};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::http::counted;
use crate::http::described::{NoPath, OfPath, OfSession, OfUser, OfXattrs};
use crate::http::error::ApiError;
use crate::http::extract::{GuestPath, GuestPaths, Live, Params, Xattrs};
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

/// Query that says how a file is written.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct How {
    /// Writes into the file that is there, through symbolic links, so that its hard links and
    /// attributes stay. A write that fails leaves a part of it.
    #[serde(default)]
    in_place: bool,
}

/// Query that says which directories are made.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Parents {
    /// Also makes missing parents. A directory that is to be made may be there already.
    #[serde(default)]
    parents: bool,
}

/// Query that says how a path is removed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Removal {
    /// Also what is in a directory.
    #[serde(default)]
    recursive: bool,
    /// Accepts that there is nothing.
    #[serde(default)]
    force: bool,
}

/// Query that says what is told of a path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Told {
    /// Also what a symbolic link leads to.
    #[serde(default)]
    follow: bool,
    /// Also the extended attributes of users (`user.*`).
    #[serde(default)]
    xattrs: bool,
}

/// Query that says what a list has.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Listed {
    /// Levels of directories, 1 to 4096; 1 when absent. Symbolic links are not followed.
    #[param(minimum = 1, maximum = 4096)]
    depth: Option<u32>,
    /// Describes each entry, as `stat` does, with `follow` and `xattrs`.
    #[serde(default)]
    stat: bool,
}

/// Levels of directories of a list at most.
const DEEPEST: u32 = 4096;

/// Read a file
#[utoipa::path(
    get, path = "/v1/sessions/{id}/files/content", tag = "files",
    params(
        OfSession,
        OfPath,
        OfUser,
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
/// All of it appears at once, or nothing does, unless it is written in place. Its directory must
/// exist, unless parents are made. A file that was there keeps its owner and, without `mode`, its
/// permissions; a new one has 644.
#[utoipa::path(
    put, path = "/v1/sessions/{id}/files/content", tag = "files",
    params(
        OfSession,
        OfPath,
        OfUser,
        Mode,
        How,
        Parents,
        OfXattrs,
    ),
    request_body(content = Content, content_type = "application/octet-stream"),
    responses(
        (status = 200, body = Written),
        (status = 403, description = "The user may not", body = ErrorBody),
        (status = 404, description = "No such session or directory", body = ErrorBody),
        (status = 409, description = "It is a directory", body = ErrorBody),
        (status = 422, description = "No such user in the guest", body = ErrorBody),
        (status = 507, description = "The guest's disk is full", body = ErrorBody),
    )
)]
pub async fn write(
    live: Live,
    GuestPath(path): GuestPath,
    Params(mode): Params<Mode>,
    Params(How { in_place }): Params<How>,
    Params(Parents { parents }): Params<Parents>,
    Xattrs(xattrs): Xattrs,
    body: HttpBody,
) -> Result<Json<Written>, ApiError> {
    let options = WriteOptions { mode: mode.bits()?, in_place, parents, xattrs };
    let mut from = transfer::upload(body);
    let guest = live.session.session().guest();
    let outcome = with_guest(&live.session, guest.write_with(path, options, &mut from)).await;
    let written = transfer::settled(outcome, &mut from).await?;
    Ok(Json(Written { bytes: written.bytes, path: Some(written.path.into()) }))
}

/// List a directory
///
/// With a depth, also those below it.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/files/list", tag = "files",
    params(
        OfSession,
        OfPath,
        OfUser,
        Listed,
        Told,
    ),
    responses(
        (status = 200, body = Listing),
        (status = 403, description = "The user may not", body = ErrorBody),
        (status = 404, description = "No such session or directory", body = ErrorBody),
        (status = 409, description = "It is no directory", body = ErrorBody),
        (status = 413, description = "More than a million entries, or 64 MiB of them", body = ErrorBody),
    )
)]
pub async fn list(
    live: Live,
    GuestPath(path): GuestPath,
    Params(wanted): Params<Listed>,
    Params(told): Params<Told>,
) -> Result<Response, ApiError> {
    let depth = wanted.depth.unwrap_or(1);
    if !(1..=DEEPEST).contains(&depth) {
        return Err(ApiError::bad_request(format!("depth={depth}: use 1 to {DEEPEST}")));
    }
    let options = ListOptions { depth, stat: wanted.stat.then(|| told.options()) };
    let guest = live.session.session().guest();
    let mut listed = with_guest(&live.session, guest.list_with(path, options)).await?;
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
        OfUser,
        Told,
    ),
    responses(
        (status = 200, body = FileStat),
        NoPath,
    )
)]
pub async fn stat(
    live: Live,
    GuestPath(path): GuestPath,
    Params(told): Params<Told>,
) -> Result<Json<FileStat>, ApiError> {
    let guest = live.session.session().guest();
    let stat = with_guest(&live.session, guest.stat_with(path, told.options())).await?;
    Ok(Json(stat.into()))
}

/// Make a directory
#[utoipa::path(
    post, path = "/v1/sessions/{id}/files/mkdir", tag = "files",
    params(
        OfSession,
        OfPath,
        OfUser,
        Mode,
        Parents,
    ),
    responses(
        (status = 200, description = "It is there, and was made if it was not", body = Made),
        (status = 404, description = "No such session or parent", body = ErrorBody),
        (status = 409, description = "It is there already", body = ErrorBody),
    )
)]
pub async fn mkdir(
    live: Live,
    GuestPath(path): GuestPath,
    Params(mode): Params<Mode>,
    Params(Parents { parents }): Params<Parents>,
) -> Result<Json<Made>, ApiError> {
    let mode = mode.bits()?.unwrap_or(0o755);
    let guest = live.session.session().guest();
    let made = with_guest(&live.session, guest.mkdir(path, mode, parents)).await?;
    Ok(Json(Made { made }))
}

/// Rename a path
#[utoipa::path(
    post, path = "/v1/sessions/{id}/files/rename", tag = "files",
    params(
        OfSession,
        ("from" = String, Query, description = "Old path, absolute or of the user"),
        ("to" = String, Query, description = "New path; what is there is replaced, as rename(2) does"),
        OfUser,
        Parents,
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
    Params(Parents { parents }): Params<Parents>,
) -> Result<StatusCode, ApiError> {
    let guest = live.session.session().guest();
    with_guest(&live.session, guest.rename(from, to, parents)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Remove a path
#[utoipa::path(
    delete, path = "/v1/sessions/{id}/files", tag = "files",
    params(
        OfSession,
        OfPath,
        OfUser,
        Removal,
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
    Params(Removal { recursive, force }): Params<Removal>,
) -> Result<StatusCode, ApiError> {
    let guest = live.session.session().guest();
    with_guest(&live.session, guest.remove(path, recursive, force)).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl Mode {
    fn bits(&self) -> Result<Option<u32>, ApiError> {
        let Some(text) = &self.mode else { return Ok(None) };
        match u32::from_str_radix(text, 8) {
            Ok(bits @ 0..=0o7777) => Ok(Some(bits)),
            _ => Err(ApiError::bad_request(format!(
                "mode={}: use octal digits, at most 7777",
                text.escape_debug()
            ))),
        }
    }
}

impl Told {
    fn options(&self) -> StatOptions {
        StatOptions { follow: self.follow, xattrs: self.xattrs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal() {
        let bits = |text: &str| Mode { mode: Some(text.into()) }.bits();
        assert_eq!(bits("0755").unwrap(), Some(0o755));
        assert_eq!(bits("7777").unwrap(), Some(0o7777));
        assert_eq!(Mode { mode: None }.bits().unwrap(), None);
        for bad in ["", "8", "10000", "-1", "0o755", "rwx"] {
            assert!(bits(bad).is_err(), "{bad}");
        }
    }
}
