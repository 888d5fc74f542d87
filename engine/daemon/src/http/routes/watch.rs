//! Changes below a path, as they happen.

use axum::response::Response;
use mayfly_api::{Change, ErrorBody};
use mayfly_guest::channel::Watch;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::http::counted;
use crate::http::described::{NoPath, OfPath, OfSession, OfUser};
use crate::http::error::ApiError;
use crate::http::extract::{GuestPath, Live, Params};
use crate::http::guest::with_guest;
use crate::http::ndjson::{ClientGone, HEARTBEAT, Lines};

/// Query that says how far to watch.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WatchParams {
    /// Also all directories below, those that are made later too.
    #[serde(default)]
    recursive: bool,
}

/// Watch a directory or a file
///
/// Answers with NDJSON, one `Change` a line, until the client goes away or the watched path does.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/files/watch", tag = "files",
    params(
        OfSession,
        OfPath,
        OfUser,
        WatchParams,
    ),
    responses(
        (status = 200, description = "NDJSON", body = Change, content_type = "application/x-ndjson"),
        NoPath,
        (status = 429, description = "More bytes than may be held for this tenant", body = ErrorBody),
    )
)]
pub async fn watch(
    live: Live,
    GuestPath(path): GuestPath,
    Params(params): Params<WatchParams>,
) -> Result<Response, ApiError> {
    let (lines, response) = counted::lines(live.session.account())?;
    let watch =
        with_guest(&live.session, live.session.session().guest().watch(path, params.recursive))
            .await?;
    tokio::spawn(async move {
        tokio::select! {
            // Either way the watch ends with this task.
            _ = tell(&live, watch, &lines) => {}
            () = lines.closed() => {}
        }
    });
    Ok(response)
}

async fn tell(live: &Live, mut watch: Watch, lines: &Lines) -> Result<(), ClientGone> {
    lines.send(&Change::Watching).await?;
    loop {
        let event = tokio::select! {
            event = with_guest(&live.session, watch.next()) => event,
            () = tokio::time::sleep(HEARTBEAT) => {
                lines.send(&Change::Heartbeat).await?;
                continue;
            }
        };
        match event {
            Ok(Some(event)) => lines.send(&Change::from(event)).await?,
            Ok(None) => return Ok(()),
            Err(error) => {
                let last =
                    Change::Error { code: error.code().into(), message: error.message().into() };
                return lines.send(&last).await;
            }
        }
    }
}
