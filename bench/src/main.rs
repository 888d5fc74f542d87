//! The `mayfly-bench` command: macro benchmarks of whole sessions.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use mayfly_bench::machine::Machine;
use mayfly_bench::start::{Measurements, Report};
use mayfly_engine::Engine;
use mayfly_engine::layout::Layout;

/// Measures Mayfly on this machine and prints distributions.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Session start latency.
    Start {
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
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Command::Start { golden, sessions, warm_up, docker, json } = Cli::parse().command;
    match start(&golden, sessions, warm_up, docker, json).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mayfly-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn start(
    golden: &str,
    sessions: u64,
    warm_up: u64,
    docker: bool,
    json: Option<PathBuf>,
) -> Result<(), Box<dyn std::error::Error>> {
    let machine = Machine::look();
    let engine = Engine::open(Layout::from_env()).await?;
    let loaded = engine.golden(golden).await?;
    let mut discarded = Measurements::default();
    for _ in 0..warm_up {
        discarded.take(&engine, &loaded, docker).await?;
    }
    let style = ProgressStyle::with_template("sessions {bar:30} {pos}/{len} {eta} left")?;
    let bar = ProgressBar::new(sessions).with_style(style);
    let mut measured = Measurements::default();
    for _ in 0..sessions {
        tokio::select! {
            taken = measured.take(&engine, &loaded, docker) => taken?,
            _ = tokio::signal::ctrl_c() => return Err("interrupted".into()),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let report = measured.report();
    print(&machine, &report);
    if let Some(path) = json {
        let document = serde_json::json!({
            "benchmark": "start", "golden": golden, "accel": loaded.shape().accel,
            "vmm": engine.driver().version(), "machine": machine, "figures": report,
        });
        std::fs::write(&path, serde_json::to_vec_pretty(&document)?)
            .map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    Ok(())
}

fn print(machine: &Machine, report: &Report) {
    println!(
        "{} x {}, {} MiB, Linux {}, load {} before the run",
        machine.cpus,
        machine.cpu,
        machine.memory_bytes >> 20,
        machine.kernel,
        machine.load_before
    );
    println!("{:<26} {:>9} {:>9} {:>9} {:>9} {:>6}", "", "p50", "p90", "p99", "max", "n");
    for (name, s) in report.rows().into_iter().filter(|(_, s)| s.n > 0) {
        println!("{name:<26} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>6}", s.p50, s.p90, s.p99, s.max, s.n);
    }
}
