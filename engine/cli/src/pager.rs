//! `mayfly pager`: the process that serves page faults, and its figures.

use std::io::ErrorKind;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use mayfly_engine::pager_host::StoreResolver;
use mayfly_host::layout::Layout;
use mayfly_host::time_scale::scaled;
use mayfly_pager::client::{ClientError, PagerClient};
use mayfly_pager::{PagerConfig, serve};

use super::args::{self, Cli};
use super::failure::Failure;
use super::interrupt::Interrupts;
use super::serve::protect_from_oom;

pub fn run(cli: &Cli, command: &args::Pager) -> Result<ExitCode, Failure> {
    let layout = Layout::from_env();
    let client = PagerClient::new(layout.pager_socket());
    match command {
        args::Pager::Serve { budget, idle } => {
            end_on_signals(client)?;
            serve_until_idle(&layout, *budget, *idle)?;
        }
        args::Pager::Status => {
            let stats = client.host_stats()?;
            let json = serde_json::to_value(&stats)?;
            if cli.json {
                println!("{json}");
            } else {
                println!("{}", serde_json::to_string_pretty(&json)?);
            }
        }
        args::Pager::Stop => match client.shutdown(true) {
            Err(ClientError::Connect { error, .. })
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
            {
                if !cli.quiet {
                    eprintln!("mayfly: no pager runs");
                }
            }
            other => other?,
        },
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends this process's pager in order at the first signal that asks for it, as a service manager's
/// does, so that its socket does not stay behind. Sessions that are attached end with it.
fn end_on_signals(client: PagerClient) -> Result<(), Failure> {
    let mut interrupts = Interrupts::install()?;
    tokio::spawn(async move {
        interrupts.next().await;
        let ended = tokio::task::spawn_blocking(move || client.shutdown(true)).await;
        if !matches!(ended, Ok(Ok(()))) {
            tracing::warn!(?ended, "the pager cannot be ended in order");
            std::process::exit(1);
        }
    });
    Ok(())
}

fn serve_until_idle(layout: &Layout, budget_mib: Option<u64>, idle_s: u64) -> Result<(), Failure> {
    mayfly_host::descriptors::raise_limit();
    protect_from_oom("the pager");
    Layout::create(layout.run())?;
    let config = PagerConfig {
        budget_bytes: budget_mib.map_or_else(default_budget, |mib| mib << 20),
        idle_exit: (idle_s > 0).then(|| Duration::from_secs(idle_s)),
        stall_limit: scaled(PagerConfig::default().stall_limit),
        ..PagerConfig::default()
    };
    serve(&layout.pager_socket(), Arc::new(StoreResolver::new(layout)), config)?;
    Ok(())
}

/// A quarter of the host's memory.
fn default_budget() -> u64 {
    let total = procfs::Current::current().map(|info: procfs::Meminfo| info.mem_total);
    total.map_or_else(|_| PagerConfig::default().budget_bytes, |bytes| bytes / 4)
}
