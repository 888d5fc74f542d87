//! `mayfly-bench front-ends`.

use std::path::PathBuf;

use mayfly_bench::error::BenchError;
use mayfly_bench::front_ends::{self, Plan, Report, SERVE};
use mayfly_bench::load::Daemon;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Golden of all sessions.
    #[arg(long, default_value = "default")]
    golden: String,
    /// Sessions of each API.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    sessions: u32,
    /// Commands of each API whose output is measured.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    outputs: u32,
    /// MiB that each of them writes.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    output_mib: u32,
    /// Write the figures and a description of the machine as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Further arguments of `mayfly serve`, behind `--`.
    #[arg(last = true)]
    serve: Vec<String>,
}

pub async fn run(args: Args) -> Result<(), BenchError> {
    let machine = super::machine(&args.golden).await?;
    let Args { golden, sessions, outputs, output_mib, json, serve } = args;
    let plan = Plan { golden, sessions, outputs, output_mib };
    let serve: Vec<_> = SERVE.iter().map(ToString::to_string).chain(serve).collect();
    let daemon = Daemon::start(&serve).await?;
    let outcome =
        front_ends::run(&daemon, &plan, &|phase| eprintln!("mayfly-bench: {phase}")).await?;
    drop(daemon);
    let report = Report::new(&plan, machine, outcome);
    println!("{}", report.machine);
    super::show(report.tables());
    json.map_or(Ok(()), |path| super::write_json(&path, &report))
}
