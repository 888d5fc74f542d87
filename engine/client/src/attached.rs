//! Sessions that live as long as a connection.

use hyper::{Method, header};
use mayfly_api::{AttachEvent, CreateSession, SessionInfo};

use super::call::{Client, JSON, json_body};
use super::error::ClientError;
use super::lines::Lines;

/// A session that is discarded when this is dropped.
#[derive(Debug)]
pub struct Attached {
    info: SessionInfo,
    lines: Lines,
}

impl Client {
    /// Creates a session that lives as long as the returned value. Dropping the future withdraws
    /// the request.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_attached(&self, request: &CreateSession) -> Result<Attached, ClientError> {
        let call = self
            .request(Method::POST, "/v1/sessions?attach=true")
            .header(header::CONTENT_TYPE, JSON);
        let mut lines = Lines::new(self.open(call, json_body(request)?).await?);
        let info = lines
            .next()
            .await?
            .ok_or_else(|| ClientError::protocol("no session on the first line"))?;
        Ok(Attached { info, lines })
    }
}

impl Attached {
    /// Returns the session as it was handed out.
    pub fn info(&self) -> &SessionInfo {
        &self.info
    }

    /// Waits for its end, and says why. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError`] when the connection breaks; the session is discarded then, too.
    pub async fn ended(&mut self) -> Result<String, ClientError> {
        loop {
            match self.lines.next().await? {
                Some(AttachEvent::Heartbeat) => {}
                Some(AttachEvent::Ended { reason }) => return Ok(reason),
                None => return Ok("the daemon has closed the connection".into()),
            }
        }
    }
}
