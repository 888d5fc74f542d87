//! Commands that go on after the request that started them.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::response::Response;
use mayfly_api::{
    Background, BackgroundList, Content, ErrorBody, Exec, Output, SignalBody, Stream, Terminal,
};
use mayfly_guest::channel::MAX_CHUNK;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use utoipa::IntoParams;

use crate::http::counted;
use crate::http::described::{NoCommand, OfCommand, OfSession};
use crate::http::error::ApiError;
use crate::http::extract::{Body, ExecNumber, Live, Params};
use crate::http::transfer;
use crate::service::LiveSession;
use crate::service::execs::{
    self, ExecError, ExecState, ExecView, OUTPUT_KEPT, OutputPiece, OutputStream, StartOptions,
};
use crate::service::held::Full;

/// The longest that one request waits, in milliseconds.
const MAX_WAIT_MS: u64 = 60_000;

/// Bytes of output for which there has to be room.
const LEAST_READ: usize = 16 << 10;

/// Query that selects a part of the output.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OutputParams {
    /// Which stream.
    #[serde(default)]
    stream: Stream,
    /// First byte.
    #[serde(default)]
    offset: u64,
    /// Most bytes; 65536 when absent, at most 1048576.
    #[serde(default = "default_limit")]
    limit: usize,
    /// Waits up to this many milliseconds, at most 60000, for output behind `offset` or the end.
    #[serde(default)]
    wait_ms: u64,
}

fn default_limit() -> usize {
    64 << 10
}

/// Query that bounds how long to wait.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WaitParams {
    /// Waits up to this many milliseconds, at most 60000, for its end.
    #[serde(default)]
    wait_ms: u64,
}

/// Query that says what to do with stdin.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StdinParams {
    /// Closes stdin after these bytes.
    #[serde(default)]
    eof: bool,
}

/// Start a command in the background
///
/// It runs until it ends, is killed or the session ends. The last 1 MiB of each of its output
/// streams is kept, or less where the daemon holds too much for the tenant.
#[utoipa::path(
    post, path = "/v1/sessions/{id}/execs", tag = "commands",
    params(OfSession),
    request_body = Exec,
    responses(
        (status = 201, body = Background),
        (status = 404, description = "No such session, or no such program", body = ErrorBody),
        (status = 409, description = "The session has reached its limit of background commands", body = ErrorBody),
        (status = 429, description = "No room to keep its output: more bytes than may be held for this tenant", body = ErrorBody),
    )
)]
pub async fn start(
    live: Live,
    // Counted as long as the request is: a command may take its time to read its stdin.
    Body(mut request, given): Body<Exec>,
) -> Result<(StatusCode, Json<Background>), ApiError> {
    if request.keep.is_some() || request.start_failure.is_some() {
        let message = "keep and start_failure are not for background commands: leave them out";
        return Err(ApiError::bad_request(message));
    }
    let keep_open = request.open_stdin;
    let options = StartOptions { tag: request.tag.take(), ..StartOptions::default() };
    let (request, stdin) = request.into_request()?;
    let (request, _env) = live.session.with_defaults(request)?;
    let start = live.session.execs().start(live.session.session().guest(), request, options);
    let exec = in_session(&live.session, start).await?;
    if let Some(stdin) = stdin {
        let feeding = exec.clone();
        tokio::spawn(async move {
            // A command that ends without reading it all is no failure.
            if feeding.write_stdin(&stdin).await.is_ok() && !keep_open {
                let _ = feeding.close_stdin().await;
            }
            drop((stdin, given));
        });
    }
    Ok((StatusCode::CREATED, Json(exec.view().into())))
}

/// List the background commands
#[utoipa::path(
    get, path = "/v1/sessions/{id}/execs", tag = "commands",
    params(OfSession),
    responses((status = 200, body = BackgroundList))
)]
pub async fn list(live: Live) -> Result<Response, ApiError> {
    let execs = live.session.execs().list();
    let described = execs.into_iter().map(|exec| Background::from(exec.view()));
    Ok(counted::list(live.session.account(), "execs", described).await?)
}

/// Look at a background command, or wait for its end
#[utoipa::path(
    get, path = "/v1/sessions/{id}/execs/{n}", tag = "commands",
    params(OfCommand, WaitParams),
    responses(
        (status = 200, body = Background),
        NoCommand,
    )
)]
pub async fn get(
    live: Live,
    ExecNumber(n): ExecNumber,
    Params(params): Params<WaitParams>,
) -> Result<Response, ApiError> {
    let exec = live.session.execs().get(n)?;
    // Its state tells whether it came in time.
    let _ = tokio::time::timeout(wait(params.wait_ms), exec.wait()).await;
    Ok(counted::json(live.session.account(), &Background::from(exec.view()))?)
}

/// Read a background command's output
#[utoipa::path(
    get, path = "/v1/sessions/{id}/execs/{n}/output", tag = "commands",
    params(OfCommand, OutputParams),
    responses(
        (status = 200, body = Output),
        NoCommand,
    )
)]
pub async fn output(
    live: Live,
    ExecNumber(n): ExecNumber,
    Params(params): Params<OutputParams>,
) -> Result<Response, ApiError> {
    let exec = live.session.execs().get(n)?;
    let (stream, limit) = (params.stream.into(), params.limit.min(OUTPUT_KEPT));
    let piece = match tokio::time::timeout(
        wait(params.wait_ms),
        exec.read_next(stream, params.offset, limit),
    )
    .await
    {
        Ok(piece) => piece,
        Err(_) => exec.read(stream, params.offset, limit),
    };
    Ok(answer(&live, piece, |limit| exec.read(stream, params.offset, limit))?)
}

/// Answers with a piece of output, or with a shorter one that is read anew where there is no room
/// for so much: what is kept can always be read.
fn answer(
    live: &Live,
    mut piece: OutputPiece,
    read: impl Fn(usize) -> OutputPiece,
) -> Result<Response, Full> {
    let mut length = piece.bytes.len();
    loop {
        match counted::json(live.session.account(), &Output::from(piece)) {
            Err(Full) if length > LEAST_READ => length /= 2,
            answered => return answered,
        }
        piece = read(length);
    }
}

/// Write to a background command's stdin
///
/// Takes a body of any length as it comes, and answers when all of it is on its way; waits while the
/// command does not read. Of a body that breaks off, what came before was written, and stdin stays
/// open.
#[utoipa::path(
    post, path = "/v1/sessions/{id}/execs/{n}/stdin", tag = "commands",
    params(OfCommand, StdinParams),
    request_body(content = Content, content_type = "application/octet-stream"),
    responses(
        (status = 204, description = "Written"),
        NoCommand,
        (status = 409, description = "It has ended, or has no stdin", body = ErrorBody),
    )
)]
pub async fn stdin(
    live: Live,
    ExecNumber(n): ExecNumber,
    Params(params): Params<StdinParams>,
    body: axum::body::Body,
) -> Result<StatusCode, ApiError> {
    let exec = running(&live.session, n)?;
    let _held = live.session.account().take(MAX_CHUNK).ok_or(Full)?;
    let mut body = transfer::upload(body);
    let mut buffer = vec![0; MAX_CHUNK];
    let write = async {
        loop {
            let count = body.read(&mut buffer).await.map_err(|error| {
                ApiError::bad_request(format!("the body of the request has not come: {error}"))
            })?;
            if count == 0 {
                break;
            }
            exec.write_stdin(&buffer[..count]).await?;
        }
        if params.eof {
            exec.close_stdin().await?;
        }
        Ok(StatusCode::NO_CONTENT)
    };
    let outcome = tokio::select! {
        outcome = write => outcome,
        reason = live.session.ended() => Err(ApiError::gone(reason)),
    };
    transfer::settled(outcome, &mut body).await
}

/// Signal a background command
#[utoipa::path(
    post, path = "/v1/sessions/{id}/execs/{n}/signal", tag = "commands",
    params(OfCommand),
    request_body = SignalBody,
    responses(
        (status = 204, description = "Sent to its process group"),
        NoCommand,
        (status = 409, description = "It has ended", body = ErrorBody),
    )
)]
pub async fn signal(
    live: Live,
    ExecNumber(n): ExecNumber,
    Body(signal, _held): Body<SignalBody>,
) -> Result<StatusCode, ApiError> {
    let exec = running(&live.session, n)?;
    in_session(&live.session, exec.signal(signal.checked()?)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Resize a background command's terminal
#[utoipa::path(
    post, path = "/v1/sessions/{id}/execs/{n}/resize", tag = "commands",
    params(OfCommand),
    request_body = Terminal,
    responses(
        (status = 204, description = "Done"),
        NoCommand,
        (status = 409, description = "It has ended", body = ErrorBody),
    )
)]
pub async fn resize(
    live: Live,
    ExecNumber(n): ExecNumber,
    Body(size, _held): Body<Terminal>,
) -> Result<StatusCode, ApiError> {
    let exec = running(&live.session, n)?;
    in_session(&live.session, exec.resize(size.rows, size.cols)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Kill a background command
#[utoipa::path(
    delete, path = "/v1/sessions/{id}/execs/{n}", tag = "commands",
    params(OfCommand),
    responses(
        (status = 204, description = "SIGKILL was sent to its process group"),
        NoCommand,
        (status = 409, description = "It has ended", body = ErrorBody),
    )
)]
pub async fn kill(live: Live, ExecNumber(n): ExecNumber) -> Result<StatusCode, ApiError> {
    let exec = running(&live.session, n)?;
    in_session(&live.session, exec.kill()).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn wait(wait_ms: u64) -> Duration {
    Duration::from_millis(wait_ms.min(MAX_WAIT_MS))
}

fn running(session: &LiveSession, n: u64) -> Result<Arc<execs::Exec>, ApiError> {
    let exec = session.execs().get(n)?;
    if exec.state() == execs::ExecState::Running {
        return Ok(exec);
    }
    Err(ApiError::new(
        StatusCode::CONFLICT,
        "command_ended",
        format!("background command {n} has ended"),
    ))
}

/// As [`crate::http::guest::with_guest`], for what also fails by itself.
async fn in_session<T>(
    session: &LiveSession,
    work: impl Future<Output = Result<T, ExecError>>,
) -> Result<T, ApiError> {
    tokio::select! {
        result = work => Ok(result?),
        reason = session.ended() => Err(ApiError::gone(reason)),
    }
}

impl From<ExecView> for Background {
    fn from(view: ExecView) -> Self {
        let (outcome, lost) = match view.state {
            ExecState::Running => (None, None),
            ExecState::Exited(status) => (Some(status.into()), None),
            ExecState::Lost(reason) => (None, Some(reason.to_string())),
        };
        Self {
            n: view.id,
            pid: view.pid,
            argv: view.argv,
            tag: view.tag,
            tty: view.tty,
            started_at: humantime::format_rfc3339_millis(view.started_at).to_string(),
            outcome,
            lost,
            stdout_bytes: view.stdout_bytes,
            stderr_bytes: view.stderr_bytes,
        }
    }
}

impl From<Stream> for OutputStream {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Stdout => Self::Stdout,
            Stream::Stderr => Self::Stderr,
        }
    }
}

impl From<OutputPiece> for Output {
    fn from(piece: OutputPiece) -> Self {
        let next_offset = piece.offset.saturating_add(piece.bytes.len() as u64);
        Self { offset: piece.offset, next_offset, data: piece.bytes.into(), end: piece.end }
    }
}
