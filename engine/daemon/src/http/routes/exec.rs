//! Commands with one answer: all at the end, or line by line.

use axum::http::StatusCode;
use axum::response::Response;
use mayfly_api::{Blob, ErrorBody, Exec, ExecMessage, ExecOutcome, ExecResult};
use mayfly_guest::channel::{ChannelError, ExecEvent, ExecHandle, ExecStdin};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::http::counted;
use crate::http::described::OfSession;
use crate::http::error::ApiError;
use crate::http::extract::{Body, Live, Params};
use crate::http::guest::with_guest;
use crate::http::ndjson::{ClientGone, HEARTBEAT, Lines, PIECE};
use crate::service::held::{Full, Held};
use crate::service::shares::Account;

/// Output of a buffered command, stdout and stderr together, in bytes.
const OUTPUT_LIMIT: usize = 8 << 20;

/// Query that says how a command is answered.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExecParams {
    /// Answers with NDJSON: one `ExecMessage` a line, as things happen.
    #[serde(default)]
    stream: bool,
}

/// Run a command
///
/// Waits for its end and answers with its output, at most 8 MiB; or, with `stream`, answers line by
/// line without a bound. The command is killed when the client goes away.
#[utoipa::path(
    post, path = "/v1/sessions/{id}/exec", tag = "commands",
    params(OfSession, ExecParams),
    request_body = Exec,
    responses(
        (status = 200, description = "How it ended; with `stream` NDJSON of `ExecMessage`", body = ExecResult),
        (status = 404, description = "No such session, or no such program", body = ErrorBody),
        (status = 410, description = "The session is over", body = ErrorBody),
        (status = 413, description = "More output than is buffered: use `stream`", body = ErrorBody),
        (status = 429, description = "More bytes than may be held for this tenant: use `stream`, or try again later", body = ErrorBody),
    )
)]
pub async fn exec(
    live: Live,
    Params(params): Params<ExecParams>,
    // Counted as long as the request is: a command may take its time to read its stdin.
    Body(request, given): Body<Exec>,
) -> Result<Response, ApiError> {
    if params.stream {
        let (lines, response) = counted::lines(live.session.account())?;
        let (command, stdin) = start(&live, request).await?;
        tokio::spawn(async move {
            stream(live, command, stdin, lines).await;
            drop(given);
        });
        return Ok(response);
    }
    let (command, stdin) = start(&live, request).await?;
    let account = live.session.account();
    let collected = with_guest(&live.session, collect(command, stdin, account)).await?;
    Ok(answer(collected, account).await?)
}

/// What a command has written, and how it ended.
struct Collected {
    outcome: ExecOutcome,
    stdout: Held,
    stderr: Held,
}

/// All of it as JSON, which counts until the client has it.
async fn answer(collected: Collected, account: &Account) -> Result<Response, Full> {
    let Collected { outcome, stdout, stderr } = collected;
    counted::exec_result(account, &outcome, stdout.as_ref(), stderr.as_ref()).await
}

/// Starts a command whose stdin, if it has one, is given with it.
async fn start(live: &Live, request: Exec) -> Result<(ExecHandle, Option<Vec<u8>>), ApiError> {
    if request.open_stdin {
        let message = "open_stdin needs the WebSocket or a background command; give stdin in the request instead";
        return Err(ApiError::bad_request(message));
    }
    refuse_tag(&request)?;
    let (request, stdin) = request.into_request()?;
    let (request, _env) = live.session.with_defaults(request)?;
    let command = with_guest(&live.session, live.session.session().guest().exec(request)).await?;
    Ok((command, stdin))
}

async fn collect(
    mut command: ExecHandle,
    stdin: Option<Vec<u8>>,
    account: &Account,
) -> Result<Collected, ChannelError> {
    let fed = feed(command.stdin(), stdin);
    let full = |_: Full| ChannelError::NoBuffers;
    let collected = async {
        let new = || Held::new(account).map_err(full);
        let (mut stdout, mut stderr) = (new()?, new()?);
        while let Some(event) = command.recv().await? {
            match event {
                ExecEvent::Stdout(bytes) => stdout.extend(&bytes).map_err(full)?,
                ExecEvent::Stderr(bytes) => stderr.extend(&bytes).map_err(full)?,
                ExecEvent::Exit(status) => {
                    return Ok(Collected { outcome: status.into(), stdout, stderr });
                }
            }
            if stdout.len() + stderr.len() > OUTPUT_LIMIT {
                return Err(ChannelError::TooLong { what: "output", limit: OUTPUT_LIMIT });
            }
        }
        Err(ChannelError::Ended)
    };
    beside(collected, fed).await
}

/// Writes all of stdin. A command that ends without reading it is no failure; every other one shows
/// in its output, too.
async fn feed(input: ExecStdin, stdin: Option<Vec<u8>>) {
    if let Some(stdin) = stdin
        && input.write_all(&stdin).await.is_ok()
    {
        let _ = input.close().await;
    }
}

/// Does `main` to its end, and `side` meanwhile.
async fn beside<T>(main: impl Future<Output = T>, side: impl Future<Output = ()>) -> T {
    tokio::pin!(main);
    tokio::select! {
        result = &mut main => result,
        () = side => main.await,
    }
}

async fn stream(live: Live, mut command: ExecHandle, stdin: Option<Vec<u8>>, lines: Lines) {
    let fed = feed(command.stdin(), stdin);
    tokio::select! {
        // A client that is gone hears nothing; the command dies with its handle.
        _ = beside(tell(&live, &mut command, &lines), fed) => {}
        () = lines.closed() => {}
    }
}

async fn tell(live: &Live, command: &mut ExecHandle, lines: &Lines) -> Result<(), ClientGone> {
    lines.send(&ExecMessage::Started { pid: command.pid() }).await?;
    loop {
        let event = tokio::select! {
            event = with_guest(&live.session, command.recv()) => event,
            () = tokio::time::sleep(HEARTBEAT) => {
                lines.send(&ExecMessage::Heartbeat).await?;
                continue;
            }
        };
        let last = match event {
            Ok(Some(ExecEvent::Stdout(bytes))) => {
                let message = |data| ExecMessage::Stdout { data };
                tell_output(lines, &bytes, message).await?;
                continue;
            }
            Ok(Some(ExecEvent::Stderr(bytes))) => {
                let message = |data| ExecMessage::Stderr { data };
                tell_output(lines, &bytes, message).await?;
                continue;
            }
            Ok(Some(ExecEvent::Exit(status))) => ExecMessage::Exit { outcome: status.into() },
            Ok(None) => ExecMessage::from(&lost()),
            Err(error) => ExecMessage::from(&error),
        };
        return lines.send(&last).await;
    }
}

/// Tells of output in lines that are short enough to wait for a client.
async fn tell_output(
    lines: &Lines,
    mut output: &[u8],
    message: impl Fn(Blob) -> ExecMessage,
) -> Result<(), ClientGone> {
    while !output.is_empty() {
        let (piece, rest) = output.split_at(end_of_piece(output));
        lines.send(&message(Blob(piece.to_vec()))).await?;
        output = rest;
    }
    Ok(())
}

/// Where the first piece of some output ends: between two characters where it is UTF-8, as a piece
/// with a part of one would be told in base64.
fn end_of_piece(output: &[u8]) -> usize {
    if output.len() <= PIECE {
        return output.len();
    }
    let begins = |at: &usize| output[*at] & 0b1100_0000 != 0b1000_0000;
    // At most three bytes follow the first one of a character.
    (PIECE - 3..=PIECE).rev().find(begins).unwrap_or(PIECE)
}

/// Refuses a tag of a command that nobody else can find.
pub fn refuse_tag(request: &Exec) -> Result<(), ApiError> {
    match request.tag {
        Some(_) => Err(ApiError::bad_request("tag is for background commands only: leave it out")),
        None => Ok(()),
    }
}

/// The command is lost, and the cause was told to nobody.
pub fn lost() -> ApiError {
    ApiError::new(
        StatusCode::BAD_GATEWAY,
        "guest_lost",
        "the command is lost: its guest has ended its stream",
    )
}

impl From<&ApiError> for ExecMessage {
    fn from(error: &ApiError) -> Self {
        Self::Error { code: error.code().into(), message: error.message().into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_between_characters_and_nothing_is_lost() {
        for text in ["x", "\u{e9}", "\u{20ac}", "\u{1f600}", "x\u{1f600}", "xx\u{1f600}"] {
            let all = text.repeat(3 * PIECE);
            let (mut rest, mut told) = (all.as_bytes(), String::new());
            while !rest.is_empty() {
                let (piece, left) = rest.split_at(end_of_piece(rest));
                assert!(piece.len() <= PIECE && (piece.len() > PIECE - 4 || left.is_empty()));
                told.push_str(std::str::from_utf8(piece).unwrap());
                rest = left;
            }
            assert!(told == all);
        }
        assert_eq!(end_of_piece(&[0x80; PIECE + 1]), PIECE);
        assert_eq!((end_of_piece(&[0x80; PIECE]), end_of_piece(b"x")), (PIECE, 1));
    }
}
