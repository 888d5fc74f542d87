//! `mayfly-bench start`.

use std::path::PathBuf;

use mayfly_bench::error::BenchError;
use mayfly_bench::machine::Machine;
use mayfly_bench::start::{Measurements, Report};
use mayfly_bench::table::{Table, figure};
use mayfly_engine::Engine;
use mayfly_host::layout::Layout;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Golden to start sessions from.
    #[arg(long, default_value = "default")]
    golden: String,
    /// Sessions to measure.
    #[arg(long, default_value_t = 200)]
    sessions: u64,
    /// Sessions before those, which warm the page cache and are not counted.
    #[arg(long, default_value_t = 3)]
    warm_up: u64,
    /// Also wait for the first answer of the Docker API.
    #[arg(long)]
    docker: bool,
    /// Write the figures and a description of the machine as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub async fn run(args: Args) -> Result<(), BenchError> {
    let Args { golden, sessions, warm_up, docker, json } = args;
    let machine = Machine::look();
    let engine = Engine::open(Layout::from_env()).await?;
    let loaded = engine.golden(&golden).await?;
    let accel = loaded.shape().accel;
    let machine = machine.with_vmm(engine.driver().version(accel), accel);
    let mut discarded = Measurements::default();
    for _ in 0..warm_up {
        discarded.take(&engine, &loaded, docker).await?;
    }
    let bar = super::bar(sessions, "sessions");
    let mut measured = Measurements::default();
    for _ in 0..sessions {
        measured.take(&engine, &loaded, docker).await?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let report = measured.report();
    print(&machine, &report);
    if let Some(path) = json {
        let document = serde_json::json!({
            "benchmark": "start", "golden": golden, "machine": machine, "figures": report,
        });
        super::write_json(&path, &document)?;
    }
    Ok(())
}

fn print(machine: &Machine, report: &Report) {
    println!("{machine}\n");
    let mut table = Table::new(["", "p50", "p90", "p99", "max", "n"]);
    for (name, s) in report.rows().into_iter().filter(|(_, s)| s.n > 0) {
        let figures = [s.p50, s.p90, s.p99, s.max].map(figure);
        table.row([name.to_owned()].into_iter().chain(figures).chain([s.n.to_string()]));
    }
    print!("{table}");
}
