//! Work with a guest, told apart from the end of its session.

use std::time::Duration;

use mayfly_guest::channel::ChannelError;
use mayfly_host::time_scale::scaled;

use super::error::ApiError;
use crate::service::LiveSession;

/// How long the end of a session may take to show after its channel broke, which is often noticed
/// first.
const CAUSE: Duration = Duration::from_millis(300);

/// Does `work`, but ends with the session when that comes first, and says why it ended.
///
/// # Errors
/// As `work`, or that the session is gone.
pub async fn with_guest<T>(
    session: &LiveSession,
    work: impl Future<Output = Result<T, ChannelError>>,
) -> Result<T, ApiError> {
    let error = tokio::select! {
        result = work => match result {
            Ok(value) => return Ok(value),
            Err(error) => error,
        },
        reason = session.ended() => return Err(ApiError::gone(reason)),
    };
    explain(session, error).await
}

/// The end of the session as the cause of `error`, where it is.
async fn explain<T>(session: &LiveSession, error: ChannelError) -> Result<T, ApiError> {
    if let ChannelError::Io(_) | ChannelError::Closed { .. } | ChannelError::Protocol { .. } = error
        && let Ok(reason) = tokio::time::timeout(scaled(CAUSE), session.ended()).await
    {
        return Err(ApiError::gone(reason));
    }
    Err(error.into())
}
