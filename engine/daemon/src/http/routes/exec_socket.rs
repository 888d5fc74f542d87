//! Commands over a WebSocket: stdin, signals and terminal size while they run. [`stream`] starts a
//! command of the connection's own, [`attach`] is one of several readers of a background command.
//!
//! | From | Message | Meaning |
//! |---|---|---|
//! | client | text, first, of [`stream`] alone | the command, an `Exec` |
//! | daemon | text `started` | it runs |
//! | client | binary, first byte 0 | stdin |
//! | daemon | binary, first byte 1 or 2 | stdout or stderr |
//! | client | text `stdin_eof`, `resize`, `signal` | as named |
//! | daemon | text `exit` or `error` | the last message; the daemon closes then |
//!
//! A connection that ends before kills the command of [`stream`], and leaves that of [`attach`].

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use mayfly_api::{ErrorBody, Exec, ExecMessage, STDERR, STDIN, STDOUT, check_signal};
use mayfly_guest::channel::{ExecControl, ExecEvent, ExecHandle, ExecStdin, MAX_CHUNK, TtySize};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use utoipa::IntoParams;

use super::exec::{Started, lost, refuse_tag, start_in_guest};
use crate::http::body::BODY_LIMIT;
use crate::http::described::{NoCommand, NoSession, OfCommand, OfSession};
use crate::http::error::ApiError;
use crate::http::extract::{ExecNumber, Live, Params, Parsed as _};
use crate::http::guest::with_guest;
use crate::http::ndjson::{ClientGone, HEARTBEAT};
use crate::service::execs::{self, ExecError};
use crate::service::held::Full;
use crate::service::readers::{Subscription, Told};

/// Longest message of a client, in bytes, but for a command that is said to be longer.
const MESSAGE_LIMIT: usize = 1 << 20;
/// Longest text message after the command: none that says something is nearly as long.
const CONTROL_LIMIT: usize = 4 << 10;
/// Messages with stdin that may wait for the command to read; behind them, signals wait too.
const STDIN_DEPTH: usize = 16;
/// Bytes of these, that which is being written among them.
const STDIN_HELD: usize = MESSAGE_LIMIT;
/// Bytes that may wait for the client's socket, output and answers to its pings.
const OUTPUT_WAITING: usize = 256 << 10;
/// Bytes of these, and of the piece of output behind them and its message.
const OUTPUT_HELD: usize = OUTPUT_WAITING + 2 * MAX_CHUNK;
/// Bound on the time until the command is named.
const FIRST_MESSAGE: Duration = Duration::from_secs(30);
/// How long the client may take to close after the last message.
const CLOSING: Duration = Duration::from_secs(5);

/// Bytes of stdin, and their part of [`STDIN_HELD`].
type Piece = (Bytes, OwnedSemaphorePermit);

/// Run a command over a WebSocket
///
/// The first message is the command as JSON (`Exec`). Then binary messages carry bytes: the first
/// byte says of what (0 stdin, 1 stdout, 2 stderr). Text messages are `ExecMessage`s: `started`,
/// `exit` and `error` from the daemon; `stdin_eof`, `resize` and `signal` from the client. A
/// connection that ends before `exit` kills the command.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/exec/stream", tag = "commands",
    params(OfSession, StreamParams),
    responses(
        (status = 101, description = "A WebSocket; its text messages are", body = ExecMessage),
        NoSession,
        (status = 426, description = "Not a WebSocket", body = ErrorBody),
        (status = 429, description = "More bytes than may be held for this tenant", body = ErrorBody),
    )
)]
pub async fn stream(
    live: Live,
    Params(params): Params<StreamParams>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    if params.command_bytes > BODY_LIMIT {
        return Err(ApiError::bad_request(format!("command_bytes must be at most {BODY_LIMIT}")));
    }
    upgraded(live, upgrade, params.command_bytes, None)
}

/// Query about the first message.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StreamParams {
    /// Bytes of the command, where these are more than 1 MiB; at most 4 MiB.
    #[serde(default)]
    command_bytes: usize,
}

/// Attach to a background command
///
/// A WebSocket as that of `exec/stream`, without its first message: `started` comes at once, then
/// what the command writes from now on; stdin, signals and sizes are for the command. Of a command
/// that has ended, `exit` comes at once. Several may be attached at a time; the command waits for
/// one that does not read. A connection that ends leaves the command as it is.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/execs/{n}/attach", tag = "commands",
    params(OfCommand),
    responses(
        (status = 101, description = "A WebSocket; its text messages are", body = ExecMessage),
        NoCommand,
        (status = 426, description = "Not a WebSocket", body = ErrorBody),
        (status = 429, description = "More bytes than may be held for this tenant", body = ErrorBody),
    )
)]
pub async fn attach(
    live: Live,
    ExecNumber(n): ExecNumber,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let exec = live.session.execs().get(n)?;
    let attended = Attended::shared(&exec)?;
    upgraded(live, upgrade, 0, Some(attended))
}

type Sink = SplitSink<WebSocket, Message>;
type Source = SplitStream<WebSocket>;

/// Answers with a WebSocket to `attended`, or to the command that its first message, of at most
/// `first` bytes or as many as others, names.
fn upgraded(
    live: Live,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    first: usize,
    attended: Option<Attended>,
) -> Result<Response, ApiError> {
    let upgrade = upgrade.map_err(|rejection| {
        ApiError::new(StatusCode::UPGRADE_REQUIRED, "websocket_needed", rejection.body_text())
    })?;
    // What the client sends and the command has not read; a message on its way here; and what the
    // command writes and the client has not read.
    let longest = MESSAGE_LIMIT.max(first);
    let held = longest + STDIN_HELD + OUTPUT_HELD;
    let share = live.session.account().take(held).ok_or(Full)?;
    let upgrade = upgrade
        .max_message_size(longest)
        .max_frame_size(longest)
        // Without a bound, answers to pings pile up of a client that reads none of them.
        .max_write_buffer_size(OUTPUT_WAITING);
    Ok(upgrade.on_upgrade(async move |socket| {
        serve(live, socket, attended).await;
        drop(share);
    }))
}

async fn serve(live: Live, socket: WebSocket, attended: Option<Attended>) {
    let (mut sink, mut source) = socket.split();
    let attended = match attended {
        Some(attended) => Ok(Some(attended)),
        None => match command(&live, &mut source).await {
            Ok(Some(Started::Running(command))) => Ok(Some(Attended::own(command))),
            Ok(Some(Started::Failed(outcome, message))) => {
                let said = async {
                    message.is_empty() || put(&mut sink, STDERR, message.as_bytes()).await.is_ok()
                };
                if tokio::time::timeout(CLOSING, said).await == Ok(true) {
                    farewell(&ExecMessage::Exit { outcome }, &mut sink, &mut source).await;
                }
                return;
            }
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        },
    };
    let last = match attended {
        Ok(Some(attended)) => converse(&live, attended, &mut sink, &mut source).await,
        Ok(None) => return,
        Err(error) => Some(ExecMessage::from(&error)),
    };
    if let Some(last) = last {
        farewell(&last, &mut sink, &mut source).await;
    }
}

async fn farewell(last: &ExecMessage, sink: &mut Sink, source: &mut Source) {
    // To close while something of the client is unread could reset the connection under our last
    // words.
    let told = async {
        say(sink, last).await?;
        sink.close().await.map_err(|_| ClientGone)?;
        while let Some(Ok(_)) = source.next().await {}
        Ok::<_, ClientGone>(())
    };
    let _ = tokio::time::timeout(CLOSING, told).await;
}

/// A running command with what a client may do to it.
struct Attended {
    pid: u32,
    output: Output,
    control: ExecControl,
    /// `None` where it has none.
    stdin: Option<ExecStdin>,
}

/// Where its output comes from.
enum Output {
    /// A command that dies with this.
    Own(ExecHandle),
    /// A background command, which goes on.
    Shared(Subscription),
}

impl Attended {
    fn own(command: ExecHandle) -> Self {
        Self {
            pid: command.pid(),
            control: command.control(),
            stdin: Some(command.stdin()),
            output: Output::Own(command),
        }
    }

    fn shared(exec: &execs::Exec) -> Result<Self, Full> {
        Ok(Self {
            pid: exec.pid(),
            control: exec.control(),
            stdin: exec.stdin().ok(),
            output: Output::Shared(exec.subscribe()?),
        })
    }
}

impl Output {
    /// Waits for what comes next. Cancel-safe.
    async fn next(&mut self, live: &Live) -> Result<ExecEvent, ApiError> {
        match self {
            Self::Own(command) => with_guest(&live.session, command.recv()).await?.ok_or_else(lost),
            Self::Shared(subscription) => {
                let told = tokio::select! {
                    told = subscription.next() => told,
                    reason = live.session.ended() => return Err(ApiError::gone(reason)),
                };
                match told {
                    Some(Told::Stdout(bytes)) => Ok(ExecEvent::Stdout(bytes)),
                    Some(Told::Stderr(bytes)) => Ok(ExecEvent::Stderr(bytes)),
                    Some(Told::Exited(status)) => Ok(ExecEvent::Exit(status)),
                    Some(Told::Lost(_)) | None => Err(lost()),
                }
            }
        }
    }
}

/// Starts what the first message names; `None` when the client goes away instead.
async fn command(live: &Live, source: &mut Source) -> Result<Option<Started>, ApiError> {
    let first = async {
        loop {
            match source.next().await {
                Some(Ok(Message::Text(text))) => return Ok(Some(text)),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Binary(_))) => {
                    return Err(ApiError::bad_request(
                        "the first message must be the command, as text",
                    ));
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(None),
            }
        }
    };
    let text = match tokio::time::timeout(FIRST_MESSAGE, first).await {
        Ok(outcome) => outcome?,
        Err(_) => {
            return Err(ApiError::bad_request(format!("no command within {FIRST_MESSAGE:?}")));
        }
    };
    let Some(text) = text else { return Ok(None) };
    let exec: Exec = serde_json::from_str(&text)
        .map_err(|error| ApiError::bad_request(format!("the command: {error}")))?;
    if exec.stdin.is_some() {
        return Err(ApiError::bad_request("send stdin in binary messages after open_stdin"));
    }
    refuse_tag(&exec)?;
    if exec.keep.is_some() {
        return Err(ApiError::bad_request("nothing of the output is left out: leave keep out"));
    }
    let how = exec.start_failure;
    // Counted until it is sent, which may take long.
    let _held = live.session.account().take(exec.held_bytes()).ok_or(Full)?;
    let (request, _) = exec.into_request()?;
    start_in_guest(live, request, how).await.map(Some)
}

/// Moves everything both ways; the last message, or `None` when the client has gone away.
async fn converse(
    live: &Live,
    attended: Attended,
    sink: &mut Sink,
    source: &mut Source,
) -> Option<ExecMessage> {
    let Attended { pid, mut output, control, stdin } = attended;
    let (queue, queued) = mpsc::channel(STDIN_DEPTH);
    let input = listen(source, control, stdin.is_some().then_some(queue));
    let stdin = feed(stdin, queued);
    let output = tell(live, pid, &mut output, sink);
    // A client that does not read must not keep what is over.
    let over = async {
        live.session.ended().await;
        tokio::time::sleep(CLOSING).await;
    };
    tokio::pin!(output, stdin);
    tokio::select! {
        last = &mut output => last.ok(),
        never = &mut stdin => match never {},
        wrong = input => wrong.err().map(|error| ExecMessage::from(&error)),
        () = over => None,
    }
}

async fn tell(
    live: &Live,
    pid: u32,
    output: &mut Output,
    sink: &mut Sink,
) -> Result<ExecMessage, ClientGone> {
    say(sink, &ExecMessage::Started { pid }).await?;
    loop {
        let event = tokio::select! {
            event = output.next(live) => event,
            () = tokio::time::sleep(HEARTBEAT) => {
                sink.send(Message::Ping(Bytes::new())).await.map_err(|_| ClientGone)?;
                continue;
            }
        };
        let (channel, bytes) = match event {
            Ok(ExecEvent::Stdout(bytes)) => (STDOUT, bytes),
            Ok(ExecEvent::Stderr(bytes)) => (STDERR, bytes),
            Ok(ExecEvent::Exit(status)) => {
                return Ok(ExecMessage::Exit { outcome: status.into() });
            }
            Err(error) => return Ok(ExecMessage::from(&error)),
        };
        put(sink, channel, &bytes).await?;
    }
}

/// Sends output in a message.
async fn put(sink: &mut Sink, channel: u8, bytes: &[u8]) -> Result<(), ClientGone> {
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(channel);
    message.extend_from_slice(bytes);
    sink.send(Message::Binary(message.into())).await.map_err(|_| ClientGone)
}

/// Takes the client's messages until it goes away; an error is what it did wrong.
async fn listen(
    source: &mut Source,
    control: ExecControl,
    stdin: Option<mpsc::Sender<Option<Piece>>>,
) -> Result<(), ApiError> {
    let stdin = || stdin.as_ref().ok_or(ExecError::NoStdin);
    let room = Arc::new(Semaphore::new(STDIN_HELD));
    while let Some(Ok(message)) = source.next().await {
        match message {
            Message::Binary(bytes) if bytes.len() > MESSAGE_LIMIT => {
                return Err(ApiError::bad_request(format!(
                    "a message after the command has at most {MESSAGE_LIMIT} bytes"
                )));
            }
            Message::Binary(bytes) if bytes.first() == Some(&STDIN) => {
                let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                // Nobody closes the semaphore; a message is never longer than all of it.
                let Ok(held) = room.clone().acquire_many_owned(size).await else { break };
                // The other end lives as long as this future.
                let _ = stdin()?.send(Some((bytes.slice(1..), held))).await;
            }
            Message::Binary(_) => {
                return Err(ApiError::bad_request(
                    "binary messages to the daemon begin with 0, for stdin",
                ));
            }
            Message::Text(text) if text.len() > CONTROL_LIMIT => {
                return Err(ApiError::bad_request(format!(
                    "a text message after the command has at most {CONTROL_LIMIT} bytes"
                )));
            }
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(ExecMessage::StdinEof) => {
                    let _ = stdin()?.send(None).await;
                }
                // What the command no longer takes because it has ended is no failure; its exit is
                // on the way.
                Ok(ExecMessage::Resize { rows, cols }) => {
                    drop(control.resize(TtySize { rows, cols }).await);
                }
                Ok(ExecMessage::Signal { number }) => {
                    drop(control.signal(check_signal(number)?).await);
                }
                Ok(_) => {
                    return Err(ApiError::bad_request(
                        "a client sends stdin_eof, resize and signal",
                    ));
                }
                Err(error) => {
                    return Err(ApiError::bad_request(format!(
                        "no message that is known: {error}"
                    )));
                }
            },
            Message::Close(_) => break,
            Message::Ping(_) | Message::Pong(_) => {}
        }
    }
    Ok(())
}

/// Writes what is queued to stdin; `None` closes it.
async fn feed(
    stdin: Option<ExecStdin>,
    mut queue: mpsc::Receiver<Option<Piece>>,
) -> std::convert::Infallible {
    while let (Some(stdin), Some(piece)) = (&stdin, queue.recv().await) {
        // A command that has ended takes nothing more; what comes is thrown away until its exit is
        // told.
        let _ = match piece {
            Some((bytes, _held)) => stdin.write_all(&bytes).await,
            None => stdin.close().await,
        };
    }
    std::future::pending().await
}

async fn say(sink: &mut Sink, message: &ExecMessage) -> Result<(), ClientGone> {
    let text = serde_json::to_string(message).map_err(|_| ClientGone)?;
    sink.send(Message::Text(text.into())).await.map_err(|_| ClientGone)
}
