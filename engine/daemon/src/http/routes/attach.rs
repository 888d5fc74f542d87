//! Sessions that live as long as a connection.

use axum::response::Response;
use mayfly_api::AttachEvent;

use crate::http::extract::Live;
use crate::http::ndjson::{self, HEARTBEAT, Lines};

/// Ties a session to the answer: when nobody reads that any more, the session is discarded.
pub fn attach(live: Live) -> Response {
    let (lines, response) = ndjson::answer();
    tokio::spawn(hold(live, lines));
    response
}

async fn hold(live: Live, lines: Lines) {
    let session = &live.session;
    let told = async {
        lines.send(&session.info()).await?;
        loop {
            tokio::select! {
                reason = session.ended() => return lines.send(&AttachEvent::Ended { reason }).await,
                () = tokio::time::sleep(HEARTBEAT) => lines.send(&AttachEvent::Heartbeat).await?,
            }
        }
    };
    let over = tokio::select! {
        outcome = told => outcome.is_ok(),
        () = lines.closed() => false,
    };
    if !over {
        session.end("the client it was attached to went away").await;
    }
}
