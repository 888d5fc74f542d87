//! The `mayfly-bench` command: macro benchmarks of whole sessions.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mayfly_bench::interrupt;

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
    Start(commands::start::Args),
    /// Mayfly beside stock QEMU, a cold boot and a container, in one run.
    Peers(commands::peers::Args),
    /// A daemon under load: rates, latencies by tier, memory.
    Load(commands::load::Args),
    /// The front end for E2B's clients beside the native API, in one run.
    FrontEnds(commands::front_ends::Args),
    /// Time to interactive: from requests for sessions to the output of their first commands.
    Tti(commands::tti::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let work = async {
        match Cli::parse().command {
            Command::Start(args) => commands::start::run(args).await,
            Command::Peers(args) => commands::peers::run(args).await,
            Command::Load(args) => commands::load::run(args).await,
            Command::FrontEnds(args) => commands::front_ends::run(args).await,
            Command::Tti(args) => commands::tti::run(args).await,
        }
    };
    match interrupt::guarded(Box::pin(work)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mayfly-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
