//! The front end for E2B's clients beside the native API: what a session and the output of a command
//! cost through each, in turn in one run.
//!
//! Both are asked over TCP with a token, each over a connection that stays open.

mod e2b;
mod native;
mod report;

use std::time::{Duration, Instant};

pub use report::{ApiFigures, Report};

use crate::error::BenchError;
use crate::load::Daemon;
use crate::tti::{Spread, pool};
use e2b::E2b;
use native::Native;

/// Rounds before those that count, which make the pool and fill caches.
const WARM_UP: u32 = 3;
const MIB: f64 = (1 << 20) as f64;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Golden of all sessions.
    pub golden: String,
    /// Sessions of each API.
    pub sessions: u32,
    /// Commands of each API.
    pub outputs: u32,
    /// Bytes that each of these writes, in MiB.
    pub output_mib: u32,
}

/// Measured values of one API.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    /// Milliseconds from the request for a session to the answer.
    pub create_ms: Vec<f64>,
    /// MiB/s of a command's output, from the request to the last byte.
    pub output_mib_s: Vec<f64>,
}

/// Results of a run.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Those of the native API.
    pub native: Samples,
    /// Those of the front end.
    pub e2b: Samples,
}

/// Options of `mayfly serve` for a daemon with the front end on a free port.
pub const SERVE: [&str; 3] = ["--e2b", "--listen", "127.0.0.1:0"];

/// Measures `plan` with sessions of `daemon`, which was started with [`SERVE`]. `say` is told what
/// begins.
///
/// # Errors
/// [`BenchError`]; the sessions are gone with the daemon.
pub async fn run(daemon: &Daemon, plan: &Plan, say: &dyn Fn(&str)) -> Result<Outcome, BenchError> {
    let (address, key) = e2b::address_of(daemon)?;
    let mut native = Native::new(&address, &key, plan)?;
    let mut e2b = E2b::connect(&address, &key, plan).await?;
    let mut outcome = Outcome::default();
    say("warm-up: the pool of the golden is made");
    for _ in 0..WARM_UP {
        native.kill(&native.create().await?).await?;
        let id = e2b.create().await?;
        e2b.kill(&id).await?;
    }
    say(&format!("{} sessions of each", plan.sessions));
    for round in 0..plan.sessions {
        // Whoever is first has the fuller pool.
        for of_native in [round % 2 == 0, round % 2 == 1] {
            // So that both are measured on the same tier.
            pool::rest(daemon.client(), &plan.golden, Duration::ZERO).await?;
            let begun = Instant::now();
            let id = if of_native { native.create().await? } else { e2b.create().await? };
            let took = begun.elapsed().as_secs_f64() * 1000.0;
            if of_native {
                outcome.native.create_ms.push(took);
                native.kill(&id).await?;
            } else {
                outcome.e2b.create_ms.push(took);
                e2b.kill(&id).await?;
            }
        }
    }
    say(&format!("{} times {} MiB of output of each", plan.outputs, plan.output_mib));
    let (of_native, of_e2b) = (native.create().await?, e2b.create().await?);
    // One that does not count: the first reads the programs from disk.
    for round in 0..=plan.outputs {
        let rates = (native.output(&of_native).await?, e2b.output(&of_e2b).await?);
        if round > 0 {
            outcome.native.output_mib_s.push(rates.0);
            outcome.e2b.output_mib_s.push(rates.1);
        }
    }
    native.kill(&of_native).await?;
    e2b.kill(&of_e2b).await?;
    Ok(outcome)
}

/// What an API did wrong.
type Reason = Box<dyn std::error::Error + Send + Sync>;

fn failed(system: &'static str, error: impl Into<Reason>) -> BenchError {
    BenchError::Peer { system, reason: error.into().to_string() }
}

/// MiB/s of so many bytes.
fn rate(bytes: u64, since: Instant) -> f64 {
    bytes as f64 / MIB / since.elapsed().as_secs_f64()
}

/// The command whose output is measured.
fn command(plan: &Plan) -> String {
    format!("head -c {} /dev/zero", u64::from(plan.output_mib) << 20)
}

/// Refuses output that is not all there.
fn check(what: &'static str, bytes: u64, plan: &Plan) -> Result<(), BenchError> {
    let all = u64::from(plan.output_mib) << 20;
    if bytes == all {
        return Ok(());
    }
    Err(BenchError::Peer { system: what, reason: format!("{bytes} of {all} bytes came") })
}

impl Samples {
    fn spreads(self) -> (Spread, Spread) {
        (Spread::of(self.create_ms), Spread::of(self.output_mib_s))
    }
}
