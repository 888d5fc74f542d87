//! `process.Process`: commands of a sandbox.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mayfly_api::bounded;
use mayfly_daemon::http::counted;
use mayfly_daemon::service::execs::{Exec, ExecError, ExecState, StartOptions};
use mayfly_guest::channel::{ExecRequest, TtySize};
use serde::{Deserialize, Deserializer, Serialize};

use super::call::{In, no_user};
use super::process_stream::{self, Until};
use super::{guest_user, passwd};
use crate::connect::{self, Answers, Code, ConnectError, Requests};

/// Most arguments and variables of a command; their bytes are bounded by the guest's kernel.
const MOST_ARGUMENTS: usize = 64 << 10;
const MOST_VARIABLES: usize = 4 << 10;
const KEEPALIVE: HeaderName = HeaderName::from_static("keepalive-ping-interval");
/// How often a stream shows that it lives, unless its client says so, and the least and most.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(90);
const KEEPALIVE_SECONDS: std::ops::RangeInclusive<u64> = 1..=3600;
/// What the allocator keeps beside a text.
const PER_TEXT: usize = 64;

#[derive(Deserialize, Serialize, Default)]
pub(super) struct ProcessConfig {
    cmd: String,
    #[serde(default, deserialize_with = "arguments")]
    args: Vec<String>,
    #[serde(default, deserialize_with = "variables")]
    envs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<String>,
}

fn arguments<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    bounded::list(from, "process.args", MOST_ARGUMENTS)
}

fn variables<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    bounded::map(from, "process.envs", MOST_VARIABLES)
}

impl ProcessConfig {
    /// Bytes that it takes, here and in the frame that waits to be sent to the guest.
    fn held_bytes(&self) -> usize {
        let texts = self.args.iter().chain([&self.cmd]).chain(&self.cwd).map(String::len);
        let variables = self.envs.iter().map(|(name, value)| name.len() + value.len() + PER_TEXT);
        texts.chain(variables).map(|bytes| 2 * bytes + PER_TEXT).sum()
    }
}

#[derive(Deserialize, Clone, Copy)]
struct Size {
    #[serde(default)]
    cols: u32,
    #[serde(default)]
    rows: u32,
}

#[derive(Deserialize)]
struct Pty {
    size: Option<Size>,
}

impl Pty {
    fn size(&self) -> Result<TtySize, ConnectError> {
        let size = self.size.unwrap_or(Size { cols: 80, rows: 24 });
        let cells = |number: u32| {
            u16::try_from(number)
                .map_err(|_| ConnectError::invalid("pty.size: at most 65535 cells"))
        };
        Ok(TtySize { rows: cells(size.rows)?, cols: cells(size.cols)? })
    }
}

#[derive(Deserialize)]
struct StartRequest {
    process: Option<ProcessConfig>,
    pty: Option<Pty>,
    tag: Option<String>,
    stdin: Option<bool>,
}

/// Which command is meant.
#[derive(Deserialize)]
struct Selector {
    pid: Option<u32>,
    tag: Option<String>,
}

impl Selector {
    fn find(&self, call: &In) -> Result<Arc<Exec>, ConnectError> {
        let execs = call.session().execs();
        let (found, what) = match (self.pid, &self.tag) {
            (Some(pid), _) => (execs.by_pid(pid), format!("pid {pid}")),
            (None, Some(tag)) => (execs.by_tag(tag), format!("tag {}", tag.escape_debug())),
            (None, None) => return Err(ConnectError::invalid("process: name a pid or a tag")),
        };
        let missing = || ConnectError::new(Code::NotFound, format!("no process with {what} runs"));
        found.ok_or_else(missing)
    }
}

#[derive(Deserialize)]
pub(super) struct Selected {
    process: Option<Selector>,
}

impl Selected {
    fn find(&self, call: &In) -> Result<Arc<Exec>, ConnectError> {
        find(self.process.as_ref(), call)
    }
}

fn find(process: Option<&Selector>, call: &In) -> Result<Arc<Exec>, ConnectError> {
    process.ok_or_else(|| ConnectError::invalid("process is missing"))?.find(call)
}

#[derive(Serialize)]
pub(super) struct Empty {}

/// Starts a command. It goes on when its client goes away, and ends at the client's time limit.
pub(crate) async fn start(
    call: In,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ConnectError> {
    let account = call.session().account().clone();
    let limit = connect::time_limit(&headers)?;
    let every = keepalive(&headers);
    let (request, read) = connect::server_stream::<StartRequest>(&headers, body, &account).await?;
    let config = request.process.unwrap_or_default();
    let held = account.take(config.held_bytes()).ok_or(mayfly_daemon::service::held::Full)?;
    drop(read);
    let user = guest_user::resolve(&call, guest_user::of_headers(&headers)?).await?;
    let tty = request.pty.as_ref().map(Pty::size).transpose()?;
    let command = ExecRequest {
        argv: [config.cmd].into_iter().chain(config.args).map(Into::into).collect(),
        cwd: working_directory(&call, config.cwd, &user).await?.into(),
        env: environment(&call, config.envs, &user),
        tty,
        stdin: tty.is_some() || request.stdin.unwrap_or(true),
        timeout_ms: limit.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
        user: Some(user),
    };
    // Before the command: what cannot be told needs not be done.
    let (answers, response) = Answers::new(&account)?;
    let (command, _env) = call.session().with_defaults(command)?;
    let options = StartOptions { tag: request.tag, keep_nothing: true };
    let user = command.user.clone().unwrap_or_default();
    let started = call.session().execs().start_subscribed(call.guest(), command, options);
    let started = tokio::select! {
        started = started => started,
        _ = call.session().ended() => return Err(ConnectError::gone()),
    };
    let (exec, output) = match started {
        Ok(started) => started,
        Err(error) => return Err(not_started(&call, error, &user).await),
    };
    drop(held);
    let until = Until { every, limit: None };
    tokio::spawn(process_stream::tell(call, exec, output, answers, until));
    Ok(response)
}

/// The error for a command that could not be started, for want of its user or of something else.
/// That something was not found is no word of the process, which clients would take it for.
async fn not_started(call: &In, error: ExecError, user: &str) -> ConnectError {
    let error = ConnectError::from(error);
    if error.is_gone() || error.code() == Code::ResourceExhausted {
        return error;
    }
    let name = user.split(':').next().unwrap_or_default();
    let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number && matches!(guest_user::home(call.session(), name).await, Ok(None)) {
        return no_user(error.message());
    }
    match error.code() {
        Code::NotFound => ConnectError::invalid(error.message()),
        _ => error,
    }
}

/// Variables of a command: of the user that it runs as, and then its own.
fn environment(
    call: &In,
    own: BTreeMap<String, String>,
    user: &str,
) -> Vec<(mayfly_guest::channel::ByteString, mayfly_guest::channel::ByteString)> {
    let name = user.split(':').next().unwrap_or_default();
    let is_name = !name.is_empty() && !name.bytes().all(|byte| byte.is_ascii_digit());
    let of_user = ["USER", "LOGNAME"].into_iter().filter(|variable| {
        is_name && !own.contains_key(*variable) && !call.session().env().contains_key(*variable)
    });
    let of_user: Vec<_> = of_user.map(|variable| (variable.into(), name.into())).collect();
    of_user.into_iter().chain(own.into_iter().map(|(n, v)| (n.into(), v.into()))).collect()
}

/// The directory in which a command starts: the user's home is its own default.
async fn working_directory(
    call: &In,
    asked: Option<String>,
    user: &str,
) -> Result<String, ConnectError> {
    let asked = asked.unwrap_or_default();
    if asked.is_empty() || asked.starts_with('/') {
        return Ok(asked);
    }
    let home = guest_user::home(call.session(), user).await?;
    Ok(passwd::absolute(&asked, home.as_deref().unwrap_or("/")))
}

pub(super) fn keepalive(headers: &HeaderMap) -> Duration {
    let asked = headers.get(KEEPALIVE).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let (least, most) = (*KEEPALIVE_SECONDS.start(), *KEEPALIVE_SECONDS.end());
    asked.map_or(KEEPALIVE_EVERY, |seconds| Duration::from_secs(seconds.clamp(least, most)))
}

/// Attaches to a running command: tells what it writes from now on.
pub(crate) async fn connect(
    call: In,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ConnectError> {
    let account = call.session().account().clone();
    let until = Until { every: keepalive(&headers), limit: connect::time_limit(&headers)? };
    let (request, _read) = connect::server_stream::<Selected>(&headers, body, &account).await?;
    let exec = request.find(&call)?;
    let (answers, response) = Answers::new(&account)?;
    let output = exec.subscribe()?;
    tokio::spawn(process_stream::tell(call, exec, output, answers, until));
    Ok(response)
}

#[derive(Serialize)]
struct Info {
    config: ProcessConfig,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
}

pub(crate) async fn list(call: In) -> Result<Response, ConnectError> {
    let running = call.session().execs().list().into_iter();
    let running = running.filter(|exec| exec.state() == ExecState::Running);
    let processes = running.map(|exec| {
        let view = exec.view();
        let mut argv = view.argv.into_iter();
        let cmd = argv.next().unwrap_or_default();
        let config = ProcessConfig { cmd, args: argv.collect(), ..ProcessConfig::default() };
        Info { config, pid: view.pid, tag: view.tag }
    });
    Ok(counted::list(call.session().account(), "processes", processes).await?)
}

/// `SIGNAL_SIGKILL`, or the number of it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Signal {
    Name(String),
    Number(i32),
}

#[derive(Deserialize)]
struct SignalRequest {
    process: Option<Selector>,
    signal: Option<Signal>,
}

pub(crate) async fn send_signal(
    call: In,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ConnectError> {
    let (request, _read) = call.request::<SignalRequest>(&headers, body).await?;
    let number = match &request.signal {
        Some(Signal::Number(libc::SIGTERM)) => libc::SIGTERM,
        Some(Signal::Number(libc::SIGKILL)) => libc::SIGKILL,
        Some(Signal::Name(name)) if name == "SIGNAL_SIGTERM" => libc::SIGTERM,
        Some(Signal::Name(name)) if name == "SIGNAL_SIGKILL" => libc::SIGKILL,
        _ => return Err(ConnectError::invalid("signal must be SIGNAL_SIGTERM or SIGNAL_SIGKILL")),
    };
    let exec = find(request.process.as_ref(), &call)?;
    tell(&call, exec.signal(number)).await
}

#[derive(Deserialize)]
pub(super) struct Input {
    stdin: Option<String>,
    pty: Option<String>,
}

impl Input {
    /// The bytes for a command, which is on a terminal or not.
    fn bytes(&self, exec: &Exec) -> Result<Vec<u8>, ConnectError> {
        let (text, is_pty) = match (&self.stdin, &self.pty) {
            (Some(text), None) => (text, false),
            (None, Some(text)) => (text, true),
            _ => return Err(ConnectError::invalid("input: send stdin or pty")),
        };
        if is_pty != exec.tty() {
            let message = "input: stdin is for a process without a terminal, pty for one with it";
            return Err(ConnectError::new(Code::FailedPrecondition, message));
        }
        let bytes = STANDARD.decode(text);
        bytes.map_err(|error| ConnectError::invalid(format!("input is not base64: {error}")))
    }
}

#[derive(Deserialize)]
struct InputRequest {
    process: Option<Selector>,
    input: Option<Input>,
}

/// Writes to a command; answers when the bytes are on their way, and waits while it does not read.
pub(crate) async fn send_input(
    call: In,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ConnectError> {
    let (request, _read) = call.request::<InputRequest>(&headers, body).await?;
    let exec = find(request.process.as_ref(), &call)?;
    let input = request.input.ok_or_else(|| ConnectError::invalid("input is missing"))?;
    let bytes = input.bytes(&exec)?;
    tell(&call, exec.write_stdin(&bytes)).await
}

pub(crate) async fn close_stdin(
    call: In,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ConnectError> {
    let (request, _read) = call.request::<Selected>(&headers, body).await?;
    let exec = request.find(&call)?;
    tell(&call, exec.close_stdin()).await
}

#[derive(Deserialize)]
struct UpdateRequest {
    process: Option<Selector>,
    pty: Option<Pty>,
}

/// Sets the size of a command's terminal.
pub(crate) async fn update(
    call: In,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ConnectError> {
    let (request, _read) = call.request::<UpdateRequest>(&headers, body).await?;
    let exec = find(request.process.as_ref(), &call)?;
    let Some(pty) = request.pty else { return Ok(connect::answer(&Empty {})) };
    if !exec.tty() {
        let message = "the process has no terminal";
        return Err(ConnectError::new(Code::FailedPrecondition, message));
    }
    let size = pty.size()?;
    tell(&call, exec.resize(size.rows, size.cols)).await
}

#[derive(Deserialize)]
struct StreamInputRequest {
    start: Option<Selected>,
    data: Option<StreamData>,
}

#[derive(Deserialize)]
struct StreamData {
    input: Option<Input>,
}

/// Writes to a command what comes, in order, as fast as it reads.
pub(crate) async fn stream_input(
    call: In,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ConnectError> {
    let account = call.session().account().clone();
    let limit = connect::time_limit(&headers)?;
    let mut requests = Requests::new(&headers, body, &account)?;
    let (answers, response) = Answers::new(&account)?;
    let work = async {
        let mut exec = None;
        while let Some(request) = requests.next::<StreamInputRequest>().await? {
            if let Some(start) = request.start {
                exec = Some(start.find(&call)?);
            }
            let Some(input) = request.data.and_then(|data| data.input) else { continue };
            let exec: &Arc<Exec> = exec
                .as_ref()
                .ok_or_else(|| ConnectError::invalid("the first request must name the process"))?;
            let bytes = input.bytes(exec)?;
            tell(&call, exec.write_stdin(&bytes)).await?;
        }
        Ok(())
    };
    let over = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        () = over => Err(process_stream::too_long()),
        // A client that sends nothing more must not keep it.
        _ = call.session().ended() => Err(ConnectError::gone()),
    };
    if outcome.as_ref().is_err_and(ConnectError::is_gone) {
        return Err(ConnectError::gone());
    }
    // There is room in a stream that nothing was written to.
    if outcome.is_ok() {
        let _ = answers.send(&Empty {}).await;
    }
    answers.end(outcome).await;
    Ok(response)
}

/// Says something to a running command.
async fn tell(
    call: &In,
    work: impl Future<Output = Result<(), ExecError>>,
) -> Result<Response, ConnectError> {
    let outcome = tokio::select! {
        outcome = work => outcome,
        _ = call.session().ended() => return Err(ConnectError::gone()),
    };
    match outcome {
        Ok(()) => Ok(connect::answer(&Empty {})),
        Err(error) => Err(process_stream::ended(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> StartRequest {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_request_is_read_as_sdks_write_it() {
        let request = parsed(
            r#"{"process": {"cmd": "/bin/bash", "args": ["-l", "-c", "echo"], "envs": {"A": "1"}, "cwd": "/x"},
                "stdin": false, "unknown": 1}"#,
        );
        let process = request.process.unwrap();
        assert_eq!((process.cmd.as_str(), process.args.len()), ("/bin/bash", 3));
        assert_eq!((process.cwd.as_deref(), request.stdin), (Some("/x"), Some(false)));
        let pty = parsed(r#"{"process": {"cmd": "x"}, "pty": {"size": {"rows": 24, "cols": 80}}}"#);
        assert_eq!(pty.pty.unwrap().size().unwrap(), TtySize { rows: 24, cols: 80 });
        let huge = parsed(r#"{"pty": {"size": {"rows": 65536}}}"#);
        huge.pty.unwrap().size().unwrap_err();
    }

    #[test]
    fn arguments_are_bounded() {
        let args = vec!["x"; MOST_ARGUMENTS + 1];
        let text = serde_json::json!({"process": {"cmd": "x", "args": args}}).to_string();
        assert!(serde_json::from_str::<StartRequest>(&text).is_err());
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for text in [r#"{"signal": "SIGNAL_SIGKILL"}"#, r#"{"signal": 9}"#] {
            let request: SignalRequest = serde_json::from_str(text).unwrap();
            assert!(request.signal.is_some(), "{text}");
        }
    }
}
