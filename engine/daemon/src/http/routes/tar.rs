//! Directory trees as tar archives.

use axum::Json;
use axum::body::Body;
use axum::response::Response;
use mayfly_api::{Content, ErrorBody, Written};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::http::described::{NoPath, OfPath, OfSession, OfUser};
use crate::http::error::ApiError;
use crate::http::extract::{GuestPath, Live, Params};
use crate::http::guest::with_guest;
use crate::http::transfer;

/// Query that says what an archive is like.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Form {
    /// Leaves out the holes of sparse files, in the old format of GNU tar, which GNU tar, bsdtar and
    /// Python read.
    #[serde(default)]
    sparse: bool,
}

/// Download a file or a tree as a tar archive
///
/// The names in it begin with the last component of the path. Sockets, pipes and devices are left
/// out.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/files/tar", tag = "files",
    params(
        OfSession,
        OfPath,
        OfUser,
        Form,
    ),
    responses(
        (status = 200, description = "The archive", body = Content, content_type = "application/x-tar"),
        NoPath,
    )
)]
pub async fn pack(
    live: Live,
    GuestPath(path): GuestPath,
    Params(Form { sparse }): Params<Form>,
) -> Result<Response, ApiError> {
    let guest = live.session.session().guest();
    let reader = with_guest(&live.session, guest.open_tar(path, sparse, u64::MAX)).await?;
    transfer::download(live, "application/x-tar", reader)
}

/// Unpack a tar archive below a directory
///
/// The archive is not compressed. What was unpacked before an error stays. The owners in it count
/// for root; with the rights of another user, everything is that user's.
#[utoipa::path(
    put, path = "/v1/sessions/{id}/files/tar", tag = "files",
    params(
        OfSession,
        ("path" = String, Query, description = "Path of a directory that is there, absolute or of the user"),
        OfUser,
    ),
    request_body(content = Content, content_type = "application/x-tar"),
    responses(
        (status = 200, description = "How many bytes of file content were unpacked", body = Written),
        (status = 404, description = "No such session or directory", body = ErrorBody),
        (status = 422, description = "The archive is not one, or leads out of the directory", body = ErrorBody),
        (status = 507, description = "The guest's disk is full", body = ErrorBody),
    )
)]
pub async fn unpack(
    live: Live,
    GuestPath(path): GuestPath,
    body: Body,
) -> Result<Json<Written>, ApiError> {
    let mut from = transfer::upload(body);
    let guest = live.session.session().guest();
    let outcome = with_guest(&live.session, guest.unpack_tar(path, &mut from)).await;
    let bytes = transfer::settled(outcome, &mut from).await?;
    Ok(Json(Written { bytes, path: None }))
}
