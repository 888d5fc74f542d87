//! Commands in the background.

use std::time::Duration;

use hyper::{Method, header};
use mayfly_api::{Background, BackgroundList, Exec, Output, SignalBody, Stream};

use super::call::{Client, JSON, empty, full, json_body};
use super::error::ClientError;
use super::sessions::session_path;

impl Client {
    /// Starts a command that goes on by itself.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn start_background(
        &self,
        id: &str,
        command: &Exec,
    ) -> Result<Background, ClientError> {
        self.post(session_path(id, "/execs"), command).await
    }

    /// Lists the session's background commands.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn backgrounds(&self, id: &str) -> Result<Vec<Background>, ClientError> {
        self.get::<BackgroundList>(session_path(id, "/execs")).await.map(|list| list.execs)
    }

    /// Looks at background command `n`; waits for its end for up to `wait`, at most a minute.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn background(
        &self,
        id: &str,
        n: u64,
        wait: Duration,
    ) -> Result<Background, ClientError> {
        self.get(session_path(id, &format!("/execs/{n}?wait_ms={}", wait.as_millis()))).await
    }

    /// Reads output of background command `n` from `offset` on; waits for some for up to `wait`, at
    /// most a minute.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn background_output(
        &self,
        id: &str,
        n: u64,
        stream: Stream,
        offset: u64,
        wait: Duration,
    ) -> Result<Output, ClientError> {
        let stream = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        let query = format!(
            "/execs/{n}/output?stream={stream}&offset={offset}&wait_ms={}",
            wait.as_millis()
        );
        self.get(session_path(id, &query)).await
    }

    /// Writes to the stdin of background command `n`, and closes it with `eof`.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn background_stdin(
        &self,
        id: &str,
        n: u64,
        bytes: impl Into<bytes::Bytes>,
        eof: bool,
    ) -> Result<(), ClientError> {
        let path = session_path(id, &format!("/execs/{n}/stdin?eof={eof}"));
        self.done(self.request(Method::POST, path), full(bytes)).await
    }

    /// Signals background command `n`.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn background_signal(
        &self,
        id: &str,
        n: u64,
        number: i32,
    ) -> Result<(), ClientError> {
        let call = self.request(Method::POST, session_path(id, &format!("/execs/{n}/signal")));
        self.done(call.header(header::CONTENT_TYPE, JSON), json_body(&SignalBody { number })?).await
    }

    /// Kills background command `n`.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn background_kill(&self, id: &str, n: u64) -> Result<(), ClientError> {
        self.done(self.request(Method::DELETE, session_path(id, &format!("/execs/{n}"))), empty())
            .await
    }
}
