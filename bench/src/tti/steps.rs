//! First steps in a session: how long each takes the first, the second and the third time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mayfly_api::{Exec, Terminal};
use mayfly_client::{Client, ClientError};
use mayfly_protocol::{ExecEvent, ExitStatus};
use serde::Serialize;

use super::docker::IMAGE;
use super::figures::Spread;
use super::pool;
use super::session::{Live, Order, Sessions, nameless, within};
use crate::load::Attempt;

/// How often each step is taken in one session.
pub const TIMES: usize = 3;

/// File that is written and read.
const FILE: &str = "/tmp/mayfly-bench";

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// A command, to its end.
    Command(&'static [&'static str]),
    /// A command on a terminal, over a WebSocket, to its end.
    Terminal(&'static [&'static str]),
    /// A file of one line, written and read again.
    File,
    /// A command that needs Docker and an image.
    Docker(&'static [&'static str]),
}

/// Steps and what they are called, in the order in which they are taken.
const STEPS: [(&str, Step); 7] = [
    ("echo x", Step::Command(&["echo", "x"])),
    ("sh -c 'echo x'", Step::Command(&["sh", "-c", "echo x"])),
    ("bash -lc 'echo x'", Step::Command(&["bash", "-lc", "echo x"])),
    ("write and read a file", Step::File),
    ("echo x on a terminal", Step::Terminal(&["echo", "x"])),
    ("docker ps", Step::Docker(&["docker", "ps"])),
    ("docker run", Step::Docker(&["docker", "run", "--rm", IMAGE, "true"])),
];

/// Figures of one step.
#[derive(Debug, Clone, Serialize)]
pub struct StepFigures {
    /// Name of the step.
    pub step: &'static str,
    /// Milliseconds that it took: the first time in a session, the second, and so on.
    pub times_ms: [Spread; TIMES],
    /// Failures by reason.
    pub failed: BTreeMap<String, u64>,
}

/// Takes each step [`TIMES`] times in each of `count` sessions of its own, one after another.
/// Without `with_docker`, those that need Docker are left out.
pub async fn run(
    sessions: &Sessions,
    order: &Order,
    count: u32,
    with_docker: bool,
    say: &dyn Fn(&str),
) -> Vec<StepFigures> {
    let mut figures = Vec::new();
    for (name, step) in STEPS {
        if matches!(step, Step::Docker(_)) && !with_docker {
            say(&format!("first steps: no {name}, for this golden has no {IMAGE} for Docker"));
            continue;
        }
        say(&format!("first steps: {name}"));
        let mut times: [Vec<f64>; TIMES] = Default::default();
        let mut failed = BTreeMap::new();
        for _ in 0..count {
            if let Err(reason) = step.take_in_one(sessions, order, &mut times).await {
                *failed.entry(reason).or_default() += 1;
            }
        }
        figures.push(StepFigures { step: name, times_ms: times.map(Spread::of), failed });
    }
    figures
}

/// The reason why a request was not met.
fn reason(attempt: Attempt<()>) -> String {
    match attempt {
        Attempt::Refused { code: reason } | Attempt::Failed { reason } => reason,
        Attempt::Started(()) => String::new(),
    }
}

impl Step {
    /// Takes the step in a new session, until it fails or has been taken [`TIMES`] times, and adds
    /// what each time took in milliseconds. Waits for the pool first, so that all begin alike. The
    /// error is a reason.
    async fn take_in_one(
        self,
        sessions: &Sessions,
        order: &Order,
        times: &mut [Vec<f64>; TIMES],
    ) -> Result<(), String> {
        let pool = pool::rest(sessions.client(), &order.request.golden, Duration::ZERO);
        pool.await.map_err(|error| error.to_string())?;
        let live = sessions.create(order).await.map_err(reason)?;
        for values in times {
            let begun = Instant::now();
            self.take(sessions.client(), &live, order.limit).await?;
            values.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        live.kill().await.map_err(|error| error.to_string())
    }

    /// Takes the step once. The error is a reason.
    async fn take(self, client: &Client, live: &Live, limit: Duration) -> Result<(), String> {
        let outcome = match self {
            Self::Command(argv) | Self::Docker(argv) => live.run(&Exec::new(argv), limit).await,
            Self::Terminal(argv) => within(limit, terminal(client, live.id(), argv)).await,
            Self::File => within(limit, file(client, live.id())).await,
        };
        outcome.map_err(|declined| nameless(&reason(declined), live.id()))
    }
}

async fn terminal(client: &Client, id: &str, argv: &[&str]) -> Result<(), ClientError> {
    let tty = Some(Terminal { rows: 24, cols: 80 });
    let mut running = client.run(id, &Exec { tty, ..Exec::new(argv) }).await?;
    let mut status = None;
    while let Some(event) = running.recv().await? {
        if let ExecEvent::Exit(exit) = event {
            status = Some(exit);
        }
    }
    match status {
        Some(ExitStatus::Code(0)) => Ok(()),
        other => Err(failed(format!("the command ended with {other:?}"))),
    }
}

async fn file(client: &Client, id: &str) -> Result<(), ClientError> {
    let line = b"x\n";
    client.write_file(id, FILE, 0o600, &line[..]).await?;
    let content = client.read_file(id, FILE, 0, None).await?.collect(line.len()).await?;
    match content == line {
        true => Ok(()),
        false => Err(failed("another file was read than was written".to_owned())),
    }
}

/// A failure of the session's, where the daemon gave what it was asked for.
fn failed(what: String) -> ClientError {
    ClientError::Protocol { what }
}
