//! Commands with one answer: all at the end, or line by line.

use axum::http::StatusCode;
use axum::response::Response;
use mayfly_api::{Blob, ErrorBody, Exec, ExecMessage, ExecOutcome, ExecResult, StartFailureAs};
use mayfly_guest::channel::{
    ChannelError, ExecEvent, ExecHandle, ExecRequest, ExecStdin, ExitStatus,
};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::http::counted;
use crate::http::described::OfSession;
use crate::http::error::ApiError;
use crate::http::extract::{Live, Params};
use crate::http::given::{ExecForm, FormStdin, Given};
use crate::http::guest::with_guest;
use crate::http::ndjson::{ClientGone, HEARTBEAT, Lines, PIECE};
use crate::service::held::Full;
use crate::service::kept::Kept;
use crate::service::shares::Account;

/// Bytes that are kept of each of the two streams of a buffered command, as long as its tenant may
/// hold so much.
const OUTPUT_KEPT: usize = 8 << 20;
/// Bytes of each for whose answer there has to be room.
const LEAST_ANSWERED: usize = 16 << 10;

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
/// Waits for its end and answers with its output, of which at most 8 MiB of each stream are kept; or,
/// with `stream`, answers line by line without a bound. The command is killed when the client goes
/// away. A form may have the command's stdin, of any length, as its second part.
#[utoipa::path(
    post, path = "/v1/sessions/{id}/exec", tag = "commands",
    params(OfSession, ExecParams),
    request_body(content((Exec = "application/json"), (ExecForm = "multipart/form-data"))),
    responses(
        (status = 200, description = "How it ended; with `stream` NDJSON of `ExecMessage`", body = ExecResult),
        (status = 404, description = "No such session, or no such program", body = ErrorBody),
        (status = 410, description = "The session is over", body = ErrorBody),
        (status = 413, description = "A longer body than is held: send a form", body = ErrorBody),
        (status = 429, description = "More bytes than may be held for this tenant: use `stream`, or try again later", body = ErrorBody),
    )
)]
pub async fn exec(
    live: Live,
    Params(params): Params<ExecParams>,
    given: Given,
) -> Result<Response, ApiError> {
    // Counted as long as the request is: a command may take its time to read its stdin.
    let Given { command, stdin: form, held } = given;
    let keep = command.keep;
    if params.stream && keep.is_some() {
        let message = "with stream nothing of the output is left out: leave keep out";
        return Err(ApiError::bad_request(message));
    }
    if params.stream {
        let (lines, response) = counted::lines(live.session.account())?;
        let (started, mut stdin) = start(&live, command, form).await?;
        tokio::spawn(async move {
            stream(live, started, &mut stdin, lines).await;
            stdin.skip().await;
            drop(held);
        });
        return Ok(response);
    }
    let (started, mut stdin) = start(&live, command, form).await?;
    let account = live.session.account();
    let new = || Kept::new(keep.unwrap_or_default(), OUTPUT_KEPT, account);
    let mut collected =
        Collected { outcome: ExecOutcome::ExitCode(0), stdout: new()?, stderr: new()? };
    match started {
        Started::Running(handle) => {
            let fed = stdin.feed(handle.stdin());
            let collect = with_guest(&live.session, collect(handle, &mut collected));
            beside(collect, fed).await?;
        }
        Started::Failed(outcome, message) => {
            collected.outcome = outcome;
            collected.stderr.push(message.as_bytes());
        }
    }
    stdin.skip().await;
    Ok(answer(collected, account).await?)
}

/// What a command has written, and how it ended.
struct Collected {
    outcome: ExecOutcome,
    stdout: Kept,
    stderr: Kept,
}

/// All of it as JSON, which counts until the client has it. Where there is no room for so much, a
/// smaller part is answered.
async fn answer(collected: Collected, account: &Account) -> Result<Response, Full> {
    let Collected { outcome, mut stdout, mut stderr } = collected;
    loop {
        let most = stdout.kept().max(stderr.kept()) / 2;
        match counted::exec_result(account, &outcome, &mut stdout, &mut stderr).await {
            Err(Full) if most >= LEAST_ANSWERED => {
                stdout.shrink(most);
                stderr.shrink(most);
            }
            answered => return answered,
        }
    }
}

/// What became of the start of a command.
#[derive(Debug)]
pub enum Started {
    /// It runs.
    Running(ExecHandle),
    /// It does not, and this is its result, with what is to be said on stderr.
    Failed(ExecOutcome, String),
}

/// The stdin of a command that was given with it.
enum Stdin {
    None,
    Held(Vec<u8>),
    Form(Box<FormStdin>),
}

impl Stdin {
    /// Writes all of it. A command that ends without reading it is no failure; every other one shows
    /// in its output, too.
    async fn feed(&mut self, input: ExecStdin) -> Result<(), ApiError> {
        match self {
            Self::None => return Ok(()),
            Self::Held(bytes) => {
                if input.write_all(bytes).await.is_err() {
                    return Ok(());
                }
            }
            Self::Form(form) => {
                while let Some(piece) = form.next().await? {
                    if input.write_all(&piece).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        let _ = input.close().await;
        Ok(())
    }

    /// Reads what a client still sends, so that it comes to read the answer.
    async fn skip(&mut self) {
        if let Self::Form(form) = self {
            form.skip().await;
        }
    }
}

/// Starts a command whose stdin, if it has one, is given with it.
async fn start(
    live: &Live,
    command: Exec,
    form: Option<FormStdin>,
) -> Result<(Started, Stdin), ApiError> {
    let how = command.start_failure;
    let mut stdin = form.map_or(Stdin::None, |form| Stdin::Form(Box::new(form)));
    let started = async {
        refuse_tag(&command)?;
        if command.open_stdin {
            let message = "open_stdin needs the WebSocket or a background command; give stdin in the request instead";
            return Err(ApiError::bad_request(message));
        }
        let (mut request, held) = command.into_request()?;
        if let Some(bytes) = held {
            stdin = Stdin::Held(bytes);
        }
        request.stdin = !matches!(stdin, Stdin::None);
        start_in_guest(live, request, how).await
    };
    let started = started.await;
    match started {
        Ok(started) => Ok((started, stdin)),
        Err(error) => {
            stdin.skip().await;
            Err(error)
        }
    }
}

/// Starts a command with the defaults of its session. That it cannot be started is its result where
/// that is asked for, and so is a time limit that passes before the guest says anything.
pub async fn start_in_guest(
    live: &Live,
    request: ExecRequest,
    how: Option<StartFailureAs>,
) -> Result<Started, ApiError> {
    let (request, _added) = live.session.with_defaults(request)?;
    let as_result = how == Some(StartFailureAs::Result);
    let started = async {
        match live.session.session().guest().exec(request).await {
            Ok(handle) => Ok(Started::Running(handle)),
            Err(ChannelError::NotStarted { kind, error }) if as_result => {
                let outcome = ExecOutcome::ExitCode(kind.shell_code());
                Ok(Started::Failed(outcome, format!("mayfly: {error}\n")))
            }
            Err(ChannelError::NoStart { .. }) => {
                Ok(Started::Failed(ExitStatus::TimedOut.into(), String::new()))
            }
            Err(error) => Err(error),
        }
    };
    with_guest(&live.session, started).await
}

async fn collect(mut command: ExecHandle, collected: &mut Collected) -> Result<(), ChannelError> {
    while let Some(event) = command.recv().await? {
        match event {
            ExecEvent::Stdout(bytes) => collected.stdout.push(&bytes),
            ExecEvent::Stderr(bytes) => collected.stderr.push(&bytes),
            ExecEvent::Exit(status) => {
                collected.outcome = status.into();
                return Ok(());
            }
        }
    }
    Err(ChannelError::Ended)
}

/// Does `main` to its end, and `side` meanwhile; a failure of either ends both.
async fn beside<T>(
    main: impl Future<Output = Result<T, ApiError>>,
    side: impl Future<Output = Result<(), ApiError>>,
) -> Result<T, ApiError> {
    tokio::pin!(main);
    tokio::select! {
        result = &mut main => result,
        side = side => {
            side?;
            main.await
        }
    }
}

async fn stream(live: Live, started: Started, stdin: &mut Stdin, lines: Lines) {
    let told = async {
        let mut command = match started {
            Started::Running(command) => command,
            Started::Failed(outcome, message) => {
                let stderr = |data| ExecMessage::Stderr { data };
                tell_output(&lines, message.as_bytes(), stderr).await?;
                return lines.send(&ExecMessage::Exit { outcome }).await;
            }
        };
        let fed = stdin.feed(command.stdin());
        let told = async { Ok(tell(&live, &mut command, &lines).await) };
        match beside(told, fed).await {
            Ok(told) => told,
            Err(error) => lines.send(&ExecMessage::from(&error)).await,
        }
    };
    tokio::select! {
        // A client that is gone hears nothing; the command dies with its handle.
        _ = told => {}
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
