//! `mayfly status`: the daemon as a whole.

use std::process::ExitCode;
use std::time::Duration;

use indicatif::{HumanBytes, HumanDuration};
use mayfly_api::{GoldenStatus, ServiceStatus};

use super::daemon;
use crate::args::Cli;
use crate::failure::Failure;

pub async fn run(cli: &Cli) -> Result<ExitCode, Failure> {
    let status = daemon().status().await?;
    if cli.json {
        println!("{}", serde_json::to_string(&status)?);
    } else {
        print(&status);
    }
    Ok(ExitCode::SUCCESS)
}

/// `1 session`, `2 sessions`.
fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

fn print(status: &ServiceStatus) {
    let ServiceStatus { version, host, uptime_seconds, sessions, queued, .. } = status;
    let up = Duration::try_from_secs_f64(*uptime_seconds).unwrap_or_default();
    println!(
        "mayfly {version}, {host}, up {}: {}, {} waiting",
        HumanDuration(up),
        counted(*sessions, "session"),
        counted(*queued, "request")
    );
    if let Some(reason) = &status.pressure {
        println!("no new sessions while the host is short: {reason}");
    }
    if let Some(disk) = &status.disk {
        println!(
            "disk: {} of {} free; sessions have {} and may take {} more",
            HumanBytes(disk.available_bytes),
            HumanBytes(disk.total_bytes),
            HumanBytes(disk.written_bytes),
            HumanBytes(disk.promised_bytes)
        );
    }
    for line in &status.reaped {
        println!("removed at its start: {line}");
    }
    println!(
        "\n{:<20} {:>10} {:>8} {:>6} {:>6} {:>7} {:>6} {:>8} {:>10}  HELD",
        "GOLDEN",
        "STORED",
        "STANDBYS",
        "SHELLS",
        "ZYGOTE",
        "FILLING",
        "TARGET",
        "ASKED/S",
        "MEMORY"
    );
    status.goldens.iter().for_each(print_golden);
    println!(
        "\n{:<20} {:>9} {:>9} {:>9} {:>9} {:>6}",
        "START, ms", "p50", "p90", "p99", "max", "n"
    );
    for latency in &status.latency {
        let s = &latency.summary;
        let tier = latency.tier.word();
        println!(
            "{tier:<20} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>6}",
            s.p50, s.p90, s.p99, s.max, s.n
        );
    }
}

fn print_golden(golden: &GoldenStatus) {
    let stored = HumanBytes(golden.stored_bytes).to_string();
    let Some(pool) = &golden.pool else {
        println!("{:<20} {stored:>10} {:>8}", golden.name, "no pool");
        return;
    };
    println!(
        "{:<20} {stored:>10} {:>8} {:>6} {:>6} {:>7} {:>6} {:>8.1} {:>10}  {}",
        golden.name,
        pool.standbys,
        pool.shells,
        if pool.zygote { "yes" } else { "no" },
        pool.filling,
        pool.target,
        pool.arrivals_per_second,
        HumanBytes(pool.memory_bytes).to_string(),
        pool.held.as_deref().unwrap_or_default()
    );
}
