//! `mayfly-bench peers`.

use std::path::PathBuf;

use clap::ValueEnum;
use mayfly_bench::error::BenchError;
use mayfly_bench::machine::Machine;
use mayfly_bench::peers::{self, Plan, Report, System};
use mayfly_engine::Engine;
use mayfly_host::layout::Layout;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Golden to start from.
    #[arg(long, default_value = "default")]
    golden: String,
    /// Starts of each system.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Of these, how many also boot the golden's kernel until Docker answers.
    #[arg(long, default_value_t = 5)]
    boots: u32,
    /// Rounds before those, which fill caches and do not count.
    #[arg(long, default_value_t = 1)]
    warm_up: u32,
    /// Only these systems, comma-separated. All when absent.
    #[arg(long, value_delimiter = ',', value_name = "SYSTEM")]
    only: Vec<System>,
    /// Write the figures and a description of the machine as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a report with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub async fn run(args: Args) -> Result<(), BenchError> {
    let Args { golden, rounds, boots, warm_up, only, json, html } = args;
    let machine = Machine::look();
    let engine = Engine::open(Layout::from_env()).await?;
    let loaded = engine.golden(&golden).await?;
    let accel = loaded.shape().accel;
    let machine = machine.with_vmm(engine.driver().version(accel), accel);
    let plan = Plan { rounds, boots, warm_up, systems: systems(&only) };
    let bar = super::bar(u64::from(rounds + warm_up), "rounds");
    let samples = peers::run(&engine, &loaded, &plan, &bar).await?;
    let report = Report::new(&golden, machine, &samples);
    println!("{}", report.machine);
    super::show(report.tables());
    super::write(&report, || report.page(), json.as_deref(), html.as_deref())
}

/// The systems of a run in their order, each once. A shell is a stage of a cold start.
fn systems(only: &[System]) -> Vec<System> {
    let wanted = |system: &System| {
        only.is_empty()
            || only.contains(system)
            || (*system == System::Cold && only.contains(&System::Shell))
    };
    System::value_variants().iter().copied().filter(wanted).collect()
}
