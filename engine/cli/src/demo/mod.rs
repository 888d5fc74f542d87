//! `mayfly demo`: how soon a session answers, beside what it is instead of.

mod measure;
mod print;
mod report;
mod systems;

use std::process::ExitCode;

use mayfly_engine::Engine;
use mayfly_engine::golden::BuildOptions;
use mayfly_host::layout::Layout;
use measure::Plan;

use super::args::{self, Cli};
use super::bars;
use super::failure::{EXIT_INTERRUPTED, Failure};
use super::golden;
use super::interrupt::Interrupts;

/// The image that `docker run` is shown with; the default recipe has it.
const IMAGE: &str = "busybox";

pub async fn run(cli: &Cli, args: &args::DemoArgs) -> Result<ExitCode, Failure> {
    // From the start: between the build and the sessions Ctrl-C must not be lost.
    let mut interrupts = Interrupts::install()?;
    let recipe = golden::recipe(args.recipe.as_deref())?;
    let has_image =
        recipe.docker.images.iter().any(|image| image.tag.split(':').next() == Some(IMAGE));
    let name = recipe.name.clone();
    golden::Builds::begin(cli).await?.build(recipe, &BuildOptions::default()).await?;
    let engine = Engine::open(Layout::from_env()).await?;
    let golden = engine.golden(&name).await?;
    super::target::warn_of_emulation(&golden);
    let plan =
        Plan { rounds: args.rounds, boots: args.boots, docker_run: has_image.then_some(IMAGE) };
    let progress = bars::for_command(cli);
    let report = tokio::select! {
        report = measure::run(&engine, &golden, &plan, &*progress) => report?,
        _ = interrupts.next() => {
            return Err(Failure { message: "interrupted; all sessions were discarded".into(), code: EXIT_INTERRUPTED });
        }
    };
    drop(progress);
    if cli.json {
        println!("{}", serde_json::to_string(&report)?);
    } else if !cli.quiet {
        print::lines(&report, &program()).iter().for_each(|line| println!("{line}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// What to type to run this program again, unless that is too long to show.
fn program() -> String {
    let typed = std::env::args().next().unwrap_or_default();
    if typed.contains('/') && typed.chars().count() <= 24 { typed } else { "mayfly".to_owned() }
}
