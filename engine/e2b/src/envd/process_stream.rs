//! What a command does, told to a client until one of them ends.

use std::sync::Arc;
use std::time::Duration;

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use mayfly_daemon::http::error::ApiError;
use mayfly_daemon::service::execs::{Exec, ExecError};
use mayfly_daemon::service::readers::{Subscription, Told};
use mayfly_guest::channel::{ChannelError, ExitStatus};
use mayfly_host::time_scale::scaled;
use serde::{Serialize, Serializer};
use tokio::time::{Instant, MissedTickBehavior};

use super::call::In;
use super::process::Empty;
use crate::connect::{Answers, ClientGone, Code, ConnectError};

/// How long the end of a session may take to show after a command of it was lost, which is often
/// noticed first.
const CAUSE: Duration = Duration::from_millis(300);

/// How long a stream is told.
pub(super) struct Until {
    /// Interval of its signs of life.
    pub every: Duration,
    /// Its client's time limit, which does not end the command.
    pub limit: Option<Duration>,
}

#[derive(Serialize)]
struct Answer<'a> {
    event: Event<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Event<'a> {
    Start { pid: u32 },
    Data(Data<'a>),
    Keepalive(Empty),
    End(End),
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Data<'a> {
    Stdout(Bytes<'a>),
    Stderr(Bytes<'a>),
    Pty(Bytes<'a>),
}

/// Bytes in base64.
struct Bytes<'a>(&'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &STANDARD))
    }
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct End {
    exit_code: i32,
    exited: bool,
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl End {
    /// As Go says it, which envd is written in.
    fn of(status: ExitStatus) -> Option<Self> {
        let (exit_code, exited, status) = match status {
            ExitStatus::Code(code) => (code, true, format!("exit status {code}")),
            ExitStatus::Signal(number) => (-1, false, format!("signal: {}", signal_name(number))),
            ExitStatus::TimedOut => return None,
        };
        let error = (exit_code != 0).then(|| status.clone());
        Some(Self { exit_code, exited, status, error })
    }
}

fn signal_name(number: i32) -> String {
    let name = match number {
        libc::SIGHUP => "hangup",
        libc::SIGINT => "interrupt",
        libc::SIGQUIT => "quit",
        libc::SIGILL => "illegal instruction",
        libc::SIGTRAP => "trace/breakpoint trap",
        libc::SIGABRT => "aborted",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "floating point exception",
        libc::SIGKILL => "killed",
        libc::SIGUSR1 => "user defined signal 1",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGUSR2 => "user defined signal 2",
        libc::SIGPIPE => "broken pipe",
        libc::SIGALRM => "alarm clock",
        libc::SIGTERM => "terminated",
        _ => return format!("signal {number}"),
    };
    name.to_owned()
}

/// Tells a client of a command until the command ends, the client goes away, or its time is over.
/// When the sandbox ends, the connection breaks, by which clients know it.
pub(super) async fn tell(
    call: In,
    exec: Arc<Exec>,
    output: Subscription,
    answers: Answers,
    until: Until,
) {
    let over = async {
        match until.limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        outcome = told(&exec, output, &answers, until.every) => outcome,
        () = over => Ok(Outcome::End(Err(too_long()))),
        () = answers.closed() => return,
        // What it has written until now is lost with it.
        _ = call.session().ended() => return,
    };
    let outcome = match outcome {
        Ok(Outcome::End(outcome)) => outcome,
        Ok(Outcome::Lost(reason)) => {
            if tokio::time::timeout(scaled(CAUSE), call.session().ended()).await.is_ok() {
                return;
            }
            let message = format!("the process was lost: {reason}");
            Err(ConnectError::new(Code::Internal, message))
        }
        Err(ClientGone) => return,
    };
    tokio::select! {
        biased;
        () = answers.end(outcome) => {}
        // A client that does not read must not keep it.
        _ = call.session().ended() => {}
    }
}

enum Outcome {
    End(Result<(), ConnectError>),
    Lost(Arc<str>),
}

async fn told(
    exec: &Exec,
    mut output: Subscription,
    answers: &Answers,
    every: Duration,
) -> Result<Outcome, ClientGone> {
    say(answers, Event::Start { pid: exec.pid() }).await?;
    let mut alive = tokio::time::interval_at(Instant::now() + every, every);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let tty = exec.tty();
    loop {
        let told = tokio::select! {
            biased;
            told = output.next() => told,
            _ = alive.tick() => {
                say(answers, Event::Keepalive(Empty {})).await?;
                continue;
            }
        };
        match told {
            Some(Told::Stdout(bytes)) if tty => {
                say(answers, Event::Data(Data::Pty(Bytes(&bytes)))).await?;
            }
            Some(Told::Stdout(bytes)) => {
                say(answers, Event::Data(Data::Stdout(Bytes(&bytes)))).await?;
            }
            Some(Told::Stderr(bytes)) => {
                say(answers, Event::Data(Data::Stderr(Bytes(&bytes)))).await?;
            }
            Some(Told::Exited(status)) => {
                let Some(end) = End::of(status) else { return Ok(Outcome::End(Err(too_long()))) };
                say(answers, Event::End(end)).await?;
                return Ok(Outcome::End(Ok(())));
            }
            Some(Told::Lost(reason)) => return Ok(Outcome::Lost(reason)),
            None => return Ok(Outcome::Lost("it ended without a status".into())),
        }
    }
}

async fn say(answers: &Answers, event: Event<'_>) -> Result<(), ClientGone> {
    answers.send(&Answer { event }).await
}

pub(super) fn too_long() -> ConnectError {
    ConnectError::new(Code::DeadlineExceeded, "the time limit of the call is over")
}

/// The error for what was said to a command that has ended: it is as if it had never been.
pub(super) fn ended(error: ExecError) -> ConnectError {
    match error {
        ExecError::Channel(ChannelError::Ended) => {
            ConnectError::new(Code::NotFound, "the process has ended")
        }
        other => ConnectError::from(ApiError::from(other)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_what_sdks_read() {
        let said = |event| serde_json::to_value(Answer { event }).unwrap();
        assert_eq!(said(Event::Start { pid: 7 }), json!({"event": {"start": {"pid": 7}}}));
        let data = Event::Data(Data::Stderr(Bytes(&[0xff, b'a'])));
        assert_eq!(said(data), json!({"event": {"data": {"stderr": "/2E="}}}));
        assert_eq!(said(Event::Keepalive(Empty {})), json!({"event": {"keepalive": {}}}));
        let end = Event::End(End::of(ExitStatus::Code(3)).unwrap());
        let wanted = json!({"exitCode": 3, "exited": true, "status": "exit status 3", "error": "exit status 3"});
        assert_eq!(said(end), json!({"event": {"end": wanted}}));
    }

    #[test]
    fn an_end_is_said_as_go_does() {
        let end = |status| End::of(status).unwrap();
        assert_eq!(end(ExitStatus::Code(0)).error, None);
        let killed = end(ExitStatus::Signal(libc::SIGKILL));
        assert_eq!((killed.exit_code, killed.exited), (-1, false));
        assert_eq!(killed.status, "signal: killed");
        assert_eq!(end(ExitStatus::Signal(40)).status, "signal: signal 40");
        assert_eq!(End::of(ExitStatus::TimedOut), None);
    }
}
