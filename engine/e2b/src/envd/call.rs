//! What every call has: its sandbox, and work with the guest that ends with the session.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use mayfly_daemon::http::connections::Place;
use mayfly_daemon::http::extract::Live;
use mayfly_daemon::http::guest::with_guest;
use mayfly_daemon::service::LiveSession;
use mayfly_daemon::service::shares::Share;
use mayfly_guest::channel::{Channel, ChannelError};
use serde::de::DeserializeOwned;

use crate::connect::{self, Code, ConnectError};
use crate::sandboxes::Sandbox;

/// The sandbox of a call that was let in. While this lives, its session is not idle, and the
/// connection counts.
pub(crate) struct In {
    pub sandbox: Arc<Sandbox>,
    pub live: Live,
}

impl<S: Send + Sync> FromRequestParts<S> for In {
    type Rejection = ConnectError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ConnectError> {
        // Only a route outside of the admitted part could lack it.
        let sandbox = parts.extensions.get::<Arc<Sandbox>>().cloned();
        let sandbox = sandbox.ok_or_else(ConnectError::gone)?;
        let place = parts.extensions.get::<Arc<Place>>().cloned();
        let live = Live { place, ..Live::of(sandbox.session.clone()) };
        Ok(Self { sandbox, live })
    }
}

impl In {
    pub fn session(&self) -> &LiveSession {
        &self.live.session
    }

    pub fn guest(&self) -> &Channel {
        self.live.session.session().guest()
    }

    /// Reads the request of a call that has one; it counts for the tenant as long as the share lives.
    ///
    /// # Errors
    /// As [`connect::unary`].
    pub async fn request<T: DeserializeOwned>(
        &self,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<(T, Share), ConnectError> {
        connect::unary(headers, body, self.session().account()).await
    }

    /// Does `work`, but ends with the session when that comes first.
    ///
    /// # Errors
    /// As `work`, or that the sandbox is gone.
    pub async fn ask<T>(
        &self,
        work: impl Future<Output = Result<T, ChannelError>>,
    ) -> Result<T, ConnectError> {
        let work = async {
            match work.await {
                // As exec says of an unknown user, so do files.
                Err(ChannelError::Guest(error)) if error.errno == libc::ESRCH => {
                    Ok(Err(no_user(&error.message)))
                }
                other => other.map(Ok),
            }
        };
        with_guest(&self.live.session, work).await?
    }
}

/// The error for a user that the guest has not; clients take it for one of credentials.
pub(super) fn no_user(message: &str) -> ConnectError {
    ConnectError::new(Code::Unauthenticated, format!("invalid user: {message}"))
}
