//! `mayfly-bench load`.

use std::path::PathBuf;
use std::time::Duration;

use mayfly_bench::error::BenchError;
use mayfly_bench::load::{self, Daemon, Plan, Report};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Golden of all sessions.
    #[arg(long, default_value = "default")]
    golden: String,
    /// Sessions of each phase.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    sessions: u32,
    /// Clients of the saturation phase.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    workers: u32,
    /// Arrivals of the second phase, as a share of the measured saturation rate.
    #[arg(long, default_value_t = 0.5)]
    fraction: f64,
    /// Arrivals of the second phase, in sessions per second.
    #[arg(long, conflicts_with = "fraction")]
    rate: Option<f64>,
    /// How long a session of the second phase lives after its Docker has answered.
    #[arg(long, default_value_t = 0, value_name = "MS")]
    hold_ms: u64,
    /// Sessions that rest while memory is measured.
    #[arg(long, default_value_t = 8)]
    idle: u32,
    /// Seconds of rest before and after each phase, in which the pool fills.
    #[arg(long, default_value_t = 10)]
    rest: u64,
    /// The daemon that listens here, instead of one of our own. It must be on this host.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Write the figures and a description of the machine as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a report with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Further arguments of `mayfly serve`, behind `--`.
    #[arg(last = true, conflicts_with = "socket")]
    serve: Vec<String>,
}

pub async fn run(args: Args) -> Result<(), BenchError> {
    let machine = super::machine(&args.golden).await?;
    let plan = Plan {
        golden: args.golden,
        sessions: args.sessions,
        workers: args.workers,
        fraction: args.fraction,
        rate: args.rate,
        hold: Duration::from_millis(args.hold_ms),
        idle: args.idle,
        rest: Duration::from_secs(args.rest),
    };
    let daemon = Daemon::at(args.socket.as_deref(), &args.serve).await?;
    let outcome = load::run(&daemon, &plan, &|phase| eprintln!("mayfly-bench: {phase}")).await?;
    drop(daemon);
    let report = Report::new(&plan, machine, outcome);
    println!("{}", report.machine);
    super::show(report.tables());
    super::write(&report, || report.page(), args.json.as_deref(), args.html.as_deref())
}
